// 2-bit weights, 2-bit activations, AVX-512 VBMI: a look-up (vpermb) and an 8-bit addition for 192 products.
//
//   activations (index3), 64 lanes:   byte = a0 | a1 << 2 | a2 << 4, six bits of an index
//   table of three weights, 64 bytes (look_up_tables.h)
//
// Four levels give 64 tables, 4 KB a layer; three weights are stored as their table's number, one byte. Runs,
// their proof and their widening are int2_avx2.cpp's, with entries of up to 27 for +-1, +-3.
//
// Blocks of 2 positions x 4 output channels: 8 sums of the run, 16 widened ones and 4 tables of the 32
// registers; 6 vector loads for 8 look-ups leave the look-ups the bound where a cycle has one. Sums become
// outputs before they leave their registers. A 2-bit output is how many of three thresholds a sum exceeds:
// sums start from minus the second threshold, so that they may be saturated to bytes before they are compared
// with 0 and with the other two, wherever these are less than 128 away.
//
//   weights:  [64 tables][64], then [block of 4 output channels][tap][group of 3 input channels][4] numbers
//   program:  run length, then [tap][output channel, padded] sums of the tables' minima

#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/kernels.h"
#include "kernels/look_up_tables.h"
#include "kernels/output_avx512.h"
#include "kernels/steps.h"

namespace nibble {
namespace {

constexpr int kPositions = 2;
constexpr int kGroup = kIndex3.channels;  ///< input channels of a step
constexpr int kTableBytes = LookUpTables<kIndex3>::kEntries;
constexpr int kTables = LookUpTables<kIndex3>::kTables;
constexpr int kLargestSum =
    32766;  ///< minus its minimum; one more than it and less than zero fit 16 bits too
constexpr int kChunk = 6 * kTileChannels;  ///< output channels that are prepared together

int groups_of(const ConvolutionShape& shape) {
  return group_count(kIndex3, shape.input_channels);
}
int padded_channels_of(const ConvolutionShape& shape) {
  return (shape.output_channels + kBlockChannels - 1) / kBlockChannels * kBlockChannels;
}

int run_length_of(const ConvolutionLayer& layer) {
  return proven_run_length<kIndex3>(layer, kLargestSum);
}

bool supports(const ConvolutionLayer& layer) {
  return steps_fit(layer.shape, groups_of(layer.shape), run_length_of(layer));
}

[[gnu::cold, gnu::flatten]] PackedConvolution pack(const ConvolutionLayer& layer) {
  return pack_tables<kIndex3>(layer, padded_channels_of(layer.shape), kBlockChannels, 1,
                              run_length_of(layer));
}

/// What a call needs of its output channels, each value the same in all bytes or words of 32 bits.
struct Channels {
  std::uint32_t start[kChunk];  ///< what the sums of odd lanes start from, in words
  /// 257 times this modulo 2^16: whole words are even lanes + 256 * odd lanes.
  std::uint32_t start_words[kChunk];
  std::uint32_t lower[kChunk];  ///< thresholds 1 and 3 minus threshold 2, in bytes or words
  std::uint32_t upper[kChunk];
};

constexpr std::uint32_t in_words(int value) {
  return (static_cast<std::uint32_t>(value) & 0xFFFFU) * 0x00010001U;
}
constexpr std::uint32_t in_bytes(int value) {
  return (static_cast<std::uint32_t>(value) & 0xFFU) * 0x01010101U;
}
inline __m512i everywhere(std::uint32_t value) {
  return _mm512_set1_epi32(static_cast<int>(value));
}

/// One register block.
struct Block {
  const std::uint8_t* input;  ///< of its first position
  std::ptrdiff_t stride;
  const Steps* steps;
  const std::uint8_t* tables;
  const std::uint8_t* weights;
  const Channels* channels;
  int in_chunk;  ///< index of the first of the four in `channels`
  int first_position;
  int channel;  ///< first of the four
};

/// All of these bytes by one load, the first one lowest. Opaque, or the compiler would load each by itself.
template <typename Word>
inline __attribute__((always_inline)) Word loaded_at_once(const void* from) {
  Word word = 0;
  std::memcpy(&word, from, sizeof word);
  asm("" : "+r"(word));
  return word;
}

/// Where the table of the number in a word's bits `first` .. first + 7 is. One rotation to another register
/// (rorx) and one mask.
template <typename Word>
inline __attribute__((always_inline)) Word place_of(Word word, int first) {
  static_assert(kTableBytes == 64);
  return std::rotr(word, first - 6) & (kTables - 1) * kTableBytes;
}

/// The tables of a step's four output channels.
struct FourTables {
  __m512i of0;
  __m512i of1;
  __m512i of2;
  __m512i of3;

  /// The numbers begin at bit `first` of a word; its other bits are anything.
  __attribute__((always_inline)) FourTables(const std::uint8_t* tables, std::uint64_t word, int first)
      : of0(at(tables, word, first)),
        of1(at(tables, word, first + 8)),
        of2(at(tables, word, first + 16)),
        of3(at(tables, word, first + 24)) {}

 private:
  static __attribute__((always_inline)) __m512i at(const std::uint8_t* tables, std::uint64_t word,
                                                   int first) {
    return loaded_once(_mm512_load_si512(tables + place_of(word, first)));
  }
};

/// Adds up a block and gives the sums of each channel k to finish(k, words, odd), [position], modulo 2^16: of
/// all runs as words, which are even lanes + 256 * odd lanes, and of their upper bytes, the odd lanes.
template <typename Finish, std::size_t... P>
inline __attribute__((always_inline)) void accumulate(std::index_sequence<P...>, const Block& block,
                                                      Finish& finish) {
  constexpr std::size_t kCount = sizeof...(P);
  const std::uint8_t* const position[kCount] = {block.input +
                                                static_cast<std::ptrdiff_t>(P) * block.stride...};
  const std::uint8_t* const tables = block.tables;
  const std::uint8_t* const weights = block.weights;
  const auto words_of = [&](int k) { return everywhere(block.channels->start_words[block.in_chunk + k]); };
  const auto odd_of = [&](int k) { return everywhere(block.channels->start[block.in_chunk + k]); };
  __m512i words0[kCount] = {((void)P, words_of(0))...};
  __m512i words1[kCount] = {((void)P, words_of(1))...};
  __m512i words2[kCount] = {((void)P, words_of(2))...};
  __m512i words3[kCount] = {((void)P, words_of(3))...};
  __m512i odd0[kCount] = {((void)P, odd_of(0))...};
  __m512i odd1[kCount] = {((void)P, odd_of(1))...};
  __m512i odd2[kCount] = {((void)P, odd_of(2))...};
  __m512i odd3[kCount] = {((void)P, odd_of(3))...};
  for (const Run& run : *block.steps) {
    const std::uint8_t* numbers = weights + kBlockChannels * run.weights;
    const std::int32_t* step = run.first;
    __m512i sums0[kCount];
    __m512i sums1[kCount];
    __m512i sums2[kCount];
    __m512i sums3[kCount];
    const auto begin = [&](std::size_t p, const FourTables& four) __attribute__((always_inline)) {
      const __m512i index = load(position[p] + *step);
      sums0[p] = _mm512_permutexvar_epi8(index, four.of0);
      sums1[p] = _mm512_permutexvar_epi8(index, four.of1);
      sums2[p] = _mm512_permutexvar_epi8(index, four.of2);
      sums3[p] = _mm512_permutexvar_epi8(index, four.of3);
    };
    const auto add = [&](std::size_t p, const FourTables& four, std::ptrdiff_t offset)
        __attribute__((always_inline)) {
      __m512i index = load(position[p] + offset);
      wait_for_pins(index);
      __m512i products0 = _mm512_permutexvar_epi8(index, four.of0);
      __m512i products1 = _mm512_permutexvar_epi8(index, four.of1);
      __m512i products2 = _mm512_permutexvar_epi8(index, four.of2);
      __m512i products3 = _mm512_permutexvar_epi8(index, four.of3);
      wait_for_pins(products0, products1, products2, products3);
      sums0[p] = _mm512_add_epi8(sums0[p], products0);
      sums1[p] = _mm512_add_epi8(sums1[p], products1);
      sums2[p] = _mm512_add_epi8(sums2[p], products2);
      sums3[p] = _mm512_add_epi8(sums3[p], products3);
      pin(sums0[p], sums1[p], sums2[p], sums3[p]);
    };
    const auto add_step = [&](std::uint64_t word, int first_bit, std::ptrdiff_t offset)
        __attribute__((always_inline)) {
      const FourTables four(tables, word, first_bit);
      (add(P, four, offset), ...);
    };
    const FourTables first(tables, loaded_at_once<std::uint32_t>(numbers), 0);
    (begin(P, first), ...);
    ++step;
    numbers += kBlockChannels;
    if (((run.last - step) & 1) != 0) {
      add_step(loaded_at_once<std::uint32_t>(numbers), 0, *step);
      ++step;
      numbers += kBlockChannels;
    }
    // Two steps a turn, their offsets by one load and their eight numbers by another: loads and the
    // instructions between look-ups are what bounds CPUs with two look-ups a cycle.
    for (; step != run.last; step += 2, numbers += 2 * kBlockChannels) {
      const auto offsets = loaded_at_once<std::int64_t>(step);
      const auto eight = loaded_at_once<std::uint64_t>(numbers);
      add_step(eight, 0, static_cast<std::int32_t>(offsets));
      add_step(eight, 32, static_cast<std::ptrdiff_t>(offsets >> 32));
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
  finish(0, words0, odd0);
  finish(1, words1, odd1);
  finish(2, words2, odd2);
  finish(3, words3, odd3);
}

/// Sums of one position of one or two blocks of channels, [output channel], as accumulate() has them.
struct LoneSums {
  __m512i words[2 * kBlockChannels][1];
  __m512i odd[2 * kBlockChannels][1];
};

/// A lone position: tables are loaded for a single look-up each here, which bounds it, and two blocks of
/// channels share an activation. The second block's weights follow block_bytes behind the first one's, its
/// channels the first one's. Not inlined: the outputs of all kinds share it.
template <std::size_t... K>
[[gnu::noinline]] void accumulate_lone(std::index_sequence<K...>, const Block& block,
                                       std::ptrdiff_t block_bytes, LoneSums& lone) {
  const std::uint8_t* const input = block.input;
  const std::uint8_t* const tables = block.tables;
  const std::uint8_t* const weights = block.weights;
  __m512i words[] = {everywhere(block.channels->start_words[block.in_chunk + static_cast<int>(K)])...};
  __m512i odd[] = {everywhere(block.channels->start[block.in_chunk + static_cast<int>(K)])...};
  const auto look_up = [&](std::uint64_t word, int first, __m512i index) __attribute__((always_inline)) {
    return _mm512_permutexvar_epi8(index, _mm512_load_si512(tables + place_of(word, first)));
  };
  for (const Run& run : *block.steps) {
    const std::uint8_t* numbers = weights + kBlockChannels * run.weights;
    const std::int32_t* step = run.first;
    // Numbers of tables by one load for each block. Bits of channel k of a step: 8 * k, behind `first`.
    const auto first_bit = [](std::size_t k) { return 8 * static_cast<int>(k % kBlockChannels); };
    __m512i sums[sizeof...(K)];
    {
      const std::uint64_t word[2] = {loaded_at_once<std::uint32_t>(numbers),
                                     loaded_at_once<std::uint32_t>(numbers + block_bytes)};
      const __m512i index = loaded_once(load(input + *step));
      ((sums[K] = look_up(word[K / kBlockChannels], first_bit(K), index)), ...);
      ++step;
      numbers += kBlockChannels;
    }
    const auto add_step = [&](const std::uint64_t(&word)[2], int first, std::ptrdiff_t offset)
        __attribute__((always_inline)) {
      const __m512i index = loaded_once(load(input + offset));
      ((sums[K] = _mm512_add_epi8(sums[K], look_up(word[K / kBlockChannels], first + first_bit(K), index))),
       ...);
    };
    if (((run.last - step) & 1) != 0) {
      add_step({loaded_at_once<std::uint32_t>(numbers), loaded_at_once<std::uint32_t>(numbers + block_bytes)},
               0, *step);
      ++step;
      numbers += kBlockChannels;
    }
    for (; step != run.last; step += 2, numbers += 2 * kBlockChannels) {
      const auto offsets = loaded_at_once<std::int64_t>(step);
      const std::uint64_t words_of_two[2] = {loaded_at_once<std::uint64_t>(numbers),
                                             loaded_at_once<std::uint64_t>(numbers + block_bytes)};
      add_step(words_of_two, 0, static_cast<std::int32_t>(offsets));
      add_step(words_of_two, 32, static_cast<std::ptrdiff_t>(offsets >> 32));
    }
    ((words[K] = _mm512_add_epi16(words[K], sums[K])), ...);
    ((odd[K] = _mm512_add_epi16(odd[K], _mm512_srli_epi16(sums[K], 8))), ...);
  }
  ((lone.words[K][0] = words[K]), ...);
  ((lone.odd[K][0] = odd[K]), ...);
}

/// The even lanes' sums.
inline __m512i even_of(__m512i words, __m512i odd) {
  return _mm512_sub_epi16(words, _mm512_slli_epi16(odd, 8));
}

/// Packs of an even and an odd register leave eight even and eight odd lanes in each 128-bit block: back to
/// the order of lanes.
inline __m512i interleaved(__m512i packed) {
  return _mm512_shuffle_epi8(packed, _mm512_set4_epi32(0x0F070E06, 0x0D050C04, 0x0B030A02, 0x09010800));
}

/// Whether derived values go into index3 bytes at once.
inline bool derives_index(const OutputStage& stage) {
  return stage.derived_bits == 2 && stage.derived_format == kIndex3;
}

/// Everything that a call's blocks share.
struct Context {
  const OutputStage& stage;
  const ConvolutionCall& call;
  ByteTile& tile;
  ByteTile& derived_tile;
  const std::uint8_t* derived_thresholds;  ///< [3][64]: where derives_index(), each in all lanes
  std::uint8_t* open;  ///< [positions][64]: index3 bytes whose group goes on in the next block of channels
  std::ptrdiff_t block_bytes;  ///< of the weights of a block of channels
};

/// 2-bit values of consecutive output channels become index3 bytes. What a block leaves open of a group waits
/// in memory for the next one.
template <bool is_packed>
class IndexWriter {
 public:
  IndexWriter(const OutputView& view, const Context& context, const Block& block)
      : view_(view),
        open_(context.open),
        first_position_(block.first_position),
        first_group_(block.channel / kGroup),
        phase_(block.channel % kGroup),
        joins_(phase_ != 0 && block.channel == context.call.first_channel),
        channels_left_(context.call.last_channel - block.channel) {}

  /// Before the values of channel k of the block.
  template <std::size_t Positions>
  __attribute__((always_inline)) void open(int k) {
    if (k != 0) return;
#pragma GCC unroll 2
    for (std::size_t p = 0; p < Positions; ++p) {
      index_[p] = phase_ == 0 || joins_ ? _mm512_setzero_si512() : load(open_ + p * kLanes);
    }
  }

  /// One of channel k of the block in every lane.
  __attribute__((always_inline)) __m512i unit(int k) const {
    static constexpr std::uint32_t kUnits[kGroup] = {in_bytes(1), in_bytes(4), in_bytes(16)};
    const int place = phase_ + k;  // 0 .. 5
    return loaded_once(everywhere(kUnits[place < kGroup ? place : place - kGroup]));
  }

  /// How many of three thresholds each lane exceeds.
  __attribute__((always_inline)) void add(std::size_t p, __m512i unit, __mmask64 one, __mmask64 two,
                                          __mmask64 three) {
    index_[p] = _mm512_mask_add_epi8(index_[p], one, index_[p], unit);
    index_[p] = _mm512_mask_add_epi8(index_[p], two, index_[p], unit);
    index_[p] = _mm512_mask_add_epi8(index_[p], three, index_[p], unit);
  }

  /// After the values of channel k of the block.
  template <std::size_t Positions>
  __attribute__((always_inline)) void close(int k) {
    if (k >= channels_left_) return;
    const int place = phase_ + k;
    if (place == kGroup - 1 || place == 2 * kGroup - 1 || k + 1 == channels_left_) {
      const int group = first_group_ + (place < kGroup ? 0 : 1);
#pragma GCC unroll 2
      for (std::size_t p = 0; p < Positions; ++p) {
        std::uint8_t* const to = view_.at(first_position_ + static_cast<int>(p), group);
        const __m512i index = is_packed ? interleaved(index_[p]) : index_[p];
        store(to, joins_ && group == first_group_ ? _mm512_or_si512(index, load(to)) : index);
        index_[p] = _mm512_setzero_si512();
      }
    } else if (k == kBlockChannels - 1) {
#pragma GCC unroll 2
      for (std::size_t p = 0; p < Positions; ++p) store(open_ + p * kLanes, index_[p]);
    }
  }

 private:
  OutputView view_;
  std::uint8_t* open_;
  int first_position_;
  int first_group_;    ///< of the block's first channel
  int phase_;          ///< its place in that group
  bool joins_;         ///< the group's first channels belong to another call and are kept
  int channels_left_;  ///< from it to the call's last one
  __m512i index_[kPositions];
};

/// 2-bit outputs of sums that start from minus the second threshold: saturated to bytes, they still compare
/// rightly with thresholds that are closer to it than 127.
struct IndexThresholds {
  const std::uint32_t* lower_thresholds;  ///< [4]
  const std::uint32_t* upper_thresholds;
  IndexWriter<true> writer;

  IndexThresholds(const Context& context, const Block& block)
      : lower_thresholds(block.channels->lower + block.in_chunk),
        upper_thresholds(block.channels->upper + block.in_chunk),
        writer(context.call.output, context, block) {}

  template <std::size_t Positions>
  __attribute__((always_inline)) void operator()(int k, const __m512i (&words)[Positions],
                                                 const __m512i (&odd)[Positions]) {
    writer.open<Positions>(k);
    const __m512i lower = loaded_once(everywhere(lower_thresholds[k]));
    const __m512i upper = loaded_once(everywhere(upper_thresholds[k]));
    const __m512i unit = writer.unit(k);
#pragma GCC unroll 2
    for (std::size_t p = 0; p < Positions; ++p) {
      const __m512i above = _mm512_packs_epi16(even_of(words[p], odd[p]), odd[p]);
      writer.add(p, unit, _mm512_cmpgt_epi8_mask(above, lower),
                 _mm512_cmpgt_epi8_mask(above, _mm512_setzero_si512()), _mm512_cmpgt_epi8_mask(above, upper));
    }
    writer.close<Positions>(k);
  }
};

/// The same for any thresholds and formats, one byte each.
struct ThresholdBytes {
  __m512i thresholds[3];

  ThresholdBytes(const OutputStage&, const Block& block, int k)
      : thresholds{everywhere(block.channels->lower[block.in_chunk + k]), _mm512_setzero_si512(),
                   everywhere(block.channels->upper[block.in_chunk + k])} {}

  __m512i operator()(const std::uint8_t*, __m512i words, __m512i odd) const {
    const __m512i even = even_of(words, odd);
    const __m512i even_one = _mm512_set1_epi16(1);
    const __m512i odd_one = _mm512_set1_epi16(256);
    __m512i even_bytes = _mm512_setzero_si512();
    __m512i odd_bytes = _mm512_setzero_si512();
    for (const __m512i& threshold : thresholds) {
      const __mmask32 even_above = _mm512_cmpgt_epi16_mask(even, threshold);
      const __mmask32 odd_above = _mm512_cmpgt_epi16_mask(odd, threshold);
      even_bytes = _mm512_mask_add_epi16(even_bytes, even_above, even_bytes, even_one);
      odd_bytes = _mm512_mask_add_epi16(odd_bytes, odd_above, odd_bytes, odd_one);
    }
    return _mm512_or_si512(even_bytes, odd_bytes);
  }
};

enum class Residual { none, unsigned8, signed8 };

/// 8-bit outputs with or without a planar residual, of sums that start from 2^15 more. |y| < 2^31 is known.
template <Residual residual, bool is_signed>
struct Requantized {
  __m512 scale;
  __m512 offset;
  __m512 ratio;
  __m512i highest;
  __m512i exponent;

  Requantized(const OutputStage& stage, const Block& block, int k)
      : scale(_mm512_set1_ps(stage.scale[block.channel + k])),
        offset(_mm512_set1_ps(stage.offset[block.channel + k])),
        ratio(_mm512_set1_ps(stage.residual_ratio)),
        highest(_mm512_set1_epi8(static_cast<char>(stage.range.highest))),
        exponent(loaded_once(_mm512_set1_epi16(0x4B00))) {}

  /// residual_bytes: 64 lanes of this channel and position.
  __attribute__((always_inline)) __m512i operator()(const std::uint8_t* residual_bytes, __m512i words,
                                                    __m512i odd) const {
    // A 16-bit word u above 0x4B00 is the float 2^23 + u, so one subtraction gives u plus any exact integer.
    const __m512 bias = _mm512_set1_ps(8388608.0F + 32768.0F);
    __m512i residuals = _mm512_setzero_si512();
    if constexpr (residual != Residual::none) {
      residuals = loaded_once(load(residual_bytes));
      if constexpr (residual == Residual::signed8) {
        residuals = _mm512_xor_si512(residuals, _mm512_set1_epi8(-128));
      }
    }
    // Four times 16 lanes, one instruction for all of them after the other: pins say why. In each 128-bit
    // block the lanes of y[i] are first[i], first[i] + 2, first[i] + 4, first[i] + 6.
    constexpr int kFirst[4] = {0, 8, 1, 9};
    const __m512i even = even_of(words, odd);
    __m512 y[4] = {
        _mm512_castsi512_ps(_mm512_unpacklo_epi16(even, exponent)),
        _mm512_castsi512_ps(_mm512_unpackhi_epi16(even, exponent)),
        _mm512_castsi512_ps(_mm512_unpacklo_epi16(odd, exponent)),
        _mm512_castsi512_ps(_mm512_unpackhi_epi16(odd, exponent)),
    };
    const auto each = [&](auto stage) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) y[i] = stage(y[i], i);
      wait_for_pins(y[0], y[1], y[2], y[3]);
    };
    wait_for_pins(y[0], y[1], y[2], y[3]);
    // By a multiplication pipe: additions and conversions fill the others.
    each([&](__m512 value, int) { return _mm512_fmsub_ps(value, _mm512_set1_ps(1.0F), bias); });
    each([&](__m512 value, int) { return _mm512_mul_ps(value, scale); });
    each([&](__m512 value, int) { return _mm512_add_ps(value, offset); });
    if constexpr (residual != Residual::none) {
      __m512 r[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        // Byte by byte into 32 bits; an index of 0x80 gives zero.
        const int index = static_cast<int>(0x80808000U) + kFirst[i];
        r[i] = _mm512_castsi512_ps(
            _mm512_shuffle_epi8(residuals, _mm512_set4_epi32(index + 6, index + 4, index + 2, index)));
      }
      wait_for_pins(r[0], r[1], r[2], r[3]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) r[i] = _mm512_cvtepi32_ps(_mm512_castps_si512(r[i]));
      if constexpr (residual == Residual::signed8) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) r[i] = _mm512_sub_ps(r[i], _mm512_set1_ps(128.0F));
      }
      wait_for_pins(r[0], r[1], r[2], r[3]);
      each([&](__m512 value, int i) { return _mm512_fmadd_ps(r[i], ratio, value); });
    }
    __m512i q[4];  // the packs clamp
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) q[i] = _mm512_cvtps_epi32(y[i]);
    wait_for_pins(q[0], q[1], q[2], q[3]);
    const __m512i even_words = _mm512_packs_epi32(q[0], q[1]);
    const __m512i odd_words = _mm512_packs_epi32(q[2], q[3]);
    if constexpr (is_signed) return interleaved(_mm512_packs_epi16(even_words, odd_words));
    return _mm512_min_epu8(interleaved(_mm512_packus_epi16(even_words, odd_words)), highest);
  }
};

/// Planar bytes are stored at once, the others collected in a tile. Derived values go into index3 bytes, or
/// through a tile too.
template <typename Bytes>
struct ByteOutput {
  // Copies: the stores could change the originals, as far as the compiler knows.
  OutputStage stage;
  ConvolutionCall call;
  const Context& context;
  Block block;
  bool is_planar;
  bool is_index;
  IndexWriter<false> writer;

  ByteOutput(const Context& given, const Block& given_block)
      : stage(given.stage),
        call(given.call),
        context(given),
        block(given_block),
        is_planar(stage.format == kPlanar8),
        is_index(derives_index(stage)),
        writer(call.derived, context, block) {}

  template <std::size_t Positions>
  __attribute__((always_inline)) void operator()(int k, const __m512i (&words)[Positions],
                                                 const __m512i (&odd)[Positions]) {
    const int channel = block.channel + k;
    if (channel >= call.last_channel) return;
    const int tile_channel = channel % kTileChannels;
    const Bytes bytes_of(stage, block, k);
    __m512i bytes[Positions];
#pragma GCC unroll 2
    for (std::size_t p = 0; p < Positions; ++p) {
      const int position = block.first_position + static_cast<int>(p);
      bytes[p] = bytes_of(call.residual.at(position, channel), words[p], odd[p]);
      store(is_planar ? call.output.at(position, channel) : context.tile.bytes[tile_channel][p], bytes[p]);
    }
    if (is_index) {
      writer.open<Positions>(k);
      const __m512i unit = writer.unit(k);
#pragma GCC unroll 2
      for (std::size_t p = 0; p < Positions; ++p) {
        const auto above = [&](int t) __attribute__((always_inline)) {
          return _mm512_cmpgt_epu8_mask(bytes[p], load(context.derived_thresholds + t * kLanes));
        };
        writer.add(p, unit, above(0), above(1), above(2));
      }
      writer.close<Positions>(k);
    } else if (stage.derived_bits != 0) {
      for (std::size_t p = 0; p < Positions; ++p) {
        store(context.derived_tile.bytes[tile_channel][p], derive(bytes[p], stage));
      }
    }
  }
};

/// Every other combination of formats, value by value, of sums that start from 2^15 more.
struct PlainOutput {
  const Context& context;
  const Block& block;
  std::int32_t sums[kPositions][kBlockChannels][kLanes];

  PlainOutput(const Context& given, const Block& given_block) : context(given), block(given_block) {}

  template <std::size_t Positions>
  void operator()(int k, const __m512i (&words)[Positions], const __m512i (&odd)[Positions]) {
    const int channels = std::min(kBlockChannels, context.call.last_channel - block.channel);
    for (std::size_t p = 0; p < Positions; ++p) {
      alignas(64) std::uint16_t lanes[2][kLanes / 2];
      _mm512_store_si512(lanes[0], even_of(words[p], odd[p]));
      _mm512_store_si512(lanes[1], odd[p]);
      for (int lane = 0; lane < kLanes; ++lane) sums[p][k][lane] = lanes[lane % 2][lane / 2] - 32768;
      if (k < kBlockChannels - 1) continue;
      write_plainly(context.stage, context.call, block.first_position + static_cast<int>(p), block.channel,
                    channels, sums[p]);
    }
  }
};

/// Two positions of four channels.
template <typename Output>
void compute_pair(const Context& context, const Block& block) {
  Output output(context, block);
  accumulate(std::make_index_sequence<kPositions>{}, block, output);
}

/// One position of four or eight channels.
template <typename Output>
void compute_lone(const Context& context, const Block& block, int channels) {
  LoneSums sums;
  if (channels == kBlockChannels) {
    accumulate_lone(std::make_index_sequence<kBlockChannels>{}, block, 0, sums);
  } else {
    accumulate_lone(std::make_index_sequence<2 * kBlockChannels>{}, block, context.block_bytes, sums);
  }
  Block of_four = block;
  for (int first = 0; first < channels; first += kBlockChannels) {
    Output output(context, of_four);
#pragma GCC unroll 4
    for (int k = 0; k < kBlockChannels; ++k) output(k, sums.words[first + k], sums.odd[first + k]);
    of_four.in_chunk += kBlockChannels;
    of_four.channel += kBlockChannels;
  }
}

/// Of blocks of 1 and of 2 positions.
struct Computes {
  void (*lone)(const Context& context, const Block& block, int channels);
  void (*pair)(const Context& context, const Block& block);
};
template <typename Output>
constexpr Computes kComputes = {compute_lone<Output>, compute_pair<Output>};

/// How a call's sums become its outputs.
struct Way {
  Computes computes;
  bool uses_thresholds = false;
  bool uses_tile = false;  ///< for outputs that are not planar
  bool uses_derived_tile = false;
};

Way choose_way(const OutputStage& stage, const ConvolutionCall& call) {
  const Way plain{kComputes<PlainOutput>};
  const auto bytes = [&](const Computes& computes) {
    const bool derived_tile = stage.derived_bits != 0 && !derives_index(stage);
    return Way{computes, stage.thresholds != nullptr, stage.format != kPlanar8, derived_tile};
  };
  if (!is_common(stage, kPlanar8)) return plain;
  if (stage.thresholds != nullptr) return bytes(kComputes<ByteOutput<ThresholdBytes>>);
  if (!stays_convertible(stage, call, 32767)) return plain;
  if (stage.range.lowest < 0) {
    return stage.has_residual() ? plain : bytes(kComputes<ByteOutput<Requantized<Residual::none, true>>>);
  }
  if (!stage.has_residual()) return bytes(kComputes<ByteOutput<Requantized<Residual::none, false>>>);
  return bytes(stage.residual_signed ? kComputes<ByteOutput<Requantized<Residual::signed8, false>>>
                                     : kComputes<ByteOutput<Requantized<Residual::unsigned8, false>>>);
}

/// What `count` output channels from `first` need, given the sums of their tables' minima: sum + start in
/// words. Returns whether thresholds 1 and 3 are in bytes, which they are wherever they fit. Plain loops that
/// become vectors: a small map has many calls.
bool prepare_channels(const OutputStage& stage, bool uses_thresholds, int first, int count,
                      const std::int32_t* minimum, Channels& channels) {
  std::int32_t start[kChunk];
  for (int k = 0; k < count; ++k) start[k] = 32768 + minimum[k];
  bool fits_bytes = false;
  if (uses_thresholds) {
    std::int32_t thresholds[3][kChunk];
    for (int t = 0; t < 3; ++t) {
      const std::int16_t* of_stage = stage.thresholds + t * stage.padded_channels + first;
      for (int k = 0; k < count; ++k) {
        // Sums minus their minimum are 0 .. kLargestSum, so this changes no comparison.
        thresholds[t][k] = std::min(std::max(of_stage[k] - minimum[k], -1), kLargestSum);
      }
    }
    std::int32_t lowest = 0;
    std::int32_t highest = 0;
    for (int k = 0; k < count; ++k) {
      start[k] = -thresholds[1][k];
      thresholds[0][k] += start[k];
      thresholds[2][k] += start[k];
      lowest = std::min(lowest, thresholds[0][k]);
      highest = std::max(highest, thresholds[2][k]);
    }
    fits_bytes = stage.format == kIndex3 && stage.derived_bits == 0 && lowest >= -128 && highest <= 126;
    for (int k = 0; k < count; ++k) {
      channels.lower[k] = fits_bytes ? in_bytes(thresholds[0][k]) : in_words(thresholds[0][k]);
      channels.upper[k] = fits_bytes ? in_bytes(thresholds[2][k]) : in_words(thresholds[2][k]);
    }
  }
  for (int k = 0; k < count; ++k) channels.start[k] = in_words(start[k]);
  for (int k = 0; k < count; ++k) channels.start_words[k] = in_words(257 * start[k]);
  return fits_bytes;
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
  const Way way = choose_way(stage, call);

  ByteTile tile;
  ByteTile derived_tile;
  alignas(64) std::uint8_t open[kPositions * kLanes];
  alignas(64) std::uint8_t derived_thresholds[3][kLanes];
  for (int t = 0; t < 3 && derives_index(stage); ++t) {
    std::memset(derived_thresholds[t], stage.derived_thresholds[t], kLanes);
  }
  const Context context{stage, call, tile, derived_tile, derived_thresholds[0], open, block_bytes};
  int chunk_end = 0;
  for (int chunk = call.first_channel; chunk < call.last_channel; chunk = chunk_end) {
    // Chunks end where groups do.
    chunk_end = std::min(chunk - chunk % kTileChannels + kChunk, call.last_channel);
    const int count = (chunk_end - chunk + kBlockChannels - 1) / kBlockChannels * kBlockChannels;
    std::int32_t minimum[kChunk] = {};
    for (const Tap& tap : call.taps) {
      const std::int32_t* of_tap = minima + std::ptrdiff_t{tap.index} * padded + chunk;
      for (int k = 0; k < count; ++k) minimum[k] += of_tap[k];
    }
    Channels channels;
    const bool in_bytes = prepare_channels(stage, way.uses_thresholds, chunk, count, minimum, channels);
    const Computes& computes = in_bytes ? kComputes<IndexThresholds> : way.computes;
    const bool uses_tiles = (way.uses_tile && !in_bytes) || way.uses_derived_tile;
    for (int first = 0, left = call.positions; left > 0;) {
      const int positions = left / ((left + kPositions - 1) / kPositions);
      const std::uint8_t* input = call.input.at(first, 0);
      const auto block_at = [&](int channel) {
        return Block{input,
                     call.input.position_stride,
                     &steps,
                     tables,
                     weights + channel / kBlockChannels * block_bytes,
                     &channels,
                     channel - chunk,
                     first,
                     channel};
      };
      if (positions == 1 && !uses_tiles) {
        for (int channel = chunk; channel < chunk_end;) {
          const int channels_together =
              channel + kBlockChannels < chunk_end ? 2 * kBlockChannels : kBlockChannels;
          computes.lone(context, block_at(channel), channels_together);
          channel += channels_together;
        }
        ++first;
        --left;
        continue;
      }
      for (int tile_first = chunk - chunk % kTileChannels; tile_first < chunk_end;
           tile_first += kTileChannels) {
        const int before = std::max(chunk - tile_first, 0);  // channels of another call
        const int tile_channels = std::min(kTileChannels, chunk_end - tile_first);
        for (int k = before; k < tile_channels; k += kBlockChannels) {
          const Block block = block_at(tile_first + k);
          if (positions == 1) {
            computes.lone(context, block, kBlockChannels);
          } else {
            computes.pair(context, block);
          }
        }
        if (way.uses_tile && !in_bytes) {
          store_tile(call.output, stage.format, first, positions, tile_first, tile_channels, tile, kLanes,
                     before);
        }
        if (way.uses_derived_tile) {
          store_tile(call.derived, stage.derived_format, first, positions, tile_first, tile_channels,
                     derived_tile, kLanes, before);
        }
      }
      first += positions;
      left -= positions;
    }
  }
}

constexpr std::array kRows = {
    ConvolutionKernel{"int2_vbmi", InstructionSet::avx512_vbmi, 2, 2, kLanes, kBlockChannels, kIndex3,
                      supports, pack, run},
};

}  // namespace

std::span<const ConvolutionKernel> int2_avx512_vbmi_kernels() {
  return kRows;
}

}  // namespace nibble
