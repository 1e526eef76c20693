// 16-bit weights, u15 (or u8) activations, AVX2: vpmaddwd and vpaddd for 16 products.
//
//   activations (pairs16), 8 lanes:  L0: a0 a1 | L1: a0 a1 | ...              s16, never negative
//   weights of two input channels:   w0 w1, one vpbroadcastd                  s16
//   run of `length` steps, 8 sums:   a0 w0 + a1 w1 + ... of L0, L1, ...       s32, proved
//
// A whole sum does not fit s32. With r the runs' sums, S = sum of r and H = sum of (r >> 16), S modulo 2^32,
// the exact sum is 65536 * H + (S - 65536 * H modulo 2^32), as the second term adds 16 bits a run. Both terms
// and their sum are exact in double, so the one rounding is the conversion to float32.
//
// Blocks of 1 position x 16 lanes x 2 output channels: 4 runs, 4 S, 4 H, 2 weights, 2 temporaries.
//
//   weights:  s16 [run][step][2 output channels][2 input channels]
//   program:  run length, then first runs [pair of output channels][tap] and the end, then groups [run][step]

#include <immintrin.h>

#include <array>
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/run_packing.h"

namespace nibble {
namespace {

constexpr int kLanes = 16;
constexpr int kPair = 2;        ///< output channels of a register block, and input channels of a step
constexpr int kParts = 2;       ///< registers of 8 lanes
constexpr int kPartBytes = 32;  ///< of pairs16
constexpr int kChannelPaddingOfRuns = 4;
constexpr std::size_t kStepBytes = kPair * kPair * sizeof(std::int16_t);

/// Costs of a run: its multiplications, and widening it.
constexpr RunLength kLengths[] = {{1, 2.5}, {2, 3.5}, {3, 4.5}, {4, 5.5}, {5, 6.5}, {6, 7.5}, {8, 9.5}};

bool supports(const ConvolutionLayer& layer) {
  // Runs of a whole layer add 16 bits each: fewer than 2^15 runs. One step is 65534 * 32767 at most.
  return layer.shape.filter_size() < (1U << 15);
}

PackedConvolution pack(const ConvolutionLayer& layer) {
  constexpr NarrowLane kLane{kPair, kPair, std::int64_t{INT32_MIN}, std::int64_t{INT32_MAX}};
  const RunProgram runs = pack_runs(layer, kPair, kLane, kLengths);
  PackedConvolution packed{layer.shape, layer.activation_bits, {}, {}};
  packed.weights.resize(runs.weights.size() * sizeof(std::int16_t));
  std::memcpy(packed.weights.data(), runs.weights.data(), packed.weights.size());
  packed.program.push_back(runs.length);
  packed.program.insert(packed.program.end(), runs.first_run.begin(), runs.first_run.end());
  packed.program.insert(packed.program.end(), runs.groups.begin(), runs.groups.end());
  return packed;
}

struct Program {
  int length;
  const std::int32_t* first_run;
  const std::int32_t* groups;
  const std::uint8_t* weights;
};

Program program_of(const PackedConvolution& packed) {
  const int taps = packed.shape.kernel * packed.shape.kernel;
  const int padded = (packed.shape.output_channels + kChannelPaddingOfRuns - 1) / kChannelPaddingOfRuns *
                     kChannelPaddingOfRuns;
  const std::int32_t* first_run = packed.program.data() + 1;
  return {packed.program[0], first_run, first_run + padded / kPair * taps + 1, packed.weights.data()};
}

inline __m256i broadcast_pair(const std::uint8_t* weights) {
  std::int32_t pair = 0;
  std::memcpy(&pair, weights, sizeof pair);
  return _mm256_set1_epi32(pair);
}

/// Sums of one register block, 8 lanes each.
struct WideSums {
  __m256i low[kPair][kParts];   ///< S
  __m256i high[kPair][kParts];  ///< H

  /// float32 of the exact sums.
  __m256 rounded(int o, int part) const {
    const __m256i rest = _mm256_sub_epi32(low[o][part], _mm256_slli_epi32(high[o][part], 16));
    const auto half = [](__m256i h, __m256i l, int side) {
      const __m128i upper = side == 0 ? _mm256_castsi256_si128(h) : _mm256_extracti128_si256(h, 1);
      const __m128i lower = side == 0 ? _mm256_castsi256_si128(l) : _mm256_extracti128_si256(l, 1);
      const __m256d scaled_upper = _mm256_mul_pd(_mm256_cvtepi32_pd(upper), _mm256_set1_pd(65536.0));
      return _mm256_cvtpd_ps(_mm256_add_pd(scaled_upper, _mm256_cvtepi32_pd(lower)));
    };
    return _mm256_set_m128(half(high[o][part], rest, 1), half(high[o][part], rest, 0));
  }
};

/// The compiler would rather add in another order, for which there are not enough registers.
inline __m256i in_this_order(__m256i value) {
  asm("" : "+x"(value));
  return value;
}

template <int Length>
WideSums accumulate(const ConvolutionCall& call, const std::uint8_t* input, const std::int32_t* first_run,
                    const Program& program) {
  __m256i low[kPair][kParts] = {};
  __m256i high[kPair][kParts] = {};
  for (const Tap& tap : call.taps) {
    const std::uint8_t* at_tap = input + tap.offset;
    const std::int32_t last = first_run[tap.index + 1];
    for (std::int32_t run = first_run[tap.index]; run < last; ++run) {
      const std::int32_t* groups = program.groups + std::ptrdiff_t{run} * Length;
      const std::uint8_t* weights = program.weights + static_cast<std::size_t>(run) * Length * kStepBytes;
      __m256i products[kPair][kParts];
      for (int s = 0; s < Length; ++s) {
        const std::uint8_t* step = at_tap + groups[s] * call.input.group_stride;
        const __m256i a0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(step));
        const __m256i a1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(step + kPartBytes));
        for (int o = 0; o < kPair; ++o) {
          const __m256i weight = broadcast_pair(weights + static_cast<std::size_t>(s) * kStepBytes +
                                                static_cast<std::size_t>(o) * kPair * sizeof(std::int16_t));
          const __m256i p0 = _mm256_madd_epi16(a0, weight);
          const __m256i p1 = _mm256_madd_epi16(a1, weight);
          products[o][0] = in_this_order(s == 0 ? p0 : _mm256_add_epi32(products[o][0], p0));
          products[o][1] = in_this_order(s == 0 ? p1 : _mm256_add_epi32(products[o][1], p1));
        }
      }
      for (int o = 0; o < kPair; ++o) {
        for (int part = 0; part < kParts; ++part) {
          low[o][part] = _mm256_add_epi32(low[o][part], products[o][part]);
          high[o][part] = _mm256_add_epi32(high[o][part], _mm256_srai_epi32(products[o][part], 16));
        }
      }
    }
  }
  WideSums sums;
  for (int o = 0; o < kPair; ++o) {
    for (int part = 0; part < kParts; ++part) {
      sums.low[o][part] = low[o][part];
      sums.high[o][part] = high[o][part];
    }
  }
  return sums;
}

/// Residuals of one channel, 8 lanes. u15 has no sign bit, so both kinds are sign-extended.
inline __m256 load_residual(const OutputStage& stage, const InputView& view, std::ptrdiff_t position,
                            int channel, int part) {
  const std::uint8_t* group = view.at(position, channel / stage.residual_format.channels);
  if (stage.residual_format == kPlanar16) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(group + 16 * part));
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(values));
  }
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + kPartBytes * part));
  const __m256i upper = channel % 2 == 0 ? _mm256_slli_epi32(pairs, 16) : pairs;
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(upper, 16));
}

void write_outputs(const OutputStage& stage, const ConvolutionCall& call, std::ptrdiff_t position,
                   int channel, const WideSums& sums) {
  const __m256 lowest = _mm256_set1_ps(static_cast<float>(stage.range.lowest));
  const __m256 highest = _mm256_set1_ps(static_cast<float>(stage.range.highest));
  const int channels = call.last_channel - channel < kPair ? call.last_channel - channel : kPair;
  __m256i q[kPair][kParts] = {};
  for (int o = 0; o < channels; ++o) {
    const __m256 scale = _mm256_broadcast_ss(stage.scale + channel + o);
    const __m256 offset = _mm256_broadcast_ss(stage.offset + channel + o);
    for (int part = 0; part < kParts; ++part) {
      __m256 y = _mm256_mul_ps(sums.rounded(o, part), scale);
      y = _mm256_add_ps(y, offset);
      if (stage.has_residual()) {
        y = _mm256_fmadd_ps(load_residual(stage, call.residual, position, channel + o, part),
                            _mm256_set1_ps(stage.residual_ratio), y);
      }
      q[o][part] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(y, lowest), highest));
    }
  }
  std::uint8_t* group = call.output.at(position, channel / stage.format.channels);
  if (stage.format == kPlanar16) {
    for (int o = 0; o < channels; ++o) {
      const __m256i values = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[o][0], q[o][1]), 0xD8);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(group + o * call.output.group_stride), values);
    }
    return;
  }
  for (int part = 0; part < kParts; ++part) {
    const __m256i pairs = _mm256_blend_epi16(q[0][part], _mm256_slli_epi32(q[1][part], 16), 0xAA);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(group + part * kPartBytes), pairs);
  }
}

template <int Length>
void run_of_length(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const Program program = program_of(packed);
  const int taps = packed.shape.kernel * packed.shape.kernel;
  for (int position = 0; position < call.positions; ++position) {
    const std::uint8_t* input = call.input.at(position, 0);
    for (int channel = call.first_channel; channel < call.last_channel; channel += kPair) {
      write_outputs(stage, call, position, channel,
                    accumulate<Length>(call, input, program.first_run + channel / kPair * taps, program));
    }
  }
}

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  switch (packed.program[0]) {
    case 1:
      return run_of_length<1>(packed, stage, call);
    case 2:
      return run_of_length<2>(packed, stage, call);
    case 3:
      return run_of_length<3>(packed, stage, call);
    case 4:
      return run_of_length<4>(packed, stage, call);
    case 5:
      return run_of_length<5>(packed, stage, call);
    case 6:
      return run_of_length<6>(packed, stage, call);
    default:
      return run_of_length<8>(packed, stage, call);
  }
}

constexpr std::array kRows = {
    ConvolutionKernel{"int16_avx2", InstructionSet::avx2, 16, 16, kLanes, kPair, kPairs16, supports, pack,
                      run},
    ConvolutionKernel{"int16a8_avx2", InstructionSet::avx2, 16, 8, kLanes, kPair, kPairs16, supports, pack,
                      run},
};

}  // namespace

std::span<const ConvolutionKernel> int16_avx2_kernels() {
  return kRows;
}

}  // namespace nibble
