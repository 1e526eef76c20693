// 2-bit weights, 2-bit activations, AVX2: a look-up (vpshufb) and an 8-bit addition for 64 products.
//
//   activations (index2), 32 lanes:  byte = a0 | a1 << 2, four bits of an index
//   table of two weights, 16 bytes (look_up_tables.h)
//
// Four levels give 16 tables, 256 bytes a layer, whatever the number of weights; a weight pair is stored as
// the table's place, one byte. Run lengths are proved at packing, for every stretch of steps.
//
// Additions saturate although no sum can, since on Zen 5 saturating ones have other pipes than look-ups
// (int2_avx512_vbmi.cpp).
//
// Partial sums of a run are stored as they are and widened at the end, three instructions each. As 16-bit
// words, a register r holds even lanes + 256 * odd lanes. With S = sum of r and O = sum of (r >> 8), both
// modulo 2^16, the odd lanes' sums are O and the even lanes' are S - 256 * O.
//
// Blocks of 6 positions x 2 output channels: 12 sums, 2 tables, 2 temporaries are the 16 registers; 8 vector
// loads for 12 look-ups leave the look-ups the bound. What was tried instead is in docs/kernels.md.
//
//   weights:  [16 tables][16], then [pair of output channels][step][2] places
//   program:  TableProgram

#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/blocks_avx2.h"
#include "kernels/kernels.h"
#include "kernels/look_up_tables.h"
#include "kernels/output_avx2.h"

namespace nibble {
namespace {

constexpr int kMostPositions = 6;
constexpr int kTableBytes = LookUpTables<kIndex2>::kEntries;
constexpr int kTables = LookUpTables<kIndex2>::kTables;
constexpr int kLargestSum = 32767;  ///< minus its minimum

int groups_of(const ConvolutionShape& shape) {
  return group_count(kIndex2, shape.input_channels);
}
int padded_channels_of(const ConvolutionShape& shape) {
  return (shape.output_channels + kOutputBlock - 1) / kOutputBlock * kOutputBlock;
}

/// Nothing shared, as Steps has it.
StepOrder order_of(const ConvolutionShape& shape) {
  return {shape, kIndex2, false};
}

int run_length_of(const ConvolutionLayer& layer) {
  return proven_run_length<kIndex2>(layer, order_of(layer.shape), false, kLargestSum);
}

bool supports(const ConvolutionLayer& layer) {
  return steps_fit(layer.shape, groups_of(layer.shape), run_length_of(layer));
}

[[gnu::cold, gnu::flatten]] PackedConvolution pack(const ConvolutionLayer& layer) {
  return pack_tables<kIndex2>(layer, order_of(layer.shape), padded_channels_of(layer.shape), kPair,
                              kTableBytes, run_length_of(layer));
}

/// Sums of the runs of one register block, 8-bit, [run][output channel of the pair][position].
struct Partial {
  __m256i sums[kMaximumRuns * kPair * kMostPositions];
};

inline __m256i load_table(const std::uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
}

template <std::size_t... P>
void accumulate_block(std::index_sequence<P...>, const std::uint8_t* input, std::ptrdiff_t stride,
                      const Steps& steps, const std::uint8_t* tables, const std::uint8_t* weights,
                      Partial& partial) {
  constexpr std::size_t kCount = sizeof...(P);
  const std::uint8_t* const position[kCount] = {input + static_cast<std::ptrdiff_t>(P) * stride...};
  __m256i* store = partial.sums;
  for (const Run& run : steps) {
    const std::uint8_t* places = weights + kPair * run.weights;
    const std::int32_t* step = run.first;
    __m256i sums0[kCount];
    __m256i sums1[kCount];
    __m256i table0 = load_table(tables + places[0]);
    __m256i table1 = load_table(tables + places[1]);
    const auto activations = [&](std::size_t p) {
      return loaded_once(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(position[p] + *step)));
    };
    const auto begin = [&](std::size_t p) __attribute__((always_inline)) {
      const __m256i index = activations(p);
      sums0[p] = _mm256_shuffle_epi8(table0, index);
      sums1[p] = _mm256_shuffle_epi8(table1, index);
    };
    const auto add = [&](std::size_t p) __attribute__((always_inline)) {
      const __m256i index = activations(p);
      sums0[p] = _mm256_adds_epu8(sums0[p], _mm256_shuffle_epi8(table0, index));
      sums1[p] = _mm256_adds_epu8(sums1[p], _mm256_shuffle_epi8(table1, index));
    };
    (begin(P), ...);
    while (++step != run.last) {
      places += kPair;
      table0 = load_table(tables + places[0]);
      table1 = load_table(tables + places[1]);
      (add(P), ...);
    }
    (_mm256_store_si256(store + P, sums0[P]), ...);
    (_mm256_store_si256(store + kCount + P, sums1[P]), ...);
    store += kPair * kCount;
  }
}

using Accumulate = void (*)(const std::uint8_t* input, std::ptrdiff_t stride, const Steps& steps,
                            const std::uint8_t* tables, const std::uint8_t* weights, Partial& partial);

template <std::size_t Positions>
void accumulate(const std::uint8_t* input, std::ptrdiff_t stride, const Steps& steps,
                const std::uint8_t* tables, const std::uint8_t* weights, Partial& partial) {
  accumulate_block(std::make_index_sequence<Positions>{}, input, stride, steps, tables, weights, partial);
}

constexpr Accumulate kAccumulate[kMostPositions] = {accumulate<1>, accumulate<2>, accumulate<3>,
                                                    accumulate<4>, accumulate<5>, accumulate<6>};

/// Unsigned 16-bit sums of the even and of the odd lanes.
struct Widened {
  __m256i even;
  __m256i odd;
};

/// A block whose runs are done: what the output stages read.
struct Block {
  const Partial* partial;  ///< of one pair of output channels
  int positions;
  int runs;
  int first_position;
  int channel;                  ///< first of the pair
  const std::int32_t* minimum;  ///< [2]: sum = widened + minimum

  /// Both channels of position p.
  std::array<Widened, kPair> widened(int p) const {
    const __m256i* sums = partial->sums + p;
    const int next_run = kPair * positions;
    __m256i words0 = sums[0];
    __m256i words1 = sums[positions];
    __m256i odd0 = _mm256_srli_epi16(words0, 8);
    __m256i odd1 = _mm256_srli_epi16(words1, 8);
    for (int r = 1; r < runs; ++r) {
      sums += next_run;
      const __m256i more0 = loaded_once(sums[0]);
      const __m256i more1 = loaded_once(sums[positions]);
      words0 = _mm256_add_epi16(words0, more0);
      words1 = _mm256_add_epi16(words1, more1);
      odd0 = _mm256_add_epi16(odd0, _mm256_srli_epi16(more0, 8));
      odd1 = _mm256_add_epi16(odd1, _mm256_srli_epi16(more1, 8));
    }
    return {Widened{_mm256_sub_epi16(words0, _mm256_slli_epi16(odd0, 8)), odd0},
            Widened{_mm256_sub_epi16(words1, _mm256_slli_epi16(odd1, 8)), odd1}};
  }
};

using Output = void (*)(const OutputStage& stage, const ConvolutionCall& call, const Block& block);

inline void store(std::uint8_t* to, __m256i bytes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
}

/// 2-bit outputs, two channels a byte, by comparing 16-bit sums with the three thresholds.
void output_thresholds(const OutputStage& stage, const ConvolutionCall& call, const Block& given) {
  const Block block = given;  // the stores could change the other, as far as the compiler knows
  __m256i threshold[kPair][3];
  for (int k = 0; k < kPair; ++k) {
    const int channel = block.channel + k;
    for (int t = 0; t < 3; ++t) {
      // A widened sum is at least 0 and at most 32767, and so are the thresholds that can decide. A channel
      // that does not exist passes none.
      const int value = channel < call.last_channel
                            ? stage.thresholds[t * stage.padded_channels + channel] - block.minimum[k]
                            : 32767;
      threshold[k][t] = _mm256_set1_epi16(static_cast<std::int16_t>(std::clamp(value, -1, 32767)));
    }
  }
  std::uint8_t* output = call.output.at(block.first_position, block.channel / kPair);
  const std::ptrdiff_t stride = call.output.position_stride;
  for (int p = 0; p < block.positions; ++p) {
    // Comparisons give -1, so these are minus q, and minus (q of even lanes + 256 * q of odd lanes).
    const auto count = [&](__m256i sum, int k) __attribute__((always_inline)) {
      return _mm256_add_epi16(_mm256_add_epi16(_mm256_cmpgt_epi16(sum, threshold[k][0]),
                                               _mm256_cmpgt_epi16(sum, threshold[k][1])),
                              _mm256_cmpgt_epi16(sum, threshold[k][2]));
    };
    const std::array<Widened, kPair> sums = block.widened(p);
    const __m256i even =
        _mm256_add_epi16(count(sums[0].even, 0), _mm256_slli_epi16(count(sums[1].even, 1), 2));
    const __m256i odd = _mm256_add_epi16(count(sums[0].odd, 0), _mm256_slli_epi16(count(sums[1].odd, 1), 2));
    store(output,
          _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_add_epi16(even, _mm256_slli_epi16(odd, 8))));
    output += stride;
  }
}

/// 8-bit outputs, planar, with or without residual and the next block's 2-bit x. |y| < 2^31 is known.
template <Residual residual, bool is_signed>
void output_bytes(const OutputStage& stage, const ConvolutionCall& call, const Block& given) {
  const Block block = given;  // the stores could change the other, as far as the compiler knows
  // A 16-bit word u above 0x4B00 is the float 2^23 + u, so one subtraction gives u plus any exact integer.
  constexpr float kTwo23 = 8388608.0F;
  const __m256i exponent = _mm256_set1_epi16(0x4B00);
  const __m256 ratio = _mm256_set1_ps(stage.residual_ratio);
  const __m256 residual_bias = _mm256_set1_ps(residual == Residual::signed8 ? kTwo23 + 128.0F : kTwo23);
  const __m256i sign = _mm256_set1_epi8(-128);
  // The packs leave eight even and eight odd lanes in each half.
  const __m256i interleave = _mm256_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15,  //
                                              0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
  const bool derives = stage.derived_bits != 0;
  const bool has_second = block.channel + 1 < call.last_channel;
  __m256 scale[kPair];
  __m256 offset[kPair];
  __m256 bias[kPair];
  __m256i x_threshold[kPair][3];
  for (int k = 0; k < kPair; ++k) {
    scale[k] = _mm256_broadcast_ss(stage.scale + block.channel + k);
    offset[k] = _mm256_broadcast_ss(stage.offset + block.channel + k);
    bias[k] = _mm256_set1_ps(kTwo23 - static_cast<float>(block.minimum[k]));
    for (int t = 0; t < 3; ++t) {
      // 127 is never passed: x of a channel that does not exist is zero.
      const bool exists = derives && (k == 0 || has_second);
      x_threshold[k][t] =
          _mm256_set1_epi8(exists ? static_cast<char>(stage.derived_thresholds[t] ^ 0x80) : '\x7F');
    }
  }
  std::uint8_t* output[kPair];
  const std::uint8_t* residual_bytes[kPair] = {};
  for (int k = 0; k < kPair; ++k) {
    const int existing = block.channel + (has_second ? k : 0);
    output[k] = call.output.at(block.first_position, existing);
    if constexpr (residual != Residual::none) {
      residual_bytes[k] = call.residual.at(block.first_position, existing);
    }
  }
  std::uint8_t* derived = derives ? call.derived.at(block.first_position, block.channel / kPair) : nullptr;
  const std::ptrdiff_t output_stride = call.output.position_stride;
  const std::ptrdiff_t residual_stride = call.residual.position_stride;
  const std::ptrdiff_t derived_stride = call.derived.position_stride;

  for (int p = 0; p < block.positions; ++p) {
    const std::array<Widened, kPair> sums = block.widened(p);
    const auto quantized = [&](__m256i word, __m256i residual_word, int k) __attribute__((always_inline)) {
      __m256 y = _mm256_sub_ps(_mm256_castsi256_ps(word), bias[k]);
      y = _mm256_mul_ps(y, scale[k]);
      y = _mm256_add_ps(y, offset[k]);
      if constexpr (residual != Residual::none) {
        y = _mm256_fmadd_ps(_mm256_sub_ps(_mm256_castsi256_ps(residual_word), residual_bias), ratio, y);
      }
      return _mm256_cvtps_epi32(y);  // the packs clamp
    };
    const auto bytes_of = [&](int k) __attribute__((always_inline)) {
      __m256i residual_even = _mm256_setzero_si256();
      __m256i residual_odd = _mm256_setzero_si256();
      if constexpr (residual != Residual::none) {
        __m256i bytes = loaded_once(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(residual_bytes[k] + p * residual_stride)));
        if constexpr (residual == Residual::signed8) bytes = _mm256_xor_si256(bytes, sign);
        residual_even = _mm256_and_si256(bytes, _mm256_set1_epi16(0xFF));
        residual_odd = _mm256_srli_epi16(bytes, 8);
      }
      const Widened& sum = sums[static_cast<std::size_t>(k)];
      const __m256i even = _mm256_packs_epi32(quantized(_mm256_unpacklo_epi16(sum.even, exponent),
                                                        _mm256_unpacklo_epi16(residual_even, exponent), k),
                                              quantized(_mm256_unpackhi_epi16(sum.even, exponent),
                                                        _mm256_unpackhi_epi16(residual_even, exponent), k));
      const __m256i odd = _mm256_packs_epi32(quantized(_mm256_unpacklo_epi16(sum.odd, exponent),
                                                       _mm256_unpacklo_epi16(residual_odd, exponent), k),
                                             quantized(_mm256_unpackhi_epi16(sum.odd, exponent),
                                                       _mm256_unpackhi_epi16(residual_odd, exponent), k));
      const __m256i packed = is_signed ? _mm256_packs_epi16(even, odd) : _mm256_packus_epi16(even, odd);
      return _mm256_shuffle_epi8(packed, interleave);
    };
    const __m256i first = bytes_of(0);
    const __m256i second = bytes_of(1);
    store(output[0] + p * output_stride, first);
    if (has_second) store(output[1] + p * output_stride, second);
    if (derives) {
      const auto minus_x = [&](__m256i bytes, int k) __attribute__((always_inline)) {
        const __m256i flipped = _mm256_xor_si256(bytes, sign);
        return _mm256_add_epi8(_mm256_add_epi8(_mm256_cmpgt_epi8(flipped, x_threshold[k][0]),
                                               _mm256_cmpgt_epi8(flipped, x_threshold[k][1])),
                               _mm256_cmpgt_epi8(flipped, x_threshold[k][2]));
      };
      // Times 4 as two additions: a byte shift does not exist.
      const __m256i x1 = minus_x(second, 1);
      const __m256i twice = _mm256_add_epi8(x1, x1);
      const __m256i index = _mm256_add_epi8(minus_x(first, 0), _mm256_add_epi8(twice, twice));
      store(derived + p * derived_stride, _mm256_sub_epi8(_mm256_setzero_si256(), index));
    }
  }
}

/// Every other combination of formats: the output stage that all AVX2 kernels share, for two pairs at once.
void output_any(const OutputStage& stage, const ConvolutionCall& call, const Block& first,
                const Block* second) {
  for (int p = 0; p < first.positions; ++p) {
    __m256i sums[kOutputBlock][4] = {};
    for (int pair = 0; pair < (second == nullptr ? 1 : 2); ++pair) {
      const Block& block = pair == 0 ? first : *second;
      const std::array<Widened, kPair> widened = block.widened(p);
      for (int k = 0; k < kPair; ++k) {
        const Widened& sum = widened[static_cast<std::size_t>(k)];
        const __m256i minimum = _mm256_set1_epi32(block.minimum[k]);
        const __m256i low = _mm256_unpacklo_epi16(sum.even, sum.odd);   // lanes 0-7, 16-23
        const __m256i high = _mm256_unpackhi_epi16(sum.even, sum.odd);  // lanes 8-15, 24-31
        const __m128i words[4] = {_mm256_castsi256_si128(low), _mm256_castsi256_si128(high),
                                  _mm256_extracti128_si256(low, 1), _mm256_extracti128_si256(high, 1)};
        for (int part = 0; part < 4; ++part) {
          sums[kPair * pair + k][part] = _mm256_add_epi32(_mm256_cvtepu16_epi32(words[part]), minimum);
        }
      }
    }
    write_outputs(stage, call, first.first_position + p, first.channel, sums);
  }
}

/// nullptr: output_any.
Output choose_output(const OutputStage& stage, const ConvolutionCall& call) {
  if (stage.thresholds != nullptr && stage.format == kIndex2 && stage.derived_bits == 0) {
    return output_thresholds;
  }
  const bool formats =
      stage.format == kPlanar8 && (!stage.has_residual() || stage.residual_format == kPlanar8) &&
      (stage.derived_bits == 0 || (stage.derived_bits == 2 && stage.derived_format == kIndex2));
  if (!formats || !stays_convertible(stage, call, 32767)) return nullptr;
  if (stage.range.lowest == -128 && stage.range.highest == 127) {
    return stage.has_residual() ? nullptr : output_bytes<Residual::none, true>;
  }
  if (stage.range.lowest != 0 || stage.range.highest != 255) return nullptr;
  if (!stage.has_residual()) return output_bytes<Residual::none, false>;
  return stage.residual_signed ? output_bytes<Residual::signed8, false>
                               : output_bytes<Residual::unsigned8, false>;
}

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const int groups = groups_of(packed.shape);
  const int padded = padded_channels_of(packed.shape);
  const StepOrder order = order_of(packed.shape);
  const std::ptrdiff_t pair_bytes = std::ptrdiff_t{order.count()} * kPair;
  const std::uint8_t* tables = packed.weights.data();
  const std::uint8_t* weights = tables + kTables * kTableBytes;
  const TableProgram program(packed, order, padded);
  const Steps steps(call, groups, program.run_length);
  const Output output = choose_output(stage, call);

  alignas(32) Partial partial[kOutputBlock / kPair];
  constexpr int kChunk = 64;  // output channels whose sums of minima are at hand
  alignas(32) std::int32_t minimum[kChunk];
  for (int chunk = call.first_channel; chunk < call.last_channel; chunk += kChunk) {
    const int chunk_end = std::min(chunk + kChunk, call.last_channel);
    std::memset(minimum, 0, sizeof minimum);
    for (const Tap& tap : call.taps) {
      const std::int32_t* of_tap = program.minima + std::ptrdiff_t{tap.index} * padded + chunk;
      const int count = std::min(kChunk, padded - chunk);
      for (int k = 0; k < count; ++k) minimum[k] += of_tap[k];
    }
    for (int first = 0, left = call.positions; left > 0;) {
      // As equal blocks as possible: 14 positions are 5 + 5 + 4.
      const int positions = left / ((left + kMostPositions - 1) / kMostPositions);
      const std::uint8_t* input = call.input.at(first, 0);
      const auto compute = [&](int channel, Partial& into) {
        kAccumulate[positions - 1](input, call.input.position_stride, steps, tables,
                                   weights + channel / kPair * pair_bytes, into);
        return Block{&into, positions, steps.count(), first, channel, minimum + (channel - chunk)};
      };
      if (output != nullptr) {
        for (int channel = chunk; channel < chunk_end; channel += kPair) {
          output(stage, call, compute(channel, partial[0]));
        }
      } else {
        for (int channel = chunk; channel < chunk_end; channel += kOutputBlock) {
          const Block block = compute(channel, partial[0]);
          if (channel + kPair < chunk_end) {
            const Block second = compute(channel + kPair, partial[1]);
            output_any(stage, call, block, &second);
          } else {
            output_any(stage, call, block, nullptr);
          }
        }
      }
      first += positions;
      left -= positions;
    }
  }
}

constexpr std::array kRows = {
    ConvolutionKernel{"int2_avx2", InstructionSet::avx2, 2, 2, kLanes, kOutputBlock, kIndex2, supports, pack,
                      run},
};

}  // namespace

std::span<const ConvolutionKernel> int2_avx2_kernels() {
  return kRows;
}

}  // namespace nibble
