// 2-bit weights, 2-bit activations, AVX-512 VBMI: a look-up (vpermb) and an 8-bit addition for 192 products.
//
//   activations (index3), 64 lanes:   byte = a0 | a1 << 2 | a2 << 4, six bits of an index
//   table of three weights, 64 bytes: entry = w0 * a0 + w1 * a1 + w2 * a2 - minimum >= 0
//
// Four levels give 64 tables, 4 KB a layer; three weights are stored as their table's number, one byte. Runs,
// their proof and their widening are int2_avx2.cpp's, with entries of up to 27 for +-1, +-3.
//
// Blocks of 2 positions x 4 output channels: 8 sums of the run, 16 widened ones and 4 tables of the 32
// registers; 6 vector loads for 8 look-ups leave the look-ups the bound.
//
//   weights:  [64 tables][64], then [block of 4 output channels][tap][group of 3 input channels][4] numbers
//   program:  run length, then [tap][output channel, padded] sums of the tables' minima

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/kernels.h"
#include "kernels/output_avx512.h"
#include "kernels/steps.h"

namespace nibble {
namespace {

constexpr int kPositions = 2;
constexpr int kGroup = 3;  ///< input channels of a step
constexpr int kTableBytes = 64;
constexpr int kTables = 64;

struct Table {
  std::array<std::uint8_t, kTableBytes> entries;
  int minimum;
  int range;  ///< of the entries
};

Table make_table(const std::array<int, kGroup>& weights) {
  constexpr int kLimit = activation_limit(2);
  Table table{{}, 0, 0};
  for (const int weight : weights) {
    table.minimum += kLimit * std::min(weight, 0);
    table.range += kLimit * std::abs(weight);
  }
  for (std::size_t index = 0; index < kTableBytes; ++index) {
    int sum = -table.minimum;
    for (std::size_t i = 0; i < kGroup; ++i) sum += weights[i] * static_cast<int>((index >> (2 * i)) & 3U);
    table.entries[index] = static_cast<std::uint8_t>(sum);
  }
  return table;
}

std::array<Table, kTables> make_tables(const Levels& levels) {
  std::array<Table, kTables> tables;
  for (std::size_t i = 0; i < kTables; ++i) {
    tables[i] = make_table({levels[i % 4], levels[i / 4 % 4], levels[i / 16]});
  }
  return tables;
}

int groups_of(const ConvolutionShape& shape) {
  return group_count(kIndex3, shape.input_channels);
}
int padded_channels_of(const ConvolutionShape& shape) {
  return (shape.output_channels + kBlockChannels - 1) / kBlockChannels * kBlockChannels;
}

/// The table of one step of one output channel. Weights of input channels that do not exist are any level:
/// their activations are zero.
int table_of(const ConvolutionLayer& layer, int output_channel, int tap, int group) {
  int table = 0;
  for (int i = 0; i < kGroup; ++i) {
    const int channel = kGroup * group + i;
    int code = 2;
    if (channel < layer.shape.input_channels && output_channel < layer.shape.output_channels) {
      const std::size_t at = static_cast<std::size_t>(output_channel) * layer.shape.filter_size() +
                             static_cast<std::size_t>(tap * layer.shape.input_channels + channel);
      code = static_cast<int>(std::find(layer.levels.begin(), layer.levels.end(), layer.weights[at]) -
                              layer.levels.begin());
    }
    table |= code << (2 * i);
  }
  return table;
}

/// The largest number of steps that no output channel can overflow 8 bits with, wherever a run begins; 0 when
/// a channel's whole sum could pass 15 bits or a single entry 8.
int proven_run_length(const ConvolutionLayer& layer) {
  const int groups = groups_of(layer.shape);
  const int steps = layer.shape.kernel * layer.shape.kernel * groups;
  if (steps > kMaximumSteps || layer.levels[3] > 255 / activation_limit(2)) return 0;
  const std::array<Table, kTables> tables = make_tables(layer.levels);
  int proven = steps;
  std::vector<int> ranges(static_cast<std::size_t>(steps));
  for (int o = 0; o < layer.shape.output_channels; ++o) {
    int total = 0;
    for (int step = 0; step < steps; ++step) {
      const int table = table_of(layer, o, step / groups, step % groups);
      ranges[static_cast<std::size_t>(step)] = tables[static_cast<std::size_t>(table)].range;
      total += ranges[static_cast<std::size_t>(step)];
    }
    if (total > 32767) return 0;
    proven = std::min(proven, longest_run(ranges, 255));
  }
  return proven;
}

bool supports(const ConvolutionLayer& layer) {
  return steps_fit(layer.shape, groups_of(layer.shape), proven_run_length(layer));
}

PackedConvolution pack(const ConvolutionLayer& layer) {
  const int taps = layer.shape.kernel * layer.shape.kernel;
  const int padded = padded_channels_of(layer.shape);
  const std::array<Table, kTables> tables = make_tables(layer.levels);
  PackedConvolution packed{layer.shape, layer.activation_bits, {}, {}};
  for (const Table& table : tables) {
    packed.weights.insert(packed.weights.end(), table.entries.begin(), table.entries.end());
  }
  packed.program.assign(static_cast<std::size_t>(1 + taps * padded), 0);
  packed.program[0] = proven_run_length(layer);
  for (int block = 0; block < padded; block += kBlockChannels) {
    for (int tap = 0; tap < taps; ++tap) {
      for (int group = 0; group < groups_of(layer.shape); ++group) {
        for (int o = block; o < block + kBlockChannels; ++o) {
          const int table = table_of(layer, o, tap, group);
          packed.weights.push_back(static_cast<std::uint8_t>(table));
          packed.program[static_cast<std::size_t>(1 + tap * padded + o)] +=
              tables[static_cast<std::size_t>(table)].minimum;
        }
      }
    }
  }
  return packed;
}

/// 16-bit sums of one register block, modulo 2^16, [output channel][position]: of all runs as words, which
/// are even lanes + 256 * odd lanes, and of their upper bytes, the odd lanes.
struct Sums {
  __m512i words[kBlockChannels * kPositions];
  __m512i odd[kBlockChannels * kPositions];
};

template <std::size_t... P>
inline __attribute__((always_inline)) void accumulate_block(std::index_sequence<P...>,
                                                            const std::uint8_t* input, std::ptrdiff_t stride,
                                                            const Steps& steps, const std::uint8_t* tables,
                                                            const std::uint8_t* weights, Sums& sums) {
  constexpr std::size_t kCount = sizeof...(P);
  const std::uint8_t* const position[kCount] = {input + static_cast<std::ptrdiff_t>(P) * stride...};
  const auto table_at = [&](std::uint8_t number) __attribute__((always_inline)) {
    return loaded_once(_mm512_load_si512(tables + std::ptrdiff_t{number} * kTableBytes));
  };
  const __m512i zero = _mm512_setzero_si512();
  __m512i words0[kCount] = {((void)P, zero)...};
  __m512i words1[kCount] = {((void)P, zero)...};
  __m512i words2[kCount] = {((void)P, zero)...};
  __m512i words3[kCount] = {((void)P, zero)...};
  __m512i odd0[kCount] = {((void)P, zero)...};
  __m512i odd1[kCount] = {((void)P, zero)...};
  __m512i odd2[kCount] = {((void)P, zero)...};
  __m512i odd3[kCount] = {((void)P, zero)...};
  for (const Run& run : steps) {
    const std::uint8_t* numbers = weights + kBlockChannels * run.weights;
    const std::ptrdiff_t* step = run.first;
    __m512i sums0[kCount];
    __m512i sums1[kCount];
    __m512i sums2[kCount];
    __m512i sums3[kCount];
    __m512i table0 = table_at(numbers[0]);
    __m512i table1 = table_at(numbers[1]);
    __m512i table2 = table_at(numbers[2]);
    __m512i table3 = table_at(numbers[3]);
    const auto begin = [&](std::size_t p) __attribute__((always_inline)) {
      const __m512i index = load(position[p] + *step);
      sums0[p] = _mm512_permutexvar_epi8(index, table0);
      sums1[p] = _mm512_permutexvar_epi8(index, table1);
      sums2[p] = _mm512_permutexvar_epi8(index, table2);
      sums3[p] = _mm512_permutexvar_epi8(index, table3);
    };
    const auto add = [&](std::size_t p) __attribute__((always_inline)) {
      const __m512i index = load(position[p] + *step);
      sums0[p] = _mm512_add_epi8(sums0[p], _mm512_permutexvar_epi8(index, table0));
      sums1[p] = _mm512_add_epi8(sums1[p], _mm512_permutexvar_epi8(index, table1));
      sums2[p] = _mm512_add_epi8(sums2[p], _mm512_permutexvar_epi8(index, table2));
      sums3[p] = _mm512_add_epi8(sums3[p], _mm512_permutexvar_epi8(index, table3));
    };
    (begin(P), ...);
    while (++step != run.last) {
      numbers += kBlockChannels;
      table0 = table_at(numbers[0]);
      table1 = table_at(numbers[1]);
      table2 = table_at(numbers[2]);
      table3 = table_at(numbers[3]);
      (add(P), ...);
    }
    const auto widen = [&](std::size_t p) __attribute__((always_inline)) {
      words0[p] = _mm512_add_epi16(words0[p], sums0[p]);
      words1[p] = _mm512_add_epi16(words1[p], sums1[p]);
      words2[p] = _mm512_add_epi16(words2[p], sums2[p]);
      words3[p] = _mm512_add_epi16(words3[p], sums3[p]);
      odd0[p] = _mm512_add_epi16(odd0[p], _mm512_srli_epi16(sums0[p], 8));
      odd1[p] = _mm512_add_epi16(odd1[p], _mm512_srli_epi16(sums1[p], 8));
      odd2[p] = _mm512_add_epi16(odd2[p], _mm512_srli_epi16(sums2[p], 8));
      odd3[p] = _mm512_add_epi16(odd3[p], _mm512_srli_epi16(sums3[p], 8));
    };
    (widen(P), ...);
  }
  ((sums.words[P] = words0[P], sums.odd[P] = odd0[P]), ...);
  ((sums.words[kCount + P] = words1[P], sums.odd[kCount + P] = odd1[P]), ...);
  ((sums.words[2 * kCount + P] = words2[P], sums.odd[2 * kCount + P] = odd2[P]), ...);
  ((sums.words[3 * kCount + P] = words3[P], sums.odd[3 * kCount + P] = odd3[P]), ...);
}

using Accumulate = void (*)(const std::uint8_t* input, std::ptrdiff_t stride, const Steps& steps,
                            const std::uint8_t* tables, const std::uint8_t* weights, Sums& sums);

template <std::size_t Positions>
void accumulate(const std::uint8_t* input, std::ptrdiff_t stride, const Steps& steps,
                const std::uint8_t* tables, const std::uint8_t* weights, Sums& sums) {
  accumulate_block(std::make_index_sequence<Positions>{}, input, stride, steps, tables, weights, sums);
}

constexpr Accumulate kAccumulate[kPositions] = {accumulate<1>, accumulate<2>};

/// Unsigned 16-bit sums of the even and of the odd lanes.
struct Widened {
  __m512i even;
  __m512i odd;
};

/// A block whose runs are done.
struct Block {
  const Sums* sums;
  int positions;
  int first_position;
  int channel;                  ///< first of four
  const std::int32_t* minimum;  ///< [4]: sum = widened + minimum

  Widened widened(int k, int p) const {
    const int at = k * positions + p;
    const __m512i odd = sums->odd[at];
    return {_mm512_sub_epi16(sums->words[at], _mm512_slli_epi16(odd, 8)), odd};
  }
};

/// 2-bit outputs by comparing 16-bit sums with the three thresholds, one byte each.
inline __m512i threshold_bytes(const OutputStage& stage, const Block& block, int k, int p) {
  const Widened sum = block.widened(k, p);
  const __m512i even_one = _mm512_set1_epi16(1);
  const __m512i odd_one = _mm512_set1_epi16(256);
  __m512i even = _mm512_setzero_si512();
  __m512i odd = _mm512_setzero_si512();
  for (int t = 0; t < 3; ++t) {
    // A widened sum is at least 0 and at most 32767, and so are the thresholds that can decide.
    const int value = stage.thresholds[t * stage.padded_channels + block.channel + k] - block.minimum[k];
    const __m512i threshold = _mm512_set1_epi16(static_cast<std::int16_t>(std::clamp(value, -1, 32767)));
    even = _mm512_mask_add_epi16(even, _mm512_cmpgt_epi16_mask(sum.even, threshold), even, even_one);
    odd = _mm512_mask_add_epi16(odd, _mm512_cmpgt_epi16_mask(sum.odd, threshold), odd, odd_one);
  }
  return _mm512_or_si512(even, odd);
}

enum class Residual { none, unsigned8, signed8 };

/// 8-bit outputs with or without a planar residual. |y| < 2^31 is known.
template <Residual residual, bool is_signed>
inline __m512i requantized_bytes(const OutputStage& stage, const ConvolutionCall& call, const Block& block,
                                 int k, int p) {
  // A 16-bit word u above 0x4B00 is the float 2^23 + u, so one subtraction gives u plus any exact integer.
  constexpr float kTwo23 = 8388608.0F;
  const __m512i exponent = _mm512_set1_epi16(0x4B00);
  const int channel = block.channel + k;
  const __m512 scale = _mm512_set1_ps(stage.scale[channel]);
  const __m512 offset = _mm512_set1_ps(stage.offset[channel]);
  const __m512 ratio = _mm512_set1_ps(stage.residual_ratio);
  const __m512 bias = _mm512_set1_ps(kTwo23 - static_cast<float>(block.minimum[k]));
  const __m512 residual_bias = _mm512_set1_ps(residual == Residual::signed8 ? kTwo23 + 128.0F : kTwo23);
  __m512i residual_even = _mm512_setzero_si512();
  __m512i residual_odd = _mm512_setzero_si512();
  if constexpr (residual != Residual::none) {
    __m512i bytes = loaded_once(load(call.residual.at(block.first_position + p, channel)));
    if constexpr (residual == Residual::signed8) bytes = _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
    residual_even = _mm512_and_si512(bytes, _mm512_set1_epi16(0xFF));
    residual_odd = _mm512_srli_epi16(bytes, 8);
  }
  const auto quantized = [&](__m512i word, __m512i residual_word) __attribute__((always_inline)) {
    __m512 y = _mm512_sub_ps(_mm512_castsi512_ps(word), bias);
    y = _mm512_mul_ps(y, scale);
    y = _mm512_add_ps(y, offset);
    if constexpr (residual != Residual::none) {
      y = _mm512_fmadd_ps(_mm512_sub_ps(_mm512_castsi512_ps(residual_word), residual_bias), ratio, y);
    }
    return _mm512_cvtps_epi32(y);  // the packs clamp
  };
  const Widened sum = block.widened(k, p);
  const __m512i even = _mm512_packs_epi32(
      quantized(_mm512_unpacklo_epi16(sum.even, exponent), _mm512_unpacklo_epi16(residual_even, exponent)),
      quantized(_mm512_unpackhi_epi16(sum.even, exponent), _mm512_unpackhi_epi16(residual_even, exponent)));
  const __m512i odd = _mm512_packs_epi32(
      quantized(_mm512_unpacklo_epi16(sum.odd, exponent), _mm512_unpacklo_epi16(residual_odd, exponent)),
      quantized(_mm512_unpackhi_epi16(sum.odd, exponent), _mm512_unpackhi_epi16(residual_odd, exponent)));
  const __m512i packed = is_signed ? _mm512_packs_epi16(even, odd) : _mm512_packus_epi16(even, odd);
  // The packs leave eight even and eight odd lanes in each 128-bit block.
  const __m512i interleave = _mm512_set4_epi32(0x0F070E06, 0x0D050C04, 0x0B030A02, 0x09010800);
  const __m512i bytes = _mm512_shuffle_epi8(packed, interleave);
  if constexpr (is_signed) return bytes;
  return _mm512_min_epu8(bytes, _mm512_set1_epi8(static_cast<char>(stage.range.highest)));
}

/// The two ways to a byte as one: which one a stage takes is chosen once a call.
struct Thresholds {
  __m512i operator()(const OutputStage& stage, const ConvolutionCall&, const Block& block, int k,
                     int p) const {
    return threshold_bytes(stage, block, k, p);
  }
};
template <Residual residual, bool is_signed>
struct Requantized {
  __m512i operator()(const OutputStage& stage, const ConvolutionCall& call, const Block& block, int k,
                     int p) const {
    return requantized_bytes<residual, is_signed>(stage, call, block, k, p);
  }
};

using Output = void (*)(const OutputStage& stage, const ConvolutionCall& call, const Block& block,
                        ByteTile& tile, ByteTile& derived_tile);

/// Planar bytes are stored at once, the others collected in a tile; derived ones always are.
template <typename Bytes>
void output_block(const OutputStage& given_stage, const ConvolutionCall& given_call, const Block& given_block,
                  ByteTile& tile, ByteTile& derived_tile) {
  // Copies: the stores could change the originals, as far as the compiler knows.
  const OutputStage stage = given_stage;
  const ConvolutionCall call = given_call;
  const Block block = given_block;
  const int channels = std::min(kBlockChannels, call.last_channel - block.channel);
  const int tile_channel = block.channel % kTileChannels;
  const bool is_planar = stage.format == kPlanar8;
  for (int k = 0; k < channels; ++k) {
    for (int p = 0; p < block.positions; ++p) {
      const __m512i bytes = Bytes{}(stage, call, block, k, p);
      store(is_planar ? call.output.at(block.first_position + p, block.channel + k)
                      : tile.bytes[tile_channel + k][p],
            bytes);
      if (stage.derived_bits != 0) store(derived_tile.bytes[tile_channel + k][p], derive(bytes, stage));
    }
  }
}

/// Every other combination of formats, value by value.
void output_plainly(const OutputStage& stage, const ConvolutionCall& call, const Block& block, ByteTile&,
                    ByteTile&) {
  const int channels = std::min(kBlockChannels, call.last_channel - block.channel);
  for (int p = 0; p < block.positions; ++p) {
    alignas(64) std::uint16_t words[2][kLanes / 2];
    std::int32_t sums[kBlockChannels][kLanes];
    for (int k = 0; k < kBlockChannels; ++k) {
      const Widened sum = block.widened(k, p);
      _mm512_storeu_si512(words[0], sum.even);
      _mm512_storeu_si512(words[1], sum.odd);
      for (int lane = 0; lane < kLanes; ++lane) sums[k][lane] = words[lane % 2][lane / 2] + block.minimum[k];
    }
    write_plainly(stage, call, block.first_position + p, block.channel, channels, sums);
  }
}

Output choose_output(const OutputStage& stage, const ConvolutionCall& call) {
  if (!is_common(stage, kPlanar8)) return output_plainly;
  if (stage.thresholds != nullptr) return output_block<Thresholds>;
  if (!stays_convertible(stage, call, 32767)) return output_plainly;
  if (stage.range.lowest < 0) {
    return stage.has_residual() ? output_plainly : output_block<Requantized<Residual::none, true>>;
  }
  if (!stage.has_residual()) return output_block<Requantized<Residual::none, false>>;
  return stage.residual_signed ? output_block<Requantized<Residual::signed8, false>>
                               : output_block<Requantized<Residual::unsigned8, false>>;
}

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const int groups = groups_of(packed.shape);
  const int padded = padded_channels_of(packed.shape);
  const std::ptrdiff_t block_bytes =
      std::ptrdiff_t{packed.shape.kernel} * packed.shape.kernel * groups * kBlockChannels;
  const std::uint8_t* tables = packed.weights.data();
  const std::uint8_t* weights = tables + kTables * kTableBytes;
  const std::int32_t* minima = packed.program.data() + 1;
  const Steps steps(call, groups, packed.program[0]);
  const Output output = choose_output(stage, call);
  const bool tiled = output != output_plainly && stage.format != kPlanar8;
  const bool derived = output != output_plainly && stage.derived_bits != 0;

  alignas(64) Sums sums;
  ByteTile tile;
  ByteTile derived_tile;
  constexpr int kChunk = 5 * kTileChannels;  // output channels whose sums of minima are at hand
  std::int32_t minimum[kChunk + kBlockChannels];
  for (int chunk = call.first_channel; chunk < call.last_channel; chunk += kChunk) {
    const int chunk_end = std::min(chunk + kChunk, call.last_channel);
    std::memset(minimum, 0, sizeof minimum);
    for (const Tap& tap : call.taps) {
      const std::int32_t* of_tap = minima + std::ptrdiff_t{tap.index} * padded + chunk;
      const int count = std::min(kChunk, padded - chunk);
      for (int k = 0; k < count; ++k) minimum[k] += of_tap[k];
    }
    for (int first = 0, left = call.positions; left > 0;) {
      const int positions = left / ((left + kPositions - 1) / kPositions);
      const std::uint8_t* input = call.input.at(first, 0);
      for (int tile_first = chunk; tile_first < chunk_end; tile_first += kTileChannels) {
        const int channels = std::min(kTileChannels, chunk_end - tile_first);
        for (int channel = tile_first; channel < tile_first + channels; channel += kBlockChannels) {
          kAccumulate[positions - 1](input, call.input.position_stride, steps, tables,
                                     weights + channel / kBlockChannels * block_bytes, sums);
          output(stage, call, {&sums, positions, first, channel, minimum + (channel - chunk)}, tile,
                 derived_tile);
        }
        if (tiled) store_tile(call.output, stage.format, first, positions, tile_first, channels, tile);
        if (derived) {
          store_tile(call.derived, stage.derived_format, first, positions, tile_first, channels,
                     derived_tile);
        }
      }
      first += positions;
      left -= positions;
    }
  }
}

constexpr std::array kRows = {
    ConvolutionKernel{"int2_vbmi", InstructionSet::avx512_vbmi, 2, 2, kLanes, kTileChannels, kIndex3,
                      supports, pack, run},
};

}  // namespace

std::span<const ConvolutionKernel> int2_avx512_vbmi_kernels() {
  return kRows;
}

}  // namespace nibble
