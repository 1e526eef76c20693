// 8-bit weights and activations, AVX2. vpmaddubsw adds two products in 16 bits with saturation, which
// full-range integers exceed; here no lane ever reaches the limit, so every layer is exact, and most sums are
// widened once for two to four multiplications instead of once for each.
//
//   activations (quads8), 8 lanes:   L0: a0 a1 a2 a3 | L1: a0 a1 a2 a3 | ...            u8
//   weights of four input channels:  w0 w1 w2 w3, one vpbroadcastd                      s8
//   vpmaddubsw, 16 words:            L0: a0 w0 + a1 w1, a2 w2 + a3 w3 | L1: ...         s16
//   run of `length` steps:           the sum of that many such words, vpaddw            s16, proved
//   vpmaddwd by ones, vpaddd:        L0, L1, ...                                        s32
//
// Packing (kernels/run_packing.h) puts large weights into a run with small ones, and splits the few steps
// whose pair alone could saturate into two: (w0, 0, w2, 0) and (0, w1, 0, w3), since 255 * 127 fits. On Zen 3
// the two multiplying pipes are the bound: a run of n steps takes n + 1 of them for each register.
//
// Blocks of 1 position x 32 lanes x 2 output channels: 8 sums in registers, the rest for weights.
//
// Positions that miss no tap have runs of their own, in which all taps are joined.
//
//   weights:  s8 [run][step][2 output channels][4 input channels], then the same for joined taps
//   program:  the place of the joined taps' program or 0; then each program: run length, places of its groups
//             and weights, first runs [pair of output channels][tap] and the end, groups [run][step]

#include <array>
#include <cstring>
#include <type_traits>

#include "kernels/blocks_avx2.h"
#include "kernels/kernels.h"
#include "kernels/output_avx2.h"
#include "kernels/run_packing.h"

namespace nibble {
namespace {

constexpr int kRegisters = 4;  ///< of 8 lanes in a block of 32
constexpr int kQuad = 4;       ///< input channels of a step

/// Costs of a run: vpmaddubsw and vpmaddwd of one register.
constexpr RunLength kLengths[] = {{1, 2.0}, {2, 3.0}, {3, 4.0}, {4, 5.0}};

int groups_of(const ConvolutionShape& shape) {
  return group_count(kQuads8, shape.input_channels);
}

bool supports(const ConvolutionLayer& layer) {
  // s32 sums: 255 * 127 * 65,000 products.
  return layer.shape.filter_size() <= 65'000 && groups_of(layer.shape) <= kMaximumSteps;
}

/// Of a layer's runs over all taps, where its steps are not too many.
bool has_joined_runs(const ConvolutionShape& shape) {
  return shape.kernel * shape.kernel * groups_of(shape) <= kMaximumSteps;
}

/// The parts of a program.
struct Program {
  int length;
  const std::int32_t* first_run;
  const std::int32_t* groups;
  const std::uint8_t* weights;
  int taps;  ///< that have their own runs
};

/// Where a program lies: [length, groups' place, weights' place], then first runs, then groups.
constexpr std::size_t kHeader = 3;

[[gnu::cold]] void append(const RunProgram& runs, PackedConvolution& packed) {
  const std::size_t groups = packed.program.size() + kHeader + runs.first_run.size();
  packed.program.push_back(runs.length);
  packed.program.push_back(static_cast<std::int32_t>(groups));
  packed.program.push_back(static_cast<std::int32_t>(packed.weights.size()));
  packed.program.insert(packed.program.end(), runs.first_run.begin(), runs.first_run.end());
  packed.program.insert(packed.program.end(), runs.groups.begin(), runs.groups.end());
  for (const std::int16_t weight : runs.weights) packed.weights.push_back(static_cast<std::uint8_t>(weight));
}

[[gnu::cold]] PackedConvolution pack(const ConvolutionLayer& layer) {
  constexpr NarrowLane kLane{kQuad, 2, -32768, 32767};
  PackedConvolution packed{layer.shape, layer.activation_bits, {}, {0}};
  append(pack_runs(layer, kPair, kLane, kLengths), packed);
  if (has_joined_runs(layer.shape)) {
    packed.program[0] = static_cast<std::int32_t>(packed.program.size());
    append(pack_runs(layer, kPair, kLane, kLengths, TapRuns::joined), packed);
  }
  return packed;
}

Program program_of(const PackedConvolution& packed, bool joined) {
  const std::int32_t* header = packed.program.data() + (joined ? packed.program[0] : 1);
  return {header[0], header + kHeader, packed.program.data() + header[1], packed.weights.data() + header[2],
          joined ? 1 : packed.shape.kernel * packed.shape.kernel};
}

/// Sums of one pair of output channels at one position: sums[channel][part]. offsets: of groups, bytes.
template <int Length>
void accumulate(std::span<const Tap> taps, const std::ptrdiff_t* offsets, const std::uint8_t* input,
                const std::int32_t* first_run, const Program& program, __m256i (*sums)[kRegisters]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i total[kPair][kRegisters] = {};
  for (const Tap& tap : taps) {
    const std::uint8_t* at_tap = input + tap.offset;
    const std::int32_t last = first_run[tap.index + 1];
    for (std::int32_t run = first_run[tap.index]; run < last; ++run) {
      const std::int32_t* groups = program.groups + std::ptrdiff_t{run} * Length;
      const std::uint8_t* weights = program.weights + std::ptrdiff_t{run} * Length * kStepBytes;
      const std::uint8_t* step[Length];
      __m256i weight[kPair][Length];
      for (int s = 0; s < Length; ++s) {
        step[s] = at_tap + offsets[groups[s]];
        for (int o = 0; o < kPair; ++o) weight[o][s] = broadcast_dword(weights + s * kStepBytes + o * kQuad);
      }
      for (int part = 0; part < kRegisters; ++part) {
        __m256i words[kPair];
        for (int s = 0; s < Length; ++s) {
          const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(step[s] + part * kPartBytes));
          for (int o = 0; o < kPair; ++o) {
            const __m256i products = _mm256_maddubs_epi16(a, weight[o][s]);
            words[o] = s == 0 ? products : _mm256_add_epi16(words[o], products);
          }
        }
        for (int o = 0; o < kPair; ++o) {
          total[o][part] = _mm256_add_epi32(total[o][part], _mm256_madd_epi16(words[o], ones));
        }
      }
    }
  }
  for (int o = 0; o < kPair; ++o) {
    for (int part = 0; part < kRegisters; ++part) sums[o][part] = total[o][part];
  }
}

using Accumulate = void (*)(std::span<const Tap> taps, const std::ptrdiff_t* offsets,
                            const std::uint8_t* input, const std::int32_t* first_run, const Program& program,
                            __m256i (*sums)[kRegisters]);
constexpr Accumulate kAccumulate[] = {accumulate<1>, accumulate<2>, accumulate<3>, accumulate<4>};

/// Writer: a ByteWriter, or nothing (void) for the output stage that all AVX2 kernels share.
template <typename Writer>
void run_with(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const int groups = groups_of(packed.shape);
  const auto kernel_taps = static_cast<std::size_t>(packed.shape.kernel * packed.shape.kernel);
  const bool joined = packed.program[0] != 0 && call.taps.size() == kernel_taps;
  const Program program = program_of(packed, joined);
  const Accumulate accumulate_pair = kAccumulate[program.length - 1];
  // The steps of joined runs lie anywhere under one tap that stands for all.
  const Tap whole{0, 0};
  const std::span<const Tap> taps = joined ? std::span(&whole, 1) : call.taps;
  std::ptrdiff_t offsets[kMaximumSteps];
  for (int g = 0; g < groups; ++g) offsets[g] = g * call.input.group_stride;
  if (joined) {
    for (const Tap& tap : call.taps) {
      for (int g = 0; g < groups; ++g) {
        offsets[tap.index * groups + g] = tap.offset + g * call.input.group_stride;
      }
    }
  }
  const DerivedInput derived(stage);
  for (int channel = call.first_channel; channel < call.last_channel; channel += kOutputBlock) {
    const auto each_position = [&](auto write) __attribute__((always_inline)) {
      for (int position = 0; position < call.positions; ++position) {
        const std::uint8_t* input = call.input.at(position, 0);
        __m256i sums[kOutputBlock][kRegisters];
        for (int o = 0; o < kOutputBlock; o += kPair) {
          accumulate_pair(taps, offsets, input, program.first_run + (channel + o) / kPair * program.taps,
                          program, sums + o);
        }
        write(position, sums);
      }
    };
    if constexpr (std::is_void_v<Writer>) {
      each_position([&](int position, const __m256i(&sums)[kOutputBlock][kRegisters]) {
        write_outputs(stage, call, position, channel, sums);
      });
    } else {
      const Writer writer(stage, call, channel, 0, derived);
      each_position([&](int position, const __m256i(&sums)[kOutputBlock][kRegisters]) {
        for (int part = 0; part < kRegisters; ++part) {
          writer.write(
              position, part, [&](int k) __attribute__((always_inline)) { return sums[k][part]; });
        }
      });
    }
  }
}

using RunFunction = void (*)(const PackedConvolution& packed, const OutputStage& stage,
                             const ConvolutionCall& call);

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const float largest_sum = 255.0F * 127.0F * static_cast<float>(packed.shape.filter_size());
  const RunFunction chosen =
      has_byte_form(stage, call, largest_sum)
          ? choose_byte_writer(stage,
                               []<typename Writer>(Writer*) -> RunFunction { return run_with<Writer>; })
          : run_with<void>;
  chosen(packed, stage, call);
}

constexpr std::array kRows = {
    ConvolutionKernel{"int8_avx2", InstructionSet::avx2, 8, 8, kLanes, kOutputBlock, kQuads8, supports, pack,
                      run},
};

}  // namespace

std::span<const ConvolutionKernel> int8_avx2_kernels() {
  return kRows;
}

}  // namespace nibble
