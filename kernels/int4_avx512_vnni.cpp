// 4-bit weights and activations, AVX-512 VNNI: half the multiplications of kernels/int8_avx512_vnni.cpp,
// where a call's taps form whole lines. Four neighbouring positions take six vpdpbusd a line instead of
// twelve, two that are left over take four instead of six (kernels/line_filter.h). Everything else is left to
// that kernel.
//
// Activations up to 15 make every V at most 195, which is u8. Weights up to 7 make every U at most 84, which
// is s8; packing compares all with 127 all the same. A sum is at most 195 * 84 * 3 lines * 64 channels, and 8
// y at most 8 * 15 * 127 * 9 * 64, so nothing leaves s32 but a third that wraps on purpose.
//
// Register blocks are, for each point, 2 to 4 tiles of four (or two) positions x 16 lanes, or a lone tile x
// 32 lanes, x 4 output channels: what a block needs stays in the first-level cache while all output channels
// are multiplied. What was added to each V is subtracted by what the sums begin with.
//
//   V:        u8 [point][line][group][tile][part][16 lanes][4], parts: of the block, 1 or 2
//   sums:     s32 [point][tile][part][output channel of the block][16 lanes]
//
// Before each point of a block is multiplied, a tile of the block before it is put together and requantized:
// the CPU still has multiplications of the last point to do meanwhile.
//
//   weights:  those of the other kernel, then s8
//             [filter][direction][block of 4 output channels][point][line][group][4][4]
//   program:  that of the other kernel; where lines may be filtered, then
//             [filter][direction][line][block of 4 output channels][point][4]: what sums begin with

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "kernels/int8_avx512_vnni.h"
#include "kernels/kernels.h"
#include "kernels/line_filter.h"
#include "kernels/quads_avx512_vnni.h"
#include "kernels/steps.h"

namespace nibble {
namespace {

constexpr int kTiles = 4;
constexpr int kFilteredGroups = 16;    ///< of layers that are filtered by lines
constexpr int kFilteredOutputs = 256;  ///< output channels of layers that are
constexpr int kPoints = kFourOutputs.points;

int groups_of(const ConvolutionShape& shape) {
  return group_count(kQuads8, shape.input_channels);
}
int blocks_of(const ConvolutionShape& shape) {
  return (shape.output_channels + kBlockChannels - 1) / kBlockChannels;
}

[[gnu::cold]] void pack_lines(const ConvolutionLayer& layer, const LineFilter& filter,
                              PackedConvolution& packed) {
  const int groups = groups_of(layer.shape);
  const int padded = blocks_of(layer.shape) * kBlockChannels;
  const int limit = activation_limit(layer.activation_bits);
  for (int direction = 0; direction < kDirections; ++direction) {
    for (int line = 0; line < kLines; ++line) {
      for (int block = 0; block < padded; block += kBlockChannels) {
        for (int point = 0; point < filter.points; ++point) {
          for (int o = block; o < block + kBlockChannels; ++o) {
            int sum = 0;
            for (int i = 0; i < layer.shape.input_channels; ++i) {
              sum += point_weight_of(layer, filter, o, direction, line, point, i);
            }
            packed.program.push_back(-filter.added[point] * limit * sum);
          }
        }
      }
    }
    for (int block = 0; block < padded; block += kBlockChannels) {
      for (int point = 0; point < filter.points; ++point) {
        for (int step = 0; step < kLines * groups; ++step) {
          for (int o = block; o < block + kBlockChannels; ++o) {
            for (int i = kQuad * (step % groups); i < kQuad * (step % groups + 1); ++i) {
              packed.weights.push_back(static_cast<std::uint8_t>(
                  point_weight_of(layer, filter, o, direction, step / groups, point, i)));
            }
          }
        }
      }
    }
  }
}

/// Whether every V fits u8 and every U s8.
bool lines_fit(const ConvolutionLayer& layer, const LineFilter& filter) {
  const ConvolutionShape& shape = layer.shape;
  if (shape.kernel != kLines || shape.stride != 1 || groups_of(shape) > kFilteredGroups ||
      shape.output_channels > kFilteredOutputs ||
      *std::max_element(filter.largest, filter.largest + filter.points) *
              activation_limit(layer.activation_bits) >
          255) {
    return false;
  }
  int largest = 0;
  for (int o = 0; o < shape.output_channels; ++o) {
    for (int direction = 0; direction < kDirections; ++direction) {
      for (int line = 0; line < kLines; ++line) {
        for (int point = 0; point < filter.points; ++point) {
          for (int i = 0; i < shape.input_channels; ++i) {
            const int weight = point_weight_of(layer, filter, o, direction, line, point, i);
            largest = std::max(largest, std::abs(weight));
          }
        }
      }
    }
  }
  return largest <= 127;
}

[[gnu::cold]] PackedConvolution pack(const ConvolutionLayer& layer) {
  PackedConvolution packed = pack_quads(layer);
  if (!lines_fit(layer, kFourOutputs) || !lines_fit(layer, kTwoOutputs)) return packed;
  pack_lines(layer, kFourOutputs, packed);
  pack_lines(layer, kTwoOutputs, packed);
  return packed;
}

struct Bytes {
  static __m512i repeated(int n) { return _mm512_set1_epi8(static_cast<char>(n)); }
  static __m512i add(__m512i a, __m512i b) { return _mm512_add_epi8(a, b); }
  static __m512i sub(__m512i a, __m512i b) { return _mm512_sub_epi8(a, b); }
  static __m512i four(__m512i a) { return _mm512_slli_epi16(a, 2); }
};

struct Words {
  static __m512i add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
  static __m512i sub(__m512i a, __m512i b) { return _mm512_sub_epi32(a, b); }
  static __m512i third(__m512i a) {
    return _mm512_mullo_epi32(a, _mm512_set1_epi32(static_cast<std::int32_t>(kThird)));
  }
};

using Transform = void (*)(const ConvolutionCall& call, const Lines& lines, int groups, int limit,
                           const std::uint8_t* input, std::uint8_t* to);

/// V of `Parts` parts of `Tiles` tiles. input: the first part of the first position.
template <int Outputs, int Tiles, int Parts>
void transform(const ConvolutionCall& call, const Lines& lines, int groups, int limit,
               const std::uint8_t* input, std::uint8_t* to) {
  constexpr int kTileBytes = Parts * kPartBytes;
  const std::ptrdiff_t stride = call.input.position_stride;
  const std::ptrdiff_t point_bytes = std::ptrdiff_t{lines.count} * groups * Tiles * kTileBytes;
  for (int line = 0; line < lines.count; ++line) {
    const std::uint8_t* from = input + lines.offsets[line];
    for (int group = 0; group < groups; ++group, from += call.input.group_stride, to += Tiles * kTileBytes) {
      for (int part = 0; part < Parts; ++part) {
        const auto load_input = [&](int i) __attribute__((always_inline)) {
          return loaded_once(load(from + part * kPartBytes + i * stride));
        };
        const auto store_v = [&](int tile, int point, __m512i v) __attribute__((always_inline)) {
          store(to + point * point_bytes + tile * kTileBytes + part * kPartBytes, v);
        };
        if constexpr (Outputs == 2) transform_two<Bytes, Tiles>(limit, load_input, store_v);
        if constexpr (Outputs == 4) transform_four<Bytes, Tiles>(limit, load_input, store_v);
      }
    }
  }
}

/// [tiles - 1]
template <int Outputs>
constexpr Transform kTransform[kTiles] = {transform<Outputs, 1, 2>, transform<Outputs, 2, 1>,
                                          transform<Outputs, 3, 1>, transform<Outputs, 4, 1>};

/// The sums of one point of a block, [register][output channel]; V of a step are `kCount` registers. first:
/// what the sums of each output channel begin with.
template <std::size_t... B>
inline __attribute__((always_inline)) void multiply_registers(std::index_sequence<B...>,
                                                              const std::uint8_t* v,
                                                              const std::uint8_t* weights, int steps,
                                                              const std::int32_t* first, __m512i* sums) {
  constexpr std::size_t kCount = sizeof...(B);
  __m512i sums0[kCount] = {((void)B, _mm512_set1_epi32(first[0]))...};
  __m512i sums1[kCount] = {((void)B, _mm512_set1_epi32(first[1]))...};
  __m512i sums2[kCount] = {((void)B, _mm512_set1_epi32(first[2]))...};
  __m512i sums3[kCount] = {((void)B, _mm512_set1_epi32(first[3]))...};
  const std::uint8_t* const last = weights + steps * kStepBytes;
  for (; weights != last; weights += kStepBytes, v += kCount * kPartBytes) {
    const __m512i weights0 = broadcast_quad(weights);
    const __m512i weights1 = broadcast_quad(weights + kQuad);
    const __m512i weights2 = broadcast_quad(weights + 2 * kQuad);
    const __m512i weights3 = broadcast_quad(weights + 3 * kQuad);
    const auto add = [&](std::size_t b) __attribute__((always_inline)) {
      const __m512i a = load(v + kPartBytes * b);
      sums0[b] = _mm512_dpbusd_epi32(sums0[b], a, weights0);
      sums1[b] = _mm512_dpbusd_epi32(sums1[b], a, weights1);
      sums2[b] = _mm512_dpbusd_epi32(sums2[b], a, weights2);
      sums3[b] = _mm512_dpbusd_epi32(sums3[b], a, weights3);
    };
    (add(B), ...);
  }
  ((sums[kBlockChannels * B] = sums0[B]), ...);
  ((sums[kBlockChannels * B + 1] = sums1[B]), ...);
  ((sums[kBlockChannels * B + 2] = sums2[B]), ...);
  ((sums[kBlockChannels * B + 3] = sums3[B]), ...);
}

using Multiply = void (*)(const std::uint8_t* v, const std::uint8_t* weights, int steps,
                          const std::int32_t* first, __m512i* sums);

template <std::size_t Registers>
void multiply(const std::uint8_t* v, const std::uint8_t* weights, int steps, const std::int32_t* first,
              __m512i* sums) {
  multiply_registers(std::make_index_sequence<Registers>{}, v, weights, steps, first, sums);
}

/// [tiles - 1]
constexpr Multiply kMultiply[kTiles] = {multiply<2>, multiply<2>, multiply<3>, multiply<4>};

/// Sums of a register block, [point][register][output channel].
struct Sums {
  __m512i words[kPoints * kTiles * kBlockChannels];
};

/// A register block that is multiplied, but not all of it requantized.
struct Block {
  const __m512i* sums;
  int registers;
  int parts;  ///< of each tile: register number % parts, from first_part on
  int first_part;
  int first_position;
  int channel;
};

using Write = void (*)(const OutputStage& stage, const DerivedSteps& steps, const ConvolutionCall& call,
                       const Block& block, int number);

/// Two or four times 16 lanes from the sums of a tile's points, [point][point_stride]: 2 y or 8 y.
template <int Outputs>
inline __attribute__((always_inline)) void combine(const __m512i* sums, int point_stride,
                                                   __m512i (&y)[Outputs]) {
  const auto m = [&](int point) __attribute__((always_inline)) {
    return sums[point * point_stride];
  };
  if constexpr (Outputs == 2) {
    y[0] = _mm512_add_epi32(_mm512_add_epi32(m(0), m(1)), m(2));
    y[1] = _mm512_sub_epi32(_mm512_sub_epi32(m(1), m(2)), m(3));
  } else {
    combine_points<Words>(
        m, [&](int output, __m512i words) __attribute__((always_inline)) { y[output] = words; });
  }
}

/// Register `number` of a block: part number % kParts of a tile.
template <int Outputs, Residual residual, bool is_signed_output, bool derives>
void write(const OutputStage& given_stage, const DerivedSteps& given_steps, const ConvolutionCall& given_call,
           const Block& given_block, int number) {
  // Copies: the stores could change the originals, as far as the compiler knows.
  const OutputStage stage = given_stage;
  const DerivedSteps steps = given_steps;
  const ConvolutionCall call = given_call;
  const Block block = given_block;
  const bool planar = stage.format == kPlanar8;
  const int part = block.first_part + number % block.parts;
  const int first = block.first_position + number / block.parts * Outputs;
  const Requantization to(stage, block.channel);
  __m512i y[kBlockChannels][Outputs];
#pragma GCC unroll 4
  for (int k = 0; k < kBlockChannels; ++k) {
    combine<Outputs>(block.sums + kBlockChannels * number + k, block.registers * kBlockChannels, y[k]);
  }
#pragma GCC unroll 4
  for (int place = 0; place < Outputs; ++place) {
    const int position = first + place;
    const __m512i bytes = requantized<residual, is_signed_output>(
        to, residual_of<residual>(call, position, part, block.channel), call.residual.group_stride,
        kBlockChannels, [&](int k) __attribute__((always_inline)) { return y[k][place]; });
    std::uint8_t* const output = planar ? call.output.at(position, block.channel) + kPartLanes * part
                                        : call.output.at(position, block.channel / kQuad) + kPartBytes * part;
    const __m512i quads = store_part(bytes, planar, output, call.output.group_stride,
                                     std::min(kBlockChannels, call.last_channel - block.channel));
    if constexpr (derives) {
      store(call.derived.at(position, block.channel / kQuad) + kPartBytes * part,
            derive(quads, stage, steps));
    }
  }
}

/// nullptr: not by lines.
template <int Outputs>
Write choose_write(const OutputStage& stage) {
  return choose_by_stage<Write>(stage, []<Residual residual, bool is_signed_output, bool derives>() -> Write {
    return write<Outputs, residual, is_signed_output, derives>;
  });
}

/// The registers of a block that are still to be requantized.
struct Waiting {
  Write write = nullptr;
  const OutputStage* stage = nullptr;
  Block block{};
  int next = 0;
};

/// What the calls of both filters share.
struct LineCall {
  const PackedConvolution& packed;
  const ConvolutionCall& call;
  const DerivedSteps& steps;
  const Lines lines;
  OutputStage stages[2];  ///< of the filters, [outputs / 4]: scales of what their sums become
  float scales[2][kFilteredOutputs];
  alignas(64) Sums sums[2];
  int current = 0;
  Waiting waiting;
  alignas(64) std::uint8_t v[kPoints * kLines * kFilteredGroups * kTiles * kPartBytes];

  LineCall(const PackedConvolution& layer, const OutputStage& stage, const ConvolutionCall& given,
           const DerivedSteps& derived_steps, const Lines& of_call)
      : packed(layer), call(given), steps(derived_steps), lines(of_call), stages{stage, stage} {}

  /// What is due when `done` of `all` points of the next block are multiplied.
  void write_some(int done, int all) {
    while (waiting.next * all < waiting.block.registers * done) {
      waiting.write(*waiting.stage, steps, call, waiting.block, waiting.next++);
    }
  }
};

/// Numbers in the program and bytes of the weights that one filter takes.
std::ptrdiff_t program_size(const ConvolutionShape& shape, const LineFilter& filter) {
  return std::ptrdiff_t{kDirections} * kLines * blocks_of(shape) * filter.points * kBlockChannels;
}
std::ptrdiff_t weight_size(const ConvolutionShape& shape, const LineFilter& filter) {
  return program_size(shape, filter) * groups_of(shape) * kQuad;
}

/// `positions` of a call from `first` on, a multiple of the filter's outputs.
template <int Outputs>
void run_lines(LineCall& by_lines, Write write, int first, int positions) {
  constexpr const LineFilter& kFilter = Outputs == 2 ? kTwoOutputs : kFourOutputs;
  constexpr int kBlockNumbers = kFilter.points * kBlockChannels;
  if (positions == 0) return;
  const PackedConvolution& packed = by_lines.packed;
  const ConvolutionShape& shape = packed.shape;
  const ConvolutionCall& call = by_lines.call;
  const Lines& lines = by_lines.lines;
  const int groups = groups_of(shape);
  const int blocks = blocks_of(shape);
  const int steps = lines.count * groups;
  const int limit = activation_limit(packed.activation_bits);

  const std::uint8_t* weights = packed.weights.data() + packed.weights.size() -
                                weight_size(shape, kTwoOutputs) +
                                lines.direction * weight_size(shape, kFilter) / kDirections +
                                std::ptrdiff_t{lines.first} * groups * kStepBytes;
  const std::int32_t* of_lines = packed.program.data() + packed.program.size() -
                                 program_size(shape, kTwoOutputs) +
                                 (lines.direction * kLines + lines.first) * blocks * kBlockNumbers;
  if (Outputs == 4) {
    weights -= weight_size(shape, kFourOutputs);
    of_lines -= program_size(shape, kFourOutputs);
  }
  std::int32_t begin[kFilteredOutputs * kPoints];
  for (int i = 0; i < blocks * kBlockNumbers; ++i) {
    begin[i] = of_lines[i];
    for (int line = 1; line < lines.count; ++line) begin[i] += of_lines[line * blocks * kBlockNumbers + i];
  }
  // Of 2 y or 8 y: powers of two round nothing.
  OutputStage& stage = by_lines.stages[Outputs / 4];
  float* const scale = by_lines.scales[Outputs / 4];
  for (int o = 0; o < blocks * kBlockChannels; ++o) {
    scale[o] = stage.scale[o] * (1.0F / static_cast<float>(kFilter.times));
  }
  stage.scale = scale;

  Waiting& waiting = by_lines.waiting;
  for (int left = positions / Outputs; left > 0;) {
    const int tiles = left / ((left + kTiles - 1) / kTiles);
    const int parts = tiles == 1 ? kParts : 1;
    const int registers = tiles * parts;
    const std::ptrdiff_t point_bytes = std::ptrdiff_t{steps} * registers * kPartBytes;
    for (int part = 0; part < kParts; part += parts) {
      kTransform<Outputs>[tiles - 1](call, lines, groups, limit, call.input.at(first, 0) + part * kPartBytes,
                                     by_lines.v);
      for (int channel = call.first_channel; channel < call.last_channel; channel += kBlockChannels) {
        const int block = channel / kBlockChannels;
        __m512i* const sums = by_lines.sums[by_lines.current].words;
        for (int point = 0; point < kFilter.points; ++point) {
          by_lines.write_some(point + 1, kFilter.points);
          kMultiply[tiles - 1](
              by_lines.v + point * point_bytes,
              weights + (std::ptrdiff_t{block} * kFilter.points + point) * kLines * groups * kStepBytes,
              steps, begin + block * kBlockNumbers + point * kBlockChannels,
              sums + point * registers * kBlockChannels);
        }
        waiting = {write, &stage, {sums, registers, parts, part, first, channel}, 0};
        by_lines.current ^= 1;
      }
    }
    first += Outputs * tiles;
    left -= tiles;
  }
}

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const bool has_lines = packed.program.size() > 1 && call.positions > 1;
  const Lines lines = has_lines ? lines_of(call) : Lines{};
  if (lines.count == 0) return run_quads(packed, stage, call);
  const DerivedSteps steps(stage);
  const Write write_four = choose_write<4>(stage);
  if (write_four == nullptr || !stays_convertible(stage, call, static_cast<float>(packed.program[0]))) {
    return run_quads(packed, stage, call);
  }
  LineCall by_lines(packed, stage, call, steps, lines);
  const int in_fours = call.positions / 4 * 4;
  const int in_twos = (call.positions - in_fours) / 2 * 2;
  run_lines<4>(by_lines, write_four, 0, in_fours);
  run_lines<2>(by_lines, choose_write<2>(stage), in_fours, in_twos);
  by_lines.write_some(1, 1);
  const int rest = call.positions - in_fours - in_twos;
  if (rest > 0) run_quads(packed, stage, part_of(call, call.positions - rest, rest));
}

constexpr ConvolutionKernel row(std::string_view name, int weight_bits, int activation_bits) {
  return {name,         InstructionSet::avx512_vnni,
          weight_bits,  activation_bits,
          kKernelLanes, kTileChannels,
          kQuads8,      supports_quads,
          pack,         run,
          kQuads8,      nullptr,
          true};
}

constexpr std::array kRows = {
    row("int4_vnni", 4, 4),
    row("int4a2_vnni", 4, 2),
    row("int2a4_vnni", 2, 4),
};

}  // namespace

std::span<const ConvolutionKernel> int4_avx512_vnni_kernels() {
  return kRows;
}

}  // namespace nibble
