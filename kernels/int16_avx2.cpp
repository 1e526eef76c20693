// 16-bit weights, u15 (or u8) activations, AVX2: vpmaddwd and vpaddd for 16 products.
//
//   activations (pairs16), 8 lanes:  L0: a0 a1 | L1: a0 a1 | ...              s16, never negative
//   weights of two input channels:   w0 w1, one vpbroadcastd                  s16
//   run of steps, 8 sums:            a0 w0 + a1 w1 + ... of L0, L1, ...       s32, proved
//
// Register blocks are those of kernels/blocks_avx2.h. Each pair of output channels has runs of its own, as
// long as its weights allow: half as many as if one length were proved for all. Where taps are missing, what
// is left of a run is still proved, since all products of one sign together fit.
//
// A whole sum does not fit s32. With r the runs' sums, S = sum of r modulo 2^32 and H = sum of (r >> 16), the
// exact sum is 65536 * H + R, where R = S - 65536 * H adds 16 bits a run. With at most 256 runs both H and R
// are below 2^24 in magnitude: exact in float32, and one fused multiply-add rounds their sum once. With more,
// H takes what R has above 16 bits; of 512 steps of 65534 * 32767 it still is below 2^24.
//
//   weights:  s16 [pair of output channels][tap][group of 2 input channels][2][2]
//   program:  [pair of output channels, and one more] places of their runs;
//             then the runs' ends: how many steps [tap][group] lie before

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

bool supports(const ConvolutionLayer& layer) {
  return layer.shape.kernel * layer.shape.kernel * groups_of(layer.shape) <= kMostSteps;
}

/// Appends the ends of the longest runs with which no sum of a pair of output channels leaves s32, nor any
/// part of one. A single step never does: 2 * 32767 * 32767.
void append_runs(const ConvolutionLayer& layer, int pair, std::vector<std::int32_t>& ends) {
  const int groups = groups_of(layer.shape);
  const int steps = layer.shape.kernel * layer.shape.kernel * groups;
  const int limit = INT32_MAX / activation_limit(layer.activation_bits);  // of the weights of one sign
  int sums[kPair][2] = {};                                                // [channel][sign]
  for (int step = 0; step < steps; ++step) {
    int of_step[kPair][2] = {};
    bool fits = true;
    for (int o = 0; o < kPair; ++o) {
      for (int i = 0; i < 2; ++i) {
        const int weight = weight_of(layer, pair + o, step / groups, 2 * (step % groups) + i);
        of_step[o][weight < 0 ? 0 : 1] += std::abs(weight);
      }
      fits = fits && sums[o][0] + of_step[o][0] <= limit && sums[o][1] + of_step[o][1] <= limit;
    }
    if (!fits) {
      ends.push_back(step);
      std::memset(sums, 0, sizeof sums);
    }
    for (int o = 0; o < kPair; ++o) {
      for (int sign = 0; sign < 2; ++sign) sums[o][sign] += of_step[o][sign];
    }
  }
  ends.push_back(steps);
}

[[gnu::cold, gnu::flatten]] PackedConvolution pack(const ConvolutionLayer& layer) {
  const int taps = layer.shape.kernel * layer.shape.kernel;
  const int groups = groups_of(layer.shape);
  PackedConvolution packed{layer.shape, layer.activation_bits, {}, {}};
  packed.weights.resize(static_cast<std::size_t>(padded_channels_of(layer.shape) / kPair * taps * groups) *
                        kStepBytes);
  const int pairs = padded_channels_of(layer.shape) / kPair;
  packed.program.resize(static_cast<std::size_t>(pairs + 1));
  for (int pair = 0; pair < pairs; ++pair) {
    packed.program[static_cast<std::size_t>(pair)] = static_cast<std::int32_t>(packed.program.size());
    append_runs(layer, pair * kPair, packed.program);
  }
  packed.program[static_cast<std::size_t>(pairs)] = static_cast<std::int32_t>(packed.program.size());
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

/// The runs of one pair of output channels in one call.
struct Runs {
  const std::ptrdiff_t* offsets;       ///< bytes from an output position's input address to each step's
  std::span<const std::int32_t> ends;  ///< ascending, of steps of the call
  const std::uint8_t* weights;         ///< of the call's steps
};

/// The steps of a call in canonical order.
class CallSteps {
 public:
  CallSteps(const PackedConvolution& packed, const ConvolutionCall& call)
      : packed_(packed),
        groups_(groups_of(packed.shape)),
        taps_(packed.shape.kernel * packed.shape.kernel),
        whole_(static_cast<int>(call.taps.size()) == taps_) {
    const Tap* present[kMostSteps] = {};
    for (const Tap& tap : call.taps) present[tap.index] = &tap;
    for (int tap = 0; tap < taps_; ++tap) {
      before_[tap] = count_;
      if (present[tap] == nullptr) continue;
      for (int g = 0; g < groups_; ++g)
        offsets_[count_++] = present[tap]->offset + g * call.input.group_stride;
    }
    before_[taps_] = count_;
  }

  bool whole() const { return whole_; }  ///< no tap is missing

  /// As they were packed.
  Runs whole_runs(int pair) const {
    const std::int32_t* program = packed_.program.data();
    return {offsets_, {program + program[pair], program + program[pair + 1]}, weights_of(pair)};
  }

  /// What the call's taps leave of them, copied until the next.
  Runs remaining_runs(int pair) {
    std::uint8_t* to = weights_;
    const std::ptrdiff_t tap_bytes = std::ptrdiff_t{groups_} * kStepBytes;
    for (int tap = 0; tap < taps_; ++tap) {
      const std::ptrdiff_t bytes = std::ptrdiff_t{before_[tap + 1] - before_[tap]} * kStepBytes;
      std::memcpy(to, weights_of(pair) + tap * tap_bytes, static_cast<std::size_t>(bytes));
      to += bytes;
    }
    std::size_t runs = 0;
    int tap = 0;
    for (const std::int32_t end : whole_runs(pair).ends) {
      while ((tap + 1) * groups_ <= end) ++tap;
      const bool within = tap < taps_ && before_[tap + 1] != before_[tap];
      const int left = before_[tap] + (within ? end - tap * groups_ : 0);
      if (left > (runs == 0 ? 0 : ends_[runs - 1])) ends_[runs++] = left;
    }
    return {offsets_, {ends_, runs}, weights_};
  }

 private:
  const std::uint8_t* weights_of(int pair) const {
    return packed_.weights.data() + std::ptrdiff_t{pair} * taps_ * groups_ * kStepBytes;
  }

  const PackedConvolution& packed_;
  int groups_;
  int taps_;
  bool whole_;
  int count_ = 0;
  int before_[kMostSteps + 1];  ///< steps of the call before a tap
  std::ptrdiff_t offsets_[kMostSteps];
  std::int32_t ends_[kMostSteps];
  std::uint8_t weights_[kMostSteps * kStepBytes];
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

/// In place and in this order: the compiler would rather multiply first and add later, for which there are
/// not enough registers.
inline void add_in_place(__m256i& sum, __m256i product) {
  asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
}

template <std::size_t... B>
inline __attribute__((always_inline)) void accumulate_runs(std::index_sequence<B...>,
                                                           const std::uint8_t* input, std::ptrdiff_t stride,
                                                           const Runs& runs, WideSums& sums) {
  constexpr std::size_t kCount = sizeof...(B);
  const std::uint8_t* const position[kPositions] = {input, input + stride, input + 2 * stride};
  const std::ptrdiff_t* step = runs.offsets;
  const std::uint8_t* weights = runs.weights;
  bool first = true;
  for (const std::int32_t end : runs.ends) {
    const std::ptrdiff_t* const last = runs.offsets + end;
    __m256i sums0[kCount] = {};
    __m256i sums1[kCount] = {};
    do {
      const __m256i weights0 = broadcast_dword(weights);
      const __m256i weights1 = broadcast_dword(weights + 4);
      const auto add = [&](std::size_t b) __attribute__((always_inline)) {
        __m256i a = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(position[b / kParts] + *step + kPartBytes * (b % kParts)));
        asm volatile("" : "+x"(a));
        const __m256i product0 = _mm256_madd_epi16(a, weights0);
        const __m256i product1 = _mm256_madd_epi16(a, weights1);
        add_in_place(sums0[b], product0);
        add_in_place(sums1[b], product1);
      };
      (add(B), ...);
      weights += kStepBytes;
    } while (++step != last);
    const auto finish = [&](std::size_t i, __m256i sum) __attribute__((always_inline)) {
      const __m256i upper = _mm256_srai_epi32(sum, 16);
      sums.low[i] = first ? sum : _mm256_add_epi32(sums.low[i], sum);
      sums.high[i] = first ? upper : _mm256_add_epi32(sums.high[i], upper);
    };
    (finish(B, sums0[B]), ...);
    (finish(kCount + B, sums1[B]), ...);
    first = false;
  }
}

using Accumulate = void (*)(const std::uint8_t* input, std::ptrdiff_t stride, const Runs& runs,
                            WideSums& sums);

template <std::size_t Positions>
void accumulate(const std::uint8_t* input, std::ptrdiff_t stride, const Runs& runs, WideSums& sums) {
  accumulate_runs(std::make_index_sequence<Positions * kParts>{}, input, stride, runs, sums);
  if (runs.ends.size() > kExactRuns) sums.carry(kPair * static_cast<int>(Positions) * kParts);
}

constexpr Accumulate kAccumulate[kPositions] = {accumulate<1>, accumulate<2>, accumulate<3>};

enum class Residual { none, pairs, planar };

using Output = void (*)(const OutputStage& stage, const ConvolutionCall& call, int first_position,
                        int positions, int channel, const WideSums& sums);

/// Requantizes and stores a block of one pair of output channels, as pairs16 or planar16.
template <Residual residual, bool pairs>
void output(const OutputStage& stage, const ConvolutionCall& call, int first_position, int positions,
            int channel, const WideSums& sums) {
  const __m256 lowest = _mm256_set1_ps(static_cast<float>(stage.range.lowest));
  const __m256 highest = _mm256_set1_ps(static_cast<float>(stage.range.highest));
  const bool has_second = channel + 1 < call.last_channel;
  // A second channel that does not exist has scale and offset 0 and reads the first one's residual times 0.
  __m256 scale[kPair];
  __m256 offset[kPair];
  __m256 ratio[kPair];
  std::uint8_t* to[kPair];
  const std::uint8_t* from[kPair] = {};
  for (int o = 0; o < kPair; ++o) {
    scale[o] = _mm256_broadcast_ss(stage.scale + channel + o);
    offset[o] = _mm256_broadcast_ss(stage.offset + channel + o);
    ratio[o] = _mm256_set1_ps(o == 0 || has_second ? stage.residual_ratio : 0.0F);
    const int existing = channel + (has_second ? o : 0);
    to[o] = call.output.at(first_position, pairs ? channel / kPair : existing);
    if constexpr (residual != Residual::none) {
      from[o] = call.residual.at(first_position, residual == Residual::pairs ? channel / kPair : existing);
    }
  }
  for (int place = 0; place < positions; ++place) {
    __m256i q[kPair][kParts];
    for (int part = 0; part < kParts; ++part) {
      // u15 has no sign bit, so residuals of both kinds are sign-extended.
      __m256i residuals[kPair] = {};
      if constexpr (residual == Residual::pairs) {
        const __m256i both =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from[0] + part * kPartBytes));
        residuals[0] = _mm256_srai_epi32(_mm256_slli_epi32(both, 16), 16);
        residuals[1] = _mm256_srai_epi32(both, 16);
      } else if constexpr (residual == Residual::planar) {
        for (int o = 0; o < kPair; ++o) {
          residuals[o] = _mm256_cvtepi16_epi32(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[o] + part * kPartBytes / 2)));
        }
      }
      for (int o = 0; o < kPair; ++o) {
        __m256 y = _mm256_mul_ps(sums.rounded((o * positions + place) * kParts + part), scale[o]);
        y = _mm256_add_ps(y, offset[o]);
        if constexpr (residual != Residual::none) {
          y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(residuals[o]), ratio[o], y);
        }
        q[o][part] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(y, lowest), highest));
      }
    }
    if constexpr (pairs) {
      for (int part = 0; part < kParts; ++part) {
        const __m256i both = _mm256_blend_epi16(q[0][part], _mm256_slli_epi32(q[1][part], 16), 0xAA);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to[0] + part * kPartBytes), both);
      }
    } else {
      for (int o = 0; o < (has_second ? kPair : 1); ++o) {
        const __m256i values = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[o][0], q[o][1]), 0xD8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to[o]), values);
      }
    }
    for (int o = 0; o < kPair; ++o) {
      to[o] += call.output.position_stride;
      if constexpr (residual != Residual::none) from[o] += call.residual.position_stride;
    }
  }
}

Output choose_output(const OutputStage& stage) {
  constexpr Output kOutputs[3][2] = {{output<Residual::none, false>, output<Residual::none, true>},
                                     {output<Residual::pairs, false>, output<Residual::pairs, true>},
                                     {output<Residual::planar, false>, output<Residual::planar, true>}};
  const int residual = !stage.has_residual() ? 0 : stage.residual_format == kPairs16 ? 1 : 2;
  return kOutputs[residual][stage.format == kPairs16 ? 1 : 0];
}

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  CallSteps steps(packed, call);
  const Output write = choose_output(stage);
  WideSums sums;
  const auto compute = [&](int first, int positions, int channel, const Runs& runs) {
    kAccumulate[positions - 1](call.input.at(first, 0), call.input.position_stride, runs, sums);
    write(stage, call, first, positions, channel, sums);
  };
  const auto each_block = [&](auto each) {
    for (int first = 0, left = call.positions; left > 0;) {
      const int positions = left / ((left + kPositions - 1) / kPositions);
      each(first, positions);
      first += positions;
      left -= positions;
    }
  };
  if (steps.whole()) {
    each_block([&](int first, int positions) {
      for (int channel = call.first_channel; channel < call.last_channel; channel += kPair) {
        compute(first, positions, channel, steps.whole_runs(channel / kPair));
      }
    });
    return;
  }
  for (int channel = call.first_channel; channel < call.last_channel; channel += kPair) {
    const Runs runs = steps.remaining_runs(channel / kPair);
    each_block([&](int first, int positions) { compute(first, positions, channel, runs); });
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
