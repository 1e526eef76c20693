// All widths up to 8 bits, AVX-512 VNNI: vpdpbusd adds four products in s32, exactly, so nothing has to be
// proved but that a whole sum fits.
//
//   activations (quads8), 16 lanes:  L0: a0 a1 a2 a3 | L1: a0 a1 a2 a3 | ...      u8
//   weights of four input channels:  w0 w1 w2 w3, one vpbroadcastd                s8
//   sums, 16 lanes:                  L0 | L1 | ...                                s32
//
// Blocks of 3 positions x 32 lanes x 4 output channels: 24 sums and 4 weights of the 32 registers. While a
// block is multiplied, the block before it is requantized, a register of bytes before every sixth of the
// steps: what converts, adds and packs waits for other pipes than what multiplies. A lone position takes two
// blocks of output channels at once: 8 sums alone would wait for each other.
//
//   weights:  s8 [block of 4 output channels][tap][group of 4 input channels][4][4]
//   program:  the largest magnitude of a sum

#include "kernels/int8_avx512_vnni.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "kernels/kernels.h"
#include "kernels/quads_avx512_vnni.h"
#include "kernels/steps.h"
#include "kernels/thresholds.h"

namespace nibble {
namespace {

constexpr int kPositions = 3;

int groups_of(const ConvolutionShape& shape) {
  return group_count(kQuads8, shape.input_channels);
}

/// A step is one channel group of one tap: bytes from an output position's input address to its activations,
/// and from the block's weights to its own.
struct Step {
  std::ptrdiff_t input;
  std::ptrdiff_t weights;
};

struct QuadSteps {
  int count = 0;
  Step steps[kMaximumSteps];

  QuadSteps(const ConvolutionCall& call, int groups) {
    for (const Tap& tap : call.taps) {
      std::ptrdiff_t weights = std::ptrdiff_t{tap.index} * groups * kStepBytes;
      for (int g = 0; g < groups; ++g, weights += kStepBytes) {
        steps[count++] = {tap.offset + g * call.input.group_stride, weights};
      }
    }
  }
};

/// What a register block holds: 1, 2 or 3 positions of four output channels, or one position of eight. Units
/// are positions or, then, fours of channels.
enum class Form { one, two, three, eight_channels };
inline constexpr int kForms = 4;

constexpr int units_of(Form form) {
  return form == Form::one ? 1 : form == Form::three ? 3 : 2;
}

/// Sums of a register block: [unit][part][output channel].
struct Sums {
  __m512i words[kBlockChannels * kPositions * kParts];
};

/// What a register block is computed from.
struct Operands {
  const std::uint8_t* input;  ///< of its first position
  std::ptrdiff_t stride;      ///< to the next position
  const QuadSteps* steps;
  const std::uint8_t* weights;
  std::ptrdiff_t block_bytes;  ///< to the weights of the next four channels
};

/// B: units * kParts registers; register b is part b % kParts of unit b / kParts. write(i), for i below
/// `writes`, is called between the steps, `sums` being as they were.
template <Form form, typename Write, std::size_t... B>
inline __attribute__((always_inline)) void accumulate_block(std::index_sequence<B...>,
                                                            const Operands& operands, Sums& sums, int writes,
                                                            const Write& write) {
  constexpr std::size_t kCount = sizeof...(B);
  constexpr bool kEight = form == Form::eight_channels;
  const auto [input, stride, of_call, weights, block_bytes] = operands;  // copies, for the stores' sake
  const QuadSteps& steps = *of_call;
  const std::uint8_t* const position[kPositions] = {input, kEight ? input : input + stride,
                                                    input + 2 * stride};
  const __m512i zero = _mm512_setzero_si512();
  __m512i sums0[kCount] = {((void)B, zero)...};
  __m512i sums1[kCount] = {((void)B, zero)...};
  __m512i sums2[kCount] = {((void)B, zero)...};
  __m512i sums3[kCount] = {((void)B, zero)...};
  const Step* step = steps.steps;
  const Step* const last = step + steps.count;
  const int stretch = steps.count / writes;
  for (int i = 0; i < writes; ++i) {
    write(i);
    for (const Step* const end = i + 1 < writes ? step + stretch : last; step != end; ++step) {
      const std::uint8_t* quads = weights + step->weights;
      __m512i weights0 = broadcast_quad(quads);
      __m512i weights1 = broadcast_quad(quads + kQuad);
      __m512i weights2 = broadcast_quad(quads + 2 * kQuad);
      __m512i weights3 = broadcast_quad(quads + 3 * kQuad);
      const auto add = [&](std::size_t b) __attribute__((always_inline)) {
        if (kEight && b == kParts) {
          quads += block_bytes;
          weights0 = broadcast_quad(quads);
          weights1 = broadcast_quad(quads + kQuad);
          weights2 = broadcast_quad(quads + 2 * kQuad);
          weights3 = broadcast_quad(quads + 3 * kQuad);
        }
        const __m512i a = load(position[b / kParts] + step->input + kPartBytes * (b % kParts));
        sums0[b] = _mm512_dpbusd_epi32(sums0[b], a, weights0);
        sums1[b] = _mm512_dpbusd_epi32(sums1[b], a, weights1);
        sums2[b] = _mm512_dpbusd_epi32(sums2[b], a, weights2);
        sums3[b] = _mm512_dpbusd_epi32(sums3[b], a, weights3);
      };
      (add(B), ...);
    }
  }
  ((sums.words[kBlockChannels * B] = sums0[B]), ...);
  ((sums.words[kBlockChannels * B + 1] = sums1[B]), ...);
  ((sums.words[kBlockChannels * B + 2] = sums2[B]), ...);
  ((sums.words[kBlockChannels * B + 3] = sums3[B]), ...);
}

using Accumulate = void (*)(const Operands& operands, Sums& sums);

template <Form form>
void accumulate(const Operands& operands, Sums& sums) {
  accumulate_block<form>(std::make_index_sequence<units_of(form) * kParts>{}, operands, sums, 1, [](int) {});
}

constexpr Accumulate kAccumulate[kForms] = {accumulate<Form::one>, accumulate<Form::two>,
                                            accumulate<Form::three>, accumulate<Form::eight_channels>};

/// Finished sums of some positions of four channels; of a register block of eight, its first or second unit.
struct Block {
  const __m512i* sums;
  int positions;
  int first_position;
  int channel;

  __m512i sum(int k, int p, int part) const { return sums[(p * kParts + part) * kBlockChannels + k]; }
  /// Of a register block of eight channels that begins with this one.
  Block second_unit() const {
    return {sums + kParts * kBlockChannels, positions, first_position, channel + kBlockChannels};
  }
};

/// Where a format's bytes go: at once (planar8, quads8), or through a tile (groups of 2 or 3 channels).
bool is_direct(const ActivationFormat& format) {
  return format == kPlanar8 || format == kQuads8;
}

/// bytes: [part] what requantized() gives.
inline void store_parts(const OutputView& view, const ActivationFormat& format, ByteTile& tile,
                        const Block& block, int p, int channels, const __m512i (&bytes)[kParts]) {
  const int position = block.first_position + p;
  if (format == kQuads8) {
    for (int part = 0; part < kParts; ++part) {
      store(view.at(position, block.channel / kQuad) + kPartBytes * part, to_quads(bytes[part]));
    }
    return;
  }
  // All 32 lanes of channels 0 and 1, then of 2 and 3.
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i planes01 = _mm512_permutex2var_epi32(bytes[0], first, bytes[1]);
  const __m512i planes23 =
      _mm512_permutex2var_epi32(bytes[0], _mm512_add_epi32(first, _mm512_set1_epi32(2)), bytes[1]);
  const __m256i lanes[kQuad] = {_mm512_castsi512_si256(planes01), _mm512_extracti64x4_epi64(planes01, 1),
                                _mm512_castsi512_si256(planes23), _mm512_extracti64x4_epi64(planes23, 1)};
  for (int k = 0; k < channels; ++k) {
    std::uint8_t* to = format == kPlanar8 ? view.at(position, block.channel + k)
                                          : tile.bytes[block.channel % kTileChannels + k][p];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), lanes[k]);
  }
}

using Output = void (*)(const OutputStage& stage, const DerivedSteps& steps, const ConvolutionCall& call,
                        const Block& block, ByteTile& tile, ByteTile& derived_tile);

/// Requantizes a block; formats that are not direct go to the tiles. Channels that do not exist have zero
/// weights, scales and offsets, so they become zero.
template <Residual residual, bool is_signed_output>
void output_block(const OutputStage& given_stage, const DerivedSteps& given_steps,
                  const ConvolutionCall& given_call, const Block& given_block, ByteTile& tile,
                  ByteTile& derived_tile) {
  // Copies: the stores could change the originals, as far as the compiler knows.
  const OutputStage stage = given_stage;
  const DerivedSteps steps = given_steps;
  const ConvolutionCall call = given_call;
  const Block block = given_block;
  const int channels = std::min(kBlockChannels, call.last_channel - block.channel);
  const Requantization to(stage, block.channel);
  for (int p = 0; p < block.positions; ++p) {
    __m512i bytes[kParts];
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      bytes[part] = requantized<residual, is_signed_output>(
          to, residual_of<residual>(call, block.first_position + p, part, block.channel),
          call.residual.group_stride,
          channels, [&](int k) __attribute__((always_inline)) { return block.sum(k, p, part); });
    }
    store_parts(call.output, stage.format, tile, block, p, channels, bytes);
    if (stage.derived_bits != 0) {
      const __m512i derived[kParts] = {derive(bytes[0], stage, steps), derive(bytes[1], stage, steps)};
      store_parts(call.derived, stage.derived_format, derived_tile, block, p, channels, derived);
    }
  }
}

/// nullptr: output_plainly.
Output choose_output(const OutputStage& stage, const ConvolutionCall& call, std::int32_t largest_sum) {
  const bool residual_direct = !stage.has_residual() || is_direct(stage.residual_format);
  if (!residual_direct || !is_common(stage, stage.residual_format)) return nullptr;
  if (!stays_convertible(stage, call, static_cast<float>(largest_sum))) return nullptr;
  if (!stage.has_residual()) {
    return stage.range.lowest < 0 ? output_block<Residual::none, true> : output_block<Residual::none, false>;
  }
  if (stage.range.lowest < 0) return nullptr;
  if (stage.residual_format == kQuads8) {
    return stage.residual_signed ? output_block<Residual::signed_quads, false>
                                 : output_block<Residual::unsigned_quads, false>;
  }
  return stage.residual_signed ? output_block<Residual::signed_planar, false>
                               : output_block<Residual::unsigned_planar, false>;
}

/// A register block whose sums are still to be requantized.
struct Waiting {
  const OutputStage& stage;
  const DerivedSteps& steps;
  const ConvolutionCall& call;
  Form form;
  Block block;  ///< of eight channels the first four
};

/// Multiplies a block, and requantizes the one before it; `sums` are first its sums, then the new ones.
using AccumulateBehind = void (*)(const Operands& operands, Sums& sums, const Waiting& waiting);

/// Output and residual are quads8, and what is derived. Both blocks are of eight channels, or none.
template <Form form, Residual residual, bool is_signed_output, bool derives>
void accumulate_behind(const Operands& operands, Sums& sums, const Waiting& waiting) {
  constexpr bool kEight = form == Form::eight_channels;
  const ConvolutionCall call = waiting.call;
  const Block block = waiting.block;
  const Requantization to(waiting.stage, block.channel);
  const auto write = [&](int i) __attribute__((always_inline)) {
    const int unit = i / kParts;
    const int part = i % kParts;
    const int position = kEight ? block.first_position : block.first_position + unit;
    const int channel = kEight ? block.channel + kBlockChannels * unit : block.channel;
    const __m512i bytes = requantized<residual, is_signed_output>(
        kEight ? to.behind(kBlockChannels * unit) : to, residual_of<residual>(call, position, part, channel),
        call.residual.group_stride,
        kBlockChannels, [&](int k) __attribute__((always_inline)) { return block.sum(k, unit, part); });
    const int group = channel / kQuad;
    const __m512i quads = to_quads(bytes);
    store(call.output.at(position, group) + kPartBytes * part, quads);
    if constexpr (derives) {
      store(call.derived.at(position, group) + kPartBytes * part, derive(quads, waiting.steps));
    }
  };
  accumulate_block<form>(std::make_index_sequence<units_of(form) * kParts>{}, operands, sums,
                         units_of(waiting.form) * kParts, write);
}

/// Of eight channels with one code for signed and unsigned residuals.
template <Residual residual, bool is_signed_output, bool derives>
constexpr AccumulateBehind kAccumulateBehind[kForms] = {
    accumulate_behind<Form::one, residual, is_signed_output, derives>,
    accumulate_behind<Form::two, residual, is_signed_output, derives>,
    accumulate_behind<Form::three, residual, is_signed_output, derives>,
    accumulate_behind<Form::eight_channels, residual == Residual::none ? residual : Residual::any_quads,
                      is_signed_output, derives>};

/// By form, of a layer for which there is an Output; nullptr: each block is requantized at once.
const AccumulateBehind* choose_behind(const OutputStage& stage, const DerivedSteps& steps) {
  const bool derives = stage.derived_bits != 0;
  if (stage.format != kQuads8 || (stage.has_residual() && stage.residual_format != kQuads8)) return nullptr;
  if (derives && (stage.derived_format != kQuads8 || !steps.usable)) return nullptr;
  if (stage.range.lowest < 0) {
    return derives ? nullptr : kAccumulateBehind<Residual::none, true, false>;
  }
  if (!stage.has_residual()) {
    return derives ? kAccumulateBehind<Residual::none, false, true>
                   : kAccumulateBehind<Residual::none, false, false>;
  }
  if (stage.residual_signed) {
    return derives ? kAccumulateBehind<Residual::signed_quads, false, true>
                   : kAccumulateBehind<Residual::signed_quads, false, false>;
  }
  return derives ? kAccumulateBehind<Residual::unsigned_quads, false, true>
                 : kAccumulateBehind<Residual::unsigned_quads, false, false>;
}

/// Every other combination of formats, value by value.
void output_plainly(const OutputStage& stage, const ConvolutionCall& call, const Block& block) {
  const int channels = std::min(kBlockChannels, call.last_channel - block.channel);
  for (int p = 0; p < block.positions; ++p) {
    alignas(64) std::int32_t sums[kBlockChannels][kLanes];
    for (int k = 0; k < kBlockChannels; ++k) {
      for (int part = 0; part < kParts; ++part) {
        _mm512_storeu_si512(sums[k] + part * kPartLanes, block.sum(k, p, part));
      }
    }
    write_plainly(stage, call, block.first_position + p, block.channel, channels, sums, kKernelLanes);
  }
}

}  // namespace

bool supports_quads(const ConvolutionLayer& layer) {
  const int steps = layer.shape.kernel * layer.shape.kernel * groups_of(layer.shape);
  // 255 * 128 * 4 * 1024 fits s32.
  return steps <= kMaximumSteps && weight_limit(layer.weight_bits) <= 127;
}

[[gnu::cold]] PackedConvolution pack_quads(const ConvolutionLayer& layer) {
  const int taps = layer.shape.kernel * layer.shape.kernel;
  PackedConvolution packed{layer.shape, layer.activation_bits, {}, {largest_sum(layer)}};
  for (int block = 0; block < layer.shape.output_channels; block += kBlockChannels) {
    for (int tap = 0; tap < taps; ++tap) {
      for (int group = 0; group < groups_of(layer.shape); ++group) {
        for (int o = block; o < block + kBlockChannels; ++o) {
          for (int i = kQuad * group; i < kQuad * (group + 1); ++i) {
            packed.weights.push_back(static_cast<std::uint8_t>(weight_of(layer, o, tap, i)));
          }
        }
      }
    }
  }
  return packed;
}

void run_quads(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const int groups = groups_of(packed.shape);
  const std::ptrdiff_t block_bytes =
      std::ptrdiff_t{packed.shape.kernel} * packed.shape.kernel * groups * kStepBytes;
  const QuadSteps steps(call, groups);
  const Output output = choose_output(stage, call, packed.program[0]);
  const DerivedSteps derived_steps(stage);
  const AccumulateBehind* const behind = output == nullptr ? nullptr : choose_behind(stage, derived_steps);
  alignas(64) Sums sums;
  ByteTile tile;
  ByteTile derived_tile;
  const auto write = [&](Form form, const Block& block) {
    const auto write_block = [&](const Block& some) {
      if (output != nullptr) return output(stage, derived_steps, call, some, tile, derived_tile);
      output_plainly(stage, call, some);
    };
    write_block(block);
    if (form == Form::eight_channels) write_block(block.second_unit());
  };
  Waiting waiting{stage, derived_steps, call, Form::one, {sums.words, 0, 0, 0}};
  const bool uses_tile = output != nullptr && !is_direct(stage.format);
  const bool uses_derived_tile =
      output != nullptr && stage.derived_bits != 0 && !is_direct(stage.derived_format);
  const int most_channels =
      uses_tile || uses_derived_tile ? kTileChannels : call.last_channel - call.first_channel;
  for (int first = 0, left = call.positions; left > 0;) {
    const int positions = left / ((left + kPositions - 1) / kPositions);
    for (int chunk = call.first_channel; chunk < call.last_channel; chunk += most_channels) {
      const int channels = std::min(most_channels, call.last_channel - chunk);
      for (int channel = chunk; channel < chunk + channels;) {
        const bool eight = positions == 1 && channel + kBlockChannels < chunk + channels;
        const Form form = eight ? Form::eight_channels : static_cast<Form>(positions - 1);
        const Operands operands{call.input.at(first, 0), call.input.position_stride, &steps,
                                packed.weights.data() + channel / kBlockChannels * block_bytes, block_bytes};
        if (waiting.block.positions != 0 && eight != (waiting.form == Form::eight_channels)) {
          write(waiting.form, waiting.block);
          waiting.block.positions = 0;
        }
        if (waiting.block.positions != 0) {
          behind[static_cast<int>(form)](operands, sums, waiting);
        } else {
          kAccumulate[static_cast<int>(form)](operands, sums);
        }
        const Block block{sums.words, positions, first, channel};
        if (behind != nullptr) {
          waiting.form = form;
          waiting.block = block;
        } else {
          write(form, block);
        }
        channel += eight ? 2 * kBlockChannels : kBlockChannels;
      }
      if (uses_tile) {
        store_tile(call.output, stage.format, first, positions, chunk, channels, tile, kKernelLanes);
      }
      if (uses_derived_tile) {
        store_tile(call.derived, stage.derived_format, first, positions, chunk, channels, derived_tile,
                   kKernelLanes);
      }
    }
    first += positions;
    left -= positions;
  }
  if (waiting.block.positions != 0) write(waiting.form, waiting.block);
}

namespace {

constexpr ConvolutionKernel row(std::string_view name, int weight_bits, int activation_bits) {
  return {name,         InstructionSet::avx512_vnni,
          weight_bits,  activation_bits,
          kKernelLanes, kTileChannels,
          kQuads8,      supports_quads,
          pack_quads,   run_quads,
          kQuads8};
}

constexpr std::array kRows = {
    row("int8_vnni", 8, 8),   row("int8a4_vnni", 8, 4), row("int8a2_vnni", 8, 2),
    row("int4a8_vnni", 4, 8), row("int2a8_vnni", 2, 8),
};

}  // namespace

std::span<const ConvolutionKernel> int8_avx512_vnni_kernels() {
  return kRows;
}

}  // namespace nibble
