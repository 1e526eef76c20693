// 16-bit weights, u15 (or u8) activations, AVX2: vpmaddwd and vpaddd for 16 products.
//
//   activations (pairs16), 8 lanes:  L0: a0 a1 | L1: a0 a1 | ...              s16, never negative
//   weights of two input channels:   w0 w1, one vpbroadcastd                  s16
//   run of steps, 8 sums:            a0 w0 + a1 w1 + ... of L0, L1, ...       s32, proved
//
// Register blocks are those of kernels/blocks_avx2.h. A whole sum does not fit s32. With r the runs' sums, S
// = sum of r modulo 2^32 and H = sum of (r >> 16), the exact sum is 65536 * H + R, where R = S - 65536 * H
// adds 16 bits a run. With at most 256 runs both H and R are below 2^24 in magnitude: exact in float32, and
// one fused multiply-add rounds their sum once. With more, H takes what R has above 16 bits; of 512 steps of
// 65534 * 32767 it still is below 2^24.
//
//   weights:  s16 [pair of output channels][tap][group of 2 input channels][2][2]
//   program:  run length

#include <immintrin.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "kernels/blocks_avx2.h"
#include "kernels/kernels.h"

namespace nibble {
namespace {

constexpr int kLanes = 16;
constexpr int kExactRuns = 256;  ///< without a carry from R to H
constexpr int kMostSteps = 512;

int groups_of(const ConvolutionShape& shape) {
  return group_count(kPairs16, shape.input_channels);
}
int padded_channels_of(const ConvolutionShape& shape) {
  return (shape.output_channels + kPair - 1) / kPair * kPair;
}

/// Zero for channels that do not exist.
std::int16_t weight_of(const ConvolutionLayer& layer, int output_channel, int tap, int channel) {
  if (output_channel >= layer.shape.output_channels || channel >= layer.shape.input_channels) return 0;
  return layer.weights[static_cast<std::size_t>(output_channel) * layer.shape.filter_size() +
                       static_cast<std::size_t>(tap * layer.shape.input_channels + channel)];
}

/// The largest number of steps with which no sum of any output channel leaves s32, wherever a run begins; at
/// least 1 where there are not too many steps.
int proven_run_length(const ConvolutionLayer& layer) {
  const int groups = groups_of(layer.shape);
  const int steps = layer.shape.kernel * layer.shape.kernel * groups;
  if (steps > kMostSteps) return 0;
  const int limit = INT32_MAX / activation_limit(layer.activation_bits);  // of the weights of one sign
  std::vector<int> negative(static_cast<std::size_t>(steps));
  std::vector<int> positive(static_cast<std::size_t>(steps));
  int proven = steps;
  for (int o = 0; o < layer.shape.output_channels; ++o) {
    for (int step = 0; step < steps; ++step) {
      int& lowest = negative[static_cast<std::size_t>(step)] = 0;
      int& highest = positive[static_cast<std::size_t>(step)] = 0;
      for (int i = 0; i < 2; ++i) {
        const int weight = weight_of(layer, o, step / groups, 2 * (step % groups) + i);
        (weight < 0 ? lowest : highest) += std::abs(weight);
      }
    }
    proven = std::min({proven, longest_run(negative, limit), longest_run(positive, limit)});
  }
  return proven;
}

bool supports(const ConvolutionLayer& layer) {
  return steps_fit(layer.shape, groups_of(layer.shape), proven_run_length(layer), kMostSteps + 1);
}

PackedConvolution pack(const ConvolutionLayer& layer) {
  const int taps = layer.shape.kernel * layer.shape.kernel;
  const int groups = groups_of(layer.shape);
  PackedConvolution packed{layer.shape, layer.activation_bits, {}, {proven_run_length(layer)}};
  packed.weights.resize(static_cast<std::size_t>(padded_channels_of(layer.shape) / kPair * taps * groups) *
                        kStepBytes);
  std::uint8_t* to = packed.weights.data();
  for (int pair = 0; pair < padded_channels_of(layer.shape); pair += kPair) {
    for (int tap = 0; tap < taps; ++tap) {
      for (int channel = 0; channel < 2 * groups; channel += 2) {
        for (int o = pair; o < pair + kPair; ++o) {
          const std::int16_t weights[2] = {weight_of(layer, o, tap, channel),
                                           weight_of(layer, o, tap, channel + 1)};
          std::memcpy(to, weights, sizeof weights);
          to += sizeof weights;
        }
      }
    }
  }
  return packed;
}

/// In place and in this order: the compiler would rather multiply first and add later, for which there are
/// not enough registers.
struct PairProducts {
  static __m256i loaded(__m256i activations) {
    asm volatile("" : "+x"(activations));
    return activations;
  }
  static __m256i multiply(__m256i activations, __m256i weights) {
    return _mm256_madd_epi16(activations, weights);
  }
  static void add_to(__m256i& sum, __m256i product) {
    asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
  }
};

/// Sums of one register block: [output channel of the pair][position][part].
struct WideSums {
  __m256i low[kPair * kPositions * kParts];   ///< S
  __m256i high[kPair * kPositions * kParts];  ///< H

  __m256i rest(int i) const { return _mm256_sub_epi32(low[i], _mm256_slli_epi32(high[i], 16)); }  ///< R
  void carry(int registers) {
    for (int i = 0; i < registers; ++i) high[i] = _mm256_add_epi32(high[i], _mm256_srli_epi32(rest(i), 16));
  }
  /// float32 of the exact sums of register i.
  __m256 rounded(int i) const {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(high[i]), _mm256_set1_ps(65536.0F),
                           _mm256_cvtepi32_ps(rest(i)));
  }
};

using Accumulate = void (*)(const std::uint8_t* input, std::ptrdiff_t stride, const Steps& steps,
                            const std::uint8_t* weights, WideSums& sums);

template <std::size_t Positions>
void accumulate(const std::uint8_t* input, std::ptrdiff_t stride, const Steps& steps,
                const std::uint8_t* weights, WideSums& sums) {
  accumulate_block<PairProducts>(
      std::make_index_sequence<Positions * kParts>{}, input, stride, steps,
      weights, [&](int run, std::size_t i, __m256i sum) __attribute__((always_inline)) {
        const __m256i upper = _mm256_srai_epi32(sum, 16);
        if (run == 0) {
          sums.low[i] = sum;
          sums.high[i] = upper;
        } else {
          sums.low[i] = _mm256_add_epi32(sums.low[i], sum);
          sums.high[i] = _mm256_add_epi32(sums.high[i], upper);
        }
      });
  if (steps.count() > kExactRuns) sums.carry(kPair * static_cast<int>(Positions) * kParts);
}

constexpr Accumulate kAccumulate[kPositions] = {accumulate<1>, accumulate<2>, accumulate<3>};

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

/// One position of a block of `positions`, lanes 0 .. 15.
void write_outputs(const OutputStage& stage, const ConvolutionCall& call, std::ptrdiff_t position,
                   int channel, const WideSums& sums, int positions, int place) {
  const __m256 lowest = _mm256_set1_ps(static_cast<float>(stage.range.lowest));
  const __m256 highest = _mm256_set1_ps(static_cast<float>(stage.range.highest));
  const int channels = call.last_channel - channel < kPair ? call.last_channel - channel : kPair;
  __m256i q[kPair][kParts] = {};
  for (int o = 0; o < channels; ++o) {
    const __m256 scale = _mm256_broadcast_ss(stage.scale + channel + o);
    const __m256 offset = _mm256_broadcast_ss(stage.offset + channel + o);
    for (int part = 0; part < kParts; ++part) {
      __m256 y = _mm256_mul_ps(sums.rounded((o * positions + place) * kParts + part), scale);
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

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const int groups = groups_of(packed.shape);
  const std::ptrdiff_t pair_bytes =
      std::ptrdiff_t{packed.shape.kernel} * packed.shape.kernel * groups * kStepBytes;
  const Steps steps(call, groups, packed.program[0]);
  WideSums sums;
  for (int first = 0, left = call.positions; left > 0;) {
    const int positions = left / ((left + kPositions - 1) / kPositions);
    for (int channel = call.first_channel; channel < call.last_channel; channel += kPair) {
      kAccumulate[positions - 1](call.input.at(first, 0), call.input.position_stride, steps,
                                 packed.weights.data() + channel / kPair * pair_bytes, sums);
      for (int place = 0; place < positions; ++place) {
        write_outputs(stage, call, first + place, channel, sums, positions, place);
      }
    }
    first += positions;
    left -= positions;
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
