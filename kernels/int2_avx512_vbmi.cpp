// 2-bit weights, 2-bit activations, AVX-512 VBMI: a look-up (vpermb) and an 8-bit addition for 192 products.
//
//   activations (index3), 64 lanes:   byte = a0 | a1 << 2 | a2 << 4, six bits of an index
//   table of three weights, 64 bytes (look_up_tables.h)
//
// Four levels give 64 tables, 4 KB a layer, and as much again where there are tables of u, for runs of twice
// the length; three weights are stored as their table's number, one byte. Runs, their proof and u are
// look_up_tables.h's.
//
// Blocks of up to 6 positions x 4 output channels: 24 sums of a run, 4 tables, indices and products are the
// 32 registers, and a table that is loaded serves 6 look-ups. The sums of a run are stored as bytes; the
// output widens two runs at a time: their bytes side by side are what vpmaddubsw adds, times 2 where tables
// are of u.
//
// Additions saturate although no sum can: on Zen 5 saturating additions have the two pipes that look-ups do
// not have, while any pipe may get a plain one and then keeps a look-up waiting.
//
// A 2-bit output is how many of three thresholds a sum exceeds. Where the third is at most 126 above the
// first, a sum that starts from minus the first is saturated to a byte and looked up in 128 bytes of its
// output channel (vpermi2b). Else sums start from minus the second threshold and are compared as bytes with 0
// and the other two, wherever these are at most 128 below and 126 above. The next layer's input is looked up
// in the same way by a byte of the stream where its third threshold is at most 126, which it is while x
// spans less than half of the stream; else it goes through a tile.
//
// What the input's channels leave over of groups of three, the taps of a row share:
// int2_inputs_avx512_vbmi.h.
//
//   weights, program:  look_up_tables.h, numbers in blocks of 4 output channels

#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/int2_inputs_avx512_vbmi.h"
#include "kernels/kernels.h"
#include "kernels/look_up_tables.h"
#include "kernels/output_avx512.h"
#include "kernels/steps.h"

namespace nibble {
namespace {

constexpr int kHalvedChannels = 16;  ///< output channels of layers whose tables may be of u, at least
constexpr int kManyChannels = 48;    ///< of calls for which sums of activations pay even if nothing is shared
constexpr int kManyPositions = 6;    ///< of calls for which tables of outputs pay
constexpr int kTables = LookUpTables<kIndex3>::kTables;
constexpr int kChunk = 6 * kTileChannels;  ///< output channels that are prepared together

int groups_of(const ConvolutionShape& shape) {
  return group_count(kIndex3, shape.input_channels);
}
int padded_channels_of(const ConvolutionShape& shape) {
  return (shape.output_channels + kBlockChannels - 1) / kBlockChannels * kBlockChannels;
}

StepOrder order_of(const ConvolutionShape& shape) {
  return {shape, kIndex3, true};
}

int run_length_of(const ConvolutionLayer& layer) {
  return proven_run_length<kIndex3>(layer, order_of(layer.shape), false, kLargestSum);
}

/// 0 where tables of u spare nothing: one run is enough, or few output channels share the sum of activations.
/// Not shorter than run_length, as |u| <= |w| for odd w: what fits its runs has room for these.
int halved_run_length_of(const ConvolutionLayer& layer, int run_length) {
  if (!all_odd(layer.levels) || layer.shape.kernel == 1 || layer.shape.output_channels < kHalvedChannels ||
      run_length >= order_of(layer.shape).count()) {
    return 0;
  }
  return proven_run_length<kIndex3>(layer, order_of(layer.shape), true, kLargestSum);
}

bool supports(const ConvolutionLayer& layer) {
  return steps_fit(layer.shape, groups_of(layer.shape), run_length_of(layer));
}

[[gnu::cold, gnu::flatten]] PackedConvolution pack(const ConvolutionLayer& layer) {
  const int run_length = run_length_of(layer);
  return pack_tables<kIndex3>(layer, order_of(layer.shape), padded_channels_of(layer.shape), kBlockChannels,
                              1, run_length, halved_run_length_of(layer, run_length));
}

/// Values of 0 .. 127 by one look-up (vpermi2b).
struct alignas(64) ValueTable {
  std::uint8_t values[2 * kLanes];

  static constexpr int kLast = 2 * kLanes - 1;

  /// How many of three ascending thresholds a value exceeds, times `unit`. All below kLast, so that larger
  /// values may be taken for it.
  void fill_with_counts(int one, int two, int three, int unit) {
    alignas(64) static constexpr auto kNumbers = [] {
      std::array<std::uint8_t, kLast + 1> numbers{};
      for (std::size_t v = 0; v < numbers.size(); ++v) numbers[v] = static_cast<std::uint8_t>(v);
      return numbers;
    }();
    const __m512i units = _mm512_set1_epi8(static_cast<char>(unit));
    for (int half = 0; half < 2; ++half) {
      const __m512i numbers = load(kNumbers.data() + half * kLanes);
      const auto above = [&](int threshold) {
        return _mm512_cmpgt_epi8_mask(numbers, _mm512_set1_epi8(static_cast<char>(threshold)));
      };
      __m512i count = _mm512_maskz_mov_epi8(above(one), units);
      count = _mm512_mask_add_epi8(count, above(two), count, units);
      count = _mm512_mask_add_epi8(count, above(three), count, units);
      store(values + half * kLanes, count);
    }
  }
};

constexpr std::uint32_t in_words(int value) {
  return (static_cast<std::uint32_t>(value) & 0xFFFFU) * 0x00010001U;
}
constexpr std::uint32_t in_bytes(int value) {
  return (static_cast<std::uint32_t>(value) & 0xFFU) * 0x01010101U;
}

/// Where two bits of each of four output channels belong among the index3 bytes, of three channels each.
///
///   channels before in the group:  0   a b c | d       open: d
///                                  1   . a b | c d     open: c d
///                                  2   . . a | b c d
struct IndexFields {
  int group;                 ///< of the first channel
  bool joins;                ///< its first channels belong to another call: they are kept
  bool continues;            ///< they are the open ones of the block before
  bool completes_next;       ///< the next group is written now
  std::uint64_t left;        ///< shift to the place in the group, in bits
  std::uint64_t right;       ///< shift to the place in the next group
  std::uint32_t group_mask;  ///< bits of channels that exist
  std::uint32_t next_mask;

  IndexFields() = default;
  IndexFields(const ConvolutionCall& call, int channel) {
    const int before = channel % kGroup;
    const int channels = std::min(call.last_channel - channel, kBlockChannels);
    group = channel / kGroup;
    joins = before != 0 && channel == call.first_channel;
    continues = before != 0 && !joins;
    const bool is_last = channel + channels == call.last_channel;
    completes_next = (before == 2 || is_last) && before + channels > kGroup;
    left = 2 * static_cast<unsigned>(before);
    right = 2 * kGroup - left;
    const int existing = (1 << 2 * channels) - 1;
    group_mask = in_bytes(existing << left & 0x3F);
    next_mask = in_bytes(existing >> right);
  }
};

/// What a call needs of its output channels, words and bytes the same in all lanes of 32 bits.
struct Channels {
  IndexFields fields[kChunk / kBlockChannels];
  std::int32_t minimum[kChunk];  ///< sum = what is added up + minimum
  float bias[kChunk];            ///< minus minimum, and the 2^23 of a float whose last bits are the sum
  std::uint32_t start[kChunk];   ///< in words: minus the second threshold, of what is added up
  std::uint32_t lower[kChunk];   ///< thresholds 1 and 3 minus threshold 2, in bytes or words
  std::uint32_t upper[kChunk];
  bool has_tables[kChunk / kBlockChannels];  ///< four channels, those below
  std::uint32_t table_start[kChunk];         ///< in words: minus the first threshold, of what is added up
  ValueTable tables[kChunk];                 ///< outputs of sums minus it, in the two bits of the channel
};

inline __m512i everywhere(std::uint32_t value) {
  return _mm512_set1_epi32(static_cast<int>(value));
}

/// One register block.
struct Block {
  const std::uint8_t* input;  ///< of its first position
  std::ptrdiff_t stride;
  const SharedTapSteps* steps;
  const std::uint8_t* tables;
  const std::uint8_t* weights;
  const Channels* channels;
  int in_chunk;  ///< index of the first of the four in `channels`
  int positions;
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
inline __attribute__((always_inline)) std::uint64_t place_of(std::uint64_t word, int first) {
  static_assert(kTableBytes == 64);
  return std::rotr(word, first - 6) & (kTables - 1) * kTableBytes;
}

/// Sums of each run of a block, bytes.
struct RunSums {
  const std::uint8_t* first;  ///< [4 channels][64 lanes] of the first run's first position
  std::ptrdiff_t position_bytes;
  std::ptrdiff_t run_bytes;
  int runs;
};

/// Looks up all steps of some positions times one or two blocks of four output channels; the second block's
/// weights follow block_bytes behind the first one's. run_sums: [run][position][channel][64 lanes].
template <std::size_t kBlocks, std::size_t... P, std::size_t... K>
inline __attribute__((always_inline)) void accumulate_block(std::index_sequence<P...>,
                                                            std::index_sequence<K...>, const Block& block,
                                                            std::ptrdiff_t block_bytes,
                                                            std::uint8_t* run_sums) {
  constexpr std::size_t kChannels = sizeof...(K);
  constexpr std::size_t kSums = sizeof...(P) * kChannels;
  // As integers: lines of SharedTapSteps are reached from here too.
  const auto input = reinterpret_cast<std::intptr_t>(block.input);
  const std::intptr_t position[] = {input + static_cast<std::ptrdiff_t>(P) * block.stride...};
  const auto index_at = [&](std::size_t p, std::ptrdiff_t offset) __attribute__((always_inline)) {
    return loaded_once(load(reinterpret_cast<const std::uint8_t*>(position[p] + offset)));
  };
  const std::uint8_t* const tables = block.tables;
  const std::uint8_t* const weights = block.weights;
  for (const RunOf<std::ptrdiff_t>& run : *block.steps) {
    const std::uint8_t* numbers = weights + kBlockChannels * run.weights;
    const std::ptrdiff_t* step = run.first;
    __m512i sums[kSums];
    // Bits of channel k of a step: 8 * k, behind `first`, in the word of its block.
    const auto table_of = [&](const std::uint64_t(&words)[2], int first, std::size_t k)
        __attribute__((always_inline)) {
      const int bit = first + 8 * static_cast<int>(k % kBlockChannels);
      const __m512i table = _mm512_load_si512(tables + place_of(words[k / kBlockChannels], bit));
      return sizeof...(P) > 1 ? loaded_once(table) : table;
    };
    const auto words_at = [&]<typename Word>(const std::uint8_t* from, Word, std::uint64_t(&words)[2])
        __attribute__((always_inline)) {
      words[0] = loaded_at_once<Word>(from);
      if constexpr (kBlocks == 2) words[1] = loaded_at_once<Word>(from + block_bytes);
    };
    const auto add_step = [&](const std::uint64_t(&words)[2], int first, std::ptrdiff_t offset)
        __attribute__((always_inline)) {
      const __m512i of_channel[kChannels] = {table_of(words, first, K)...};
      const auto add = [&](std::size_t p) __attribute__((always_inline)) {
        const __m512i index = index_at(p, offset);
        __m512i products[kChannels] = {_mm512_permutexvar_epi8(index, of_channel[K])...};
        if constexpr (kBlocks == 1) keep_together(products[0], products[1], products[2], products[3]);
        ((sums[p * kChannels + K] = _mm512_adds_epu8(sums[p * kChannels + K], products[K])), ...);
      };
      (add(P), ...);
    };
    std::uint64_t words[2] = {};
    {
      words_at(numbers, std::uint32_t{}, words);
      const __m512i of_channel[kChannels] = {table_of(words, 0, K)...};
      const auto begin = [&](std::size_t p) __attribute__((always_inline)) {
        const __m512i index = index_at(p, *step);
        ((sums[p * kChannels + K] = _mm512_permutexvar_epi8(index, of_channel[K])), ...);
      };
      (begin(P), ...);
      ++step;
      numbers += kBlockChannels;
    }
    if (((run.last - step) & 1) != 0) {
      words_at(numbers, std::uint32_t{}, words);
      add_step(words, 0, *step);
      ++step;
      numbers += kBlockChannels;
    }
    // Two steps a turn, their eight numbers by one load: loads and the instructions between look-ups are what
    // bounds CPUs with two look-ups a cycle.
    for (; step != run.last; step += 2, numbers += 2 * kBlockChannels) {
      words_at(numbers, std::uint64_t{}, words);
      add_step(words, 0, step[0]);
      add_step(words, 32, step[1]);
    }
    const auto store_position = [&](std::size_t p) __attribute__((always_inline)) {
      (store(run_sums + (p * kChannels + K) * kLanes, sums[p * kChannels + K]), ...);
    };
    (store_position(P), ...);
    run_sums += kSums * kLanes;
  }
}

using Accumulate = void (*)(const Block& block, std::ptrdiff_t block_bytes, std::uint8_t* run_sums);

template <std::size_t kPositionCount, std::size_t kBlocks>
void accumulate(const Block& block, std::ptrdiff_t block_bytes, std::uint8_t* run_sums) {
  accumulate_block<kBlocks>(std::make_index_sequence<kPositionCount>{},
                            std::make_index_sequence<kBlocks * kBlockChannels>{}, block, block_bytes,
                            run_sums);
}

/// Few positions are two blocks of channels at a time: an index that is loaded serves eight look-ups.
constexpr int kFewPositions = 2;
static_assert(2 * kFewPositions <= kPositions);  // of what run_sums holds
constexpr Accumulate kAccumulateTwoBlocks[kFewPositions] = {accumulate<1, 2>, accumulate<2, 2>};
constexpr Accumulate kAccumulate[kPositions] = {accumulate<1, 1>, accumulate<2, 1>, accumulate<3, 1>,
                                                accumulate<4, 1>, accumulate<5, 1>, accumulate<6, 1>};

/// Adds up the runs of `count` registers, all times factor; `from` is where those of the first run are. Two
/// runs at a time: their bytes side by side are what vpmaddubsw adds.
template <std::size_t count>
inline __attribute__((always_inline)) void widen(const std::uint8_t* from, std::ptrdiff_t run_bytes, int runs,
                                                 __m512i factor, Sums (&sums)[count]) {
  const auto sum_of = [&](__m512i one, __m512i other) __attribute__((always_inline)) {
    return Sums{_mm512_maddubs_epi16(_mm512_unpacklo_epi8(one, other), factor),
                _mm512_maddubs_epi16(_mm512_unpackhi_epi8(one, other), factor)};
  };
  const int first_runs = (runs & 1) != 0 ? 1 : 2;
  if (first_runs == 1) {
#pragma GCC unroll 4
    for (std::size_t k = 0; k < count; ++k) {
      sums[k] = sum_of(loaded_once(load(from + k * kLanes)), _mm512_setzero_si512());
    }
  } else {
#pragma GCC unroll 4
    for (std::size_t k = 0; k < count; ++k) {
      sums[k] =
          sum_of(loaded_once(load(from + k * kLanes)), loaded_once(load(from + run_bytes + k * kLanes)));
    }
  }
  for (int r = first_runs; r != runs; r += 2) {
    from += (r == first_runs ? first_runs : 2) * run_bytes;
#pragma GCC unroll 4
    for (std::size_t k = 0; k < count; ++k) {
      sums[k] = sums[k] + sum_of(loaded_once(load(from + k * kLanes)),
                                 loaded_once(load(from + run_bytes + k * kLanes)));
    }
  }
}

/// Whether derived values go into index3 bytes at once.
inline bool derives_index(const OutputStage& stage) {
  return stage.derived_bits == 2 && stage.derived_format == kIndex3 &&
         stage.derived_thresholds[2] < ValueTable::kLast;
}

struct LoadedTable {
  __m512i low;
  __m512i high;

  LoadedTable() = default;
  explicit LoadedTable(const ValueTable& table)
      : low(_mm512_load_si512(table.values)), high(_mm512_load_si512(table.values + kLanes)) {}

  /// The values for bytes of 0 .. 255.
  __attribute__((always_inline)) __m512i operator[](__m512i bytes) const {
    return _mm512_permutex2var_epi8(low, _mm512_min_epu8(bytes, _mm512_set1_epi8(ValueTable::kLast)), high);
  }
};

/// Everything that a call's blocks share.
struct Context {
  const OutputStage& stage;
  const ConvolutionCall& call;
  ByteTile& tile;
  ByteTile& derived_tile;
  const ValueTable* derived_tables;  ///< where derives_index(), for each of four channels
  std::uint8_t* open;  ///< [positions][64]: index3 bytes whose group goes on in the next block of channels
  const ActivationSums* activation_sums;  ///< nullptr: tables are of the weights themselves
};

/// Bytes of a block: 64 of each position and channel.
template <typename Byte>
struct Plane {
  Byte* first;
  std::ptrdiff_t position_stride;
  std::ptrdiff_t channel_stride;

  Byte* at(int position) const { return first + position * position_stride; }
};

/// How many of three thresholds each byte of channel k exceeds, in that channel's two bits of four.
inline __attribute__((always_inline)) __m512i count_of(int k, __mmask64 one, __mmask64 two, __mmask64 three) {
  static constexpr std::uint32_t kUnits[kBlockChannels] = {in_bytes(1), in_bytes(4), in_bytes(16),
                                                           in_bytes(64)};
  const __m512i unit = loaded_once(everywhere(kUnits[k]));
  __m512i count = _mm512_maskz_mov_epi8(one, unit);
  count = _mm512_mask_add_epi8(count, two, count, unit);
  return _mm512_mask_add_epi8(count, three, count, unit);
}

/// 2-bit values of four output channels become index3 bytes, each of three. What a block leaves open of a
/// group waits in memory for the next one.
class IndexWriter {
 public:
  IndexWriter(const OutputView& view, const Context& context, const Block& block)
      : fields_(block.channels->fields[block.in_chunk / kBlockChannels]),
        open_(context.open),
        group_{view.at(block.first_position, fields_.group), view.position_stride, 0},
        next_(fields_.completes_next
                  ? Plane<std::uint8_t>{group_.first + view.group_stride, view.position_stride, 0}
                  : Plane<std::uint8_t>{open_, kLanes, 0}),
        left_(_mm_loadu_si64(&fields_.left)),
        right_(_mm_loadu_si64(&fields_.right)),
        group_mask_(everywhere(fields_.group_mask)),
        next_mask_(everywhere(fields_.next_mask)) {}

  /// four: of position p, two bits a channel.
  __attribute__((always_inline)) void operator()(int p, __m512i four) const {
    __m512i group = _mm512_and_si512(_mm512_sll_epi16(four, left_), group_mask_);
    const __m512i next = _mm512_and_si512(_mm512_srl_epi16(four, right_), next_mask_);
    if (fields_.continues) group = _mm512_or_si512(group, load(open_ + p * kLanes));
    if (fields_.joins) group = _mm512_or_si512(group, load(group_.at(p)));
    store(group_.at(p), group);
    store(next_.at(p), next);
  }

 private:
  IndexFields fields_;
  std::uint8_t* open_;
  Plane<std::uint8_t> group_;
  Plane<std::uint8_t> next_;
  __m128i left_;
  __m128i right_;
  __m512i group_mask_;
  __m512i next_mask_;
};

/// Where nothing is written by it.
struct NoIndexWriter {
  NoIndexWriter(const OutputView&, const Context&, const Block&) {}
};

/// 2-bit outputs of sums that start from minus the second threshold: saturated to bytes, they still compare
/// rightly with thresholds that are at most 128 below and 126 above it.
struct IndexThresholds {
  __m512i start[kBlockChannels];
  __m512i lower[kBlockChannels];
  __m512i upper[kBlockChannels];
  IndexWriter write;

  IndexThresholds(const Context& context, const Block& block) : write(context.call.output, context, block) {
#pragma GCC unroll 4
    for (int k = 0; k < kBlockChannels; ++k) {
      start[k] = everywhere(block.channels->start[block.in_chunk + k]);
      lower[k] = everywhere(block.channels->lower[block.in_chunk + k]);
      upper[k] = everywhere(block.channels->upper[block.in_chunk + k]);
    }
  }

  __attribute__((always_inline)) void operator()(int p, const Sums (&sums)[kBlockChannels]) const {
    __m512i four = _mm512_setzero_si512();  // joined, not counted on, so that no channel waits for another
#pragma GCC unroll 4
    for (int k = 0; k < kBlockChannels; ++k) {
      const Sums sum = sums[k] + Sums{start[k], start[k]};
      const __m512i above = _mm512_packs_epi16(sum.low, sum.high);
      four = _mm512_or_si512(four, count_of(k, _mm512_cmpgt_epi8_mask(above, lower[k]),
                                            _mm512_cmpgt_epi8_mask(above, _mm512_setzero_si512()),
                                            _mm512_cmpgt_epi8_mask(above, upper[k])));
    }
    write(p, four);
  }
};

/// The same where first and third threshold are closer to each other, by a look-up: on Zen 5 a comparison
/// and the addition under its mask take as long as six other instructions.
struct IndexTables {
  __m512i start[kBlockChannels];
  LoadedTable tables[kBlockChannels];
  IndexWriter write;

  IndexTables(const Context& context, const Block& block) : write(context.call.output, context, block) {
#pragma GCC unroll 4
    for (int k = 0; k < kBlockChannels; ++k) {
      start[k] = everywhere(block.channels->table_start[block.in_chunk + k]);
      tables[k] = LoadedTable(block.channels->tables[block.in_chunk + k]);
    }
  }

  __attribute__((always_inline)) void operator()(int p, const Sums (&sums)[kBlockChannels]) const {
    __m512i four = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int k = 0; k < kBlockChannels; ++k) {
      const Sums sum = sums[k] + Sums{start[k], start[k]};
      four = _mm512_or_si512(four, tables[k][_mm512_packus_epi16(sum.low, sum.high)]);
    }
    write(p, four);
  }
};

/// The same for any thresholds and formats, one byte each.
struct ThresholdBytes {
  static constexpr bool kDerives = false;
  __m512i start;
  __m512i thresholds[3];

  ThresholdBytes(const OutputStage&, const Block& block, int k)
      : start(everywhere(block.channels->start[block.in_chunk + k])),
        thresholds{everywhere(block.channels->lower[block.in_chunk + k]), _mm512_setzero_si512(),
                   everywhere(block.channels->upper[block.in_chunk + k])} {}

  __m512i operator()(const std::uint8_t*, const Sums& given) const {
    const Sums sums = given + Sums{start, start};
    const __m512i one = _mm512_set1_epi16(1);
    __m512i low = _mm512_setzero_si512();
    __m512i high = _mm512_setzero_si512();
    for (const __m512i& threshold : thresholds) {
      low = _mm512_mask_add_epi16(low, _mm512_cmpgt_epi16_mask(sums.low, threshold), low, one);
      high = _mm512_mask_add_epi16(high, _mm512_cmpgt_epi16_mask(sums.high, threshold), high, one);
    }
    return _mm512_packus_epi16(low, high);
  }
};

enum class Residual { none, unsigned8, signed8 };

/// 8-bit outputs with or without a planar residual. |y| < 2^31 is known.
template <Residual residual, bool is_signed>
struct Requantized {
  static constexpr bool kDerives = !is_signed;  ///< often enough that deriving without a tile pays

  __m512 bias;
  __m512 scale;
  __m512 offset;
  __m512 ratio;
  bool is_clamped;  ///< to less than what the packs clamp to
  __m512i highest;
  __m512i exponent;

  Requantized(const OutputStage& stage, const Block& block, int k)
      : bias(_mm512_set1_ps(block.channels->bias[block.in_chunk + k])),
        scale(_mm512_set1_ps(stage.scale[block.channel + k])),
        offset(_mm512_set1_ps(stage.offset[block.channel + k])),
        ratio(_mm512_set1_ps(stage.residual_ratio)),
        is_clamped(stage.range.highest < 255),
        highest(_mm512_set1_epi8(static_cast<char>(stage.range.highest))),
        exponent(loaded_once(_mm512_set1_epi16(0x4B00))) {}

  /// residual_bytes: 64 lanes of this channel and position.
  __attribute__((always_inline)) __m512i operator()(const std::uint8_t* residual_bytes,
                                                    const Sums& sums) const {
    const auto residuals = [&]() __attribute__((always_inline)) {
      const __m512i bytes = load(residual_bytes);
      return residual == Residual::signed8 ? _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)) : bytes;
    };
    // Four times 16 lanes; in each 128-bit block part i has lanes 4 i .. 4 i + 3.
    __m512i q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      // A 16-bit word u above 0x4B00 is the float 2^23 + u, so one subtraction gives u plus any exact
      // integer.
      const __m512i words = i < 2 ? sums.low : sums.high;
      const __m512i u =
          i % 2 == 0 ? _mm512_unpacklo_epi16(words, exponent) : _mm512_unpackhi_epi16(words, exponent);
      __m512 y = _mm512_sub_ps(_mm512_castsi512_ps(u), bias);
      y = _mm512_add_ps(_mm512_mul_ps(y, scale), offset);
      if constexpr (residual != Residual::none) {
        // Byte by byte into 32 bits; an index of 0x80 gives zero.
        const int index = static_cast<int>(0x80808000U) + 4 * i;
        __m512 r = _mm512_cvtepi32_ps(
            _mm512_shuffle_epi8(residuals(), _mm512_set4_epi32(index + 3, index + 2, index + 1, index)));
        if constexpr (residual == Residual::signed8) r = _mm512_sub_ps(r, _mm512_set1_ps(128.0F));
        y = _mm512_fmadd_ps(r, ratio, y);
      }
      q[i] = loaded_once(_mm512_cvtps_epi32(y));  // in this order; the packs clamp
    }
    const __m512i low = _mm512_packs_epi32(q[0], q[1]);
    const __m512i high = _mm512_packs_epi32(q[2], q[3]);
    if constexpr (is_signed) return _mm512_packs_epi16(low, high);
    const __m512i bytes = _mm512_packus_epi16(low, high);
    return is_clamped ? _mm512_min_epu8(bytes, highest) : bytes;
  }
};

/// Planar bytes are stored at once, the others collected in a tile. Derived values go into index3 bytes, or
/// through a tile too.
template <typename Bytes, bool derives>
struct ByteOutput {
  const OutputStage& stage;
  int channels;
  const ValueTable* derived_tables;
  Plane<const std::uint8_t> residual;
  Plane<std::uint8_t> output;
  Plane<std::uint8_t> derived;  ///< in a tile
  std::conditional_t<derives, IndexWriter, NoIndexWriter> write_index;
  Bytes bytes_of[kBlockChannels];

  ByteOutput(const Context& context, const Block& block)
      : stage(context.stage),
        channels(std::min(context.call.last_channel - block.channel, kBlockChannels)),
        derived_tables(context.derived_tables),
        residual{context.call.residual.at(block.first_position, block.channel),
                 context.call.residual.position_stride, context.call.residual.group_stride},
        output(stage.format == kPlanar8
                   ? Plane<std::uint8_t>{context.call.output.at(block.first_position, block.channel),
                                         context.call.output.position_stride,
                                         context.call.output.group_stride}
                   : in_tile(context.tile, block)),
        derived(in_tile(context.derived_tile, block)),
        write_index(context.call.derived, context, block),
        bytes_of{Bytes(stage, block, 0), Bytes(stage, block, 1), Bytes(stage, block, 2),
                 Bytes(stage, block, 3)} {}

  __attribute__((always_inline)) void operator()(int p, const Sums (&sums)[kBlockChannels]) const {
    __m512i four = _mm512_setzero_si512();  // joined, not counted on, so that no channel waits for another
#pragma GCC unroll 4
    for (int k = 0; k < kBlockChannels; ++k) {
      if (k >= channels) break;
      const __m512i bytes = bytes_of[k](residual.at(p) + k * residual.channel_stride, sums[k]);
      store(output.at(p) + k * output.channel_stride, bytes);
      if constexpr (derives) {
        four = _mm512_or_si512(four, LoadedTable(derived_tables[k])[bytes]);
      } else if (stage.derived_bits != 0) {
        store(derived.at(p) + k * derived.channel_stride, derive(bytes, stage));
      }
    }
    if constexpr (derives) write_index(p, four);
  }

 private:
  static Plane<std::uint8_t> in_tile(ByteTile& tile, const Block& block) {
    return {tile.bytes[block.channel % kTileChannels][0], kLanes, kTilePositions * kLanes};
  }
};

/// Every other combination of formats, value by value.
struct PlainOutput {
  const Context& context;
  const Block& block;

  PlainOutput(const Context& given, const Block& given_block) : context(given), block(given_block) {}

  void operator()(int p, const Sums (&of_channels)[kBlockChannels]) {
    std::int32_t sums[kBlockChannels][kLanes];
    const int channels = std::min(kBlockChannels, context.call.last_channel - block.channel);
    for (int k = 0; k < kBlockChannels; ++k) {
      alignas(64) std::uint16_t words[2][kLanes / 2];
      _mm512_store_si512(words[0], of_channels[k].low);
      _mm512_store_si512(words[1], of_channels[k].high);
      for (int lane = 0; lane < kLanes; ++lane) {
        sums[k][lane] =
            words[lane / 8 % 2][lane / 16 * 8 + lane % 8] + block.channels->minimum[block.in_chunk + k];
      }
    }
    write_plainly(context.stage, context.call, block.first_position + p, block.channel, channels, sums);
  }
};

/// A block's sums become outputs.
template <typename Output>
void finish(const Context& context, const Block& block, const RunSums& given_sums) {
  Output output(context, block);
  const ActivationSums* const activation_sums = context.activation_sums;
  const __m512i factor = _mm512_set1_epi8(activation_sums == nullptr ? 1 : 2);
  const RunSums run_sums = given_sums;  // the stores could change the other, as far as the compiler knows
  const int positions = block.positions;
  for (int p = 0; p < positions; ++p) {
    Sums sums[kBlockChannels];
    widen(run_sums.first + p * run_sums.position_bytes, run_sums.run_bytes, run_sums.runs, factor, sums);
    if (activation_sums != nullptr) {
      const Sums& from = activation_sums->minus(block.first_position + p);
      const Sums minus{loaded_once(from.low), loaded_once(from.high)};
#pragma GCC unroll 4
      for (Sums& sum : sums) sum = sum + minus;
    }
    output(p, sums);
  }
}
using Finish = void (*)(const Context& context, const Block& block, const RunSums& run_sums);

void finish_index(const Context& context, const Block& block, const RunSums& run_sums) {
  const bool has_tables = block.channels->has_tables[block.in_chunk / kBlockChannels];
  (has_tables ? finish<IndexTables> : finish<IndexThresholds>)(context, block, run_sums);
}

/// How a call's sums become its outputs.
struct Way {
  Finish finish;
  bool uses_thresholds = false;
  bool uses_tile = false;  ///< for outputs that are not planar
  bool uses_derived_tile = false;
};

Way choose_way(const OutputStage& stage, const ConvolutionCall& call) {
  const Way plain{finish<PlainOutput>};
  const auto bytes = [&]<typename Bytes>(std::type_identity<Bytes>) {
    Way way{finish<ByteOutput<Bytes, false>>, stage.thresholds != nullptr, stage.format != kPlanar8,
            stage.derived_bits != 0};
    if constexpr (Bytes::kDerives) {
      if (derives_index(stage)) {
        way.finish = finish<ByteOutput<Bytes, true>>;
        way.uses_derived_tile = false;
      }
    }
    return way;
  };
  if (!is_common(stage, kPlanar8)) return plain;
  if (stage.thresholds != nullptr) return bytes(std::type_identity<ThresholdBytes>{});
  if (!stays_convertible(stage, call, 32767)) return plain;
  if (stage.range.lowest < 0) {
    return stage.has_residual() ? plain : bytes(std::type_identity<Requantized<Residual::none, true>>{});
  }
  if (!stage.has_residual()) return bytes(std::type_identity<Requantized<Residual::none, false>>{});
  return stage.residual_signed ? bytes(std::type_identity<Requantized<Residual::signed8, false>>{})
                               : bytes(std::type_identity<Requantized<Residual::unsigned8, false>>{});
}

/// What `count` output channels from `first` need. sum_minimum: of their sums; channels.minimum is known.
/// Returns whether thresholds 1 and 3 are in bytes, which they are wherever they fit. Plain loops that become
/// vectors: a small map has many calls.
bool prepare_channels(const OutputStage& stage, bool uses_thresholds, bool makes_tables, int first, int count,
                      const std::int32_t* sum_minimum, Channels& channels) {
  for (int k = 0; k < count; ++k) channels.bias[k] = static_cast<float>(8388608 - channels.minimum[k]);
  if (!uses_thresholds) return false;
  std::int32_t thresholds[3][kChunk];
  for (int t = 0; t < 3; ++t) {
    const std::int16_t* of_stage = stage.thresholds + t * stage.padded_channels + first;
    for (int k = 0; k < count; ++k) {
      // Sums minus their minimum are 0 .. kLargestSum, so this changes no comparison.
      thresholds[t][k] = std::min(std::max(of_stage[k] - sum_minimum[k], -1), kLargestSum);
    }
  }
  std::int32_t lowest = 0;
  std::int32_t highest = 0;
  for (int k = 0; k < count; ++k) {
    channels.start[k] = in_words(channels.minimum[k] - sum_minimum[k] - thresholds[1][k]);
    thresholds[0][k] -= thresholds[1][k];
    thresholds[2][k] -= thresholds[1][k];
    lowest = std::min(lowest, thresholds[0][k]);
    highest = std::max(highest, thresholds[2][k]);
  }
  const bool fit = stage.format == kIndex3 && stage.derived_bits == 0 && lowest >= -128 && highest <= 126;
  for (int k = 0; k < count; ++k) {
    channels.lower[k] = fit ? in_bytes(thresholds[0][k]) : in_words(thresholds[0][k]);
    channels.upper[k] = fit ? in_bytes(thresholds[2][k]) : in_words(thresholds[2][k]);
  }
  if (!fit) return false;
  for (int block = 0; block < count; block += kBlockChannels) {
    int second[kBlockChannels];  // threshold minus the first
    int third[kBlockChannels];
    bool& has_tables = channels.has_tables[block / kBlockChannels];
    has_tables = makes_tables;
    for (int k = 0; k < kBlockChannels; ++k) {
      second[k] = -thresholds[0][block + k];
      third[k] = thresholds[2][block + k] + second[k];
      has_tables = has_tables && third[k] < ValueTable::kLast;
    }
    for (int k = 0; k < kBlockChannels && has_tables; ++k) {
      const int first_threshold = thresholds[1][block + k] - second[k];
      channels.table_start[block + k] =
          in_words(channels.minimum[block + k] - sum_minimum[block + k] - first_threshold);
      channels.tables[block + k].fill_with_counts(0, second[k], third[k], 1 << 2 * k);
    }
  }
  return true;
}

/// Where a call's blocks find their tables and weights, and the memory that they share.
struct Walk {
  const std::uint8_t* tables;
  const std::uint8_t* weights;
  std::ptrdiff_t block_bytes;  ///< of the weights of four output channels
  SharedTapSteps& steps;
  std::uint8_t* run_sums;  ///< [runs][positions x channels of a block][64]
};

/// How the sums of some output channels become outputs: first .. last - 1, prepared in `channels`.
struct Chunk {
  int first;
  int last;
  Channels channels;
  Finish finish;
  bool uses_tile;  ///< collects bytes of whole tiles of channels first
  bool uses_derived_tile;
};

/// One row of a call, some of its output channels.
void compute_row(const Walk& walk, const Chunk& chunk, const Context& context) {
  const ConvolutionCall& call = context.call;
  const int most = walk.steps.most_positions();
  for (int first = 0, left = call.positions; left > 0;) {
    // As equal blocks as possible: 14 positions are 4 + 5 + 5.
    const int positions = left / ((left + most - 1) / most);
    const std::uint8_t* const input = call.input.at(first, 0);
    walk.steps.prepare_block(input, positions);
    // One or two blocks of channels.
    const auto compute = [&](int channel, int blocks) {
      Block block{input,
                  call.input.position_stride,
                  &walk.steps,
                  walk.tables,
                  walk.weights + channel / kBlockChannels * walk.block_bytes,
                  &chunk.channels,
                  channel - chunk.first,
                  positions,
                  first,
                  channel};
      (blocks == 1 ? kAccumulate : kAccumulateTwoBlocks)[positions - 1](block, walk.block_bytes,
                                                                        walk.run_sums);
      constexpr std::ptrdiff_t kBlockSums = kBlockChannels * kLanes;
      RunSums sums{walk.run_sums, blocks * kBlockSums, positions * blocks * kBlockSums, walk.steps.count()};
      for (int b = 0; b < blocks; ++b) {
        chunk.finish(context, block, sums);
        block.in_chunk += kBlockChannels;
        block.channel += kBlockChannels;
        sums.first += kBlockSums;
      }
    };
    if (positions <= kFewPositions && !chunk.uses_tile && !chunk.uses_derived_tile) {
      for (int channel = chunk.first; channel < chunk.last; channel += 2 * kBlockChannels) {
        compute(channel, channel + kBlockChannels < chunk.last ? 2 : 1);
      }
    } else {
      for (int tile_first = chunk.first - chunk.first % kTileChannels; tile_first < chunk.last;
           tile_first += kTileChannels) {
        const int before = std::max(chunk.first - tile_first, 0);  // channels of another call
        const int channels = std::min(kTileChannels, chunk.last - tile_first);
        for (int k = before; k < channels; k += kBlockChannels) compute(tile_first + k, 1);
        const auto store = [&](const OutputView& view, const ActivationFormat& format, const ByteTile& tile) {
          store_tile(view, format, first, positions, tile_first, channels, tile, kLanes, before);
        };
        if (chunk.uses_tile) store(call.output, context.stage.format, context.tile);
        if (chunk.uses_derived_tile) store(call.derived, context.stage.derived_format, context.derived_tile);
      }
    }
    first += positions;
    left -= positions;
  }
}

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const StepOrder order = order_of(packed.shape);
  const int groups = groups_of(packed.shape);
  const int padded = padded_channels_of(packed.shape);
  const TableProgram program(packed, order, padded);
  const bool halves =
      program.halved_run_length != 0 && ActivationSums::fits(call) &&
      (call.last_channel - call.first_channel >= kManyChannels || ActivationSums::taps_slide(call));
  const std::int32_t* const table_minima = halves ? program.halved_minima : program.minima;
  SharedTapSteps steps(call, order, halves ? program.halved_run_length : program.run_length);
  const Way way = choose_way(stage, call);

  ByteTile tile;
  ByteTile derived_tile;
  ActivationSums activation_sums(call, groups, halves);
  // 144 KB of some 300 KB of stack; a call touches what its runs need.
  alignas(64) std::uint8_t run_sums[kMaximumRuns * kPositions * kBlockChannels * kLanes];
  alignas(64) std::uint8_t open[kPositions * kLanes];
  ValueTable derived_tables[kBlockChannels];
  for (int k = 0; k < kBlockChannels && derives_index(stage); ++k) {
    const std::uint8_t* const thresholds = stage.derived_thresholds;
    derived_tables[k].fill_with_counts(thresholds[0], thresholds[1], thresholds[2], 1 << 2 * k);
  }
  constexpr int kTablesBytes = kTables * kTableBytes;
  const Walk walk{packed.weights.data() + (halves ? kTablesBytes : 0),
                  packed.weights.data() + (program.halved_run_length == 0 ? 1 : 2) * kTablesBytes,
                  std::ptrdiff_t{order.count()} * kBlockChannels, steps, run_sums};
  Chunk chunk;
  for (chunk.first = call.first_channel; chunk.first < call.last_channel; chunk.first = chunk.last) {
    // Chunks end where groups do.
    chunk.last = std::min(chunk.first - chunk.first % kTileChannels + kChunk, call.last_channel);
    const int count = (chunk.last - chunk.first + kBlockChannels - 1) / kBlockChannels * kBlockChannels;
    std::int32_t sum_minimum[kChunk] = {};
    std::fill_n(chunk.channels.minimum, count, halves ? -ActivationSums::kMostActivations : 0);
    const auto add_minima = [&](int minima_row) {
      const std::ptrdiff_t at = std::ptrdiff_t{minima_row} * padded + chunk.first;
      for (int k = 0; k < count; ++k) sum_minimum[k] += program.minima[at + k];
      for (int k = 0; k < count; ++k) chunk.channels.minimum[k] += table_minima[at + k];
    };
    for (const Tap& tap : call.taps) add_minima(tap.index);
    for (const int row : steps.sharing_rows()) add_minima(order.shared_minima_row(row));
    for (int k = 0; k < count; k += kBlockChannels) {
      chunk.channels.fields[k / kBlockChannels] = {call, chunk.first + k};
    }
    const bool in_bytes =
        prepare_channels(stage, way.uses_thresholds, call.positions * call.rows >= kManyPositions,
                         chunk.first, count, sum_minimum, chunk.channels);
    chunk.finish = in_bytes ? finish_index : way.finish;
    chunk.uses_tile = way.uses_tile && !in_bytes;
    chunk.uses_derived_tile = way.uses_derived_tile;
    for (int row = 0; row < call.rows; ++row) {
      steps.prepare_row(row, call.positions);
      if (halves) activation_sums.move_to(row);
      const ConvolutionCall of_row = row_of(call, row);
      compute_row(
          walk, chunk,
          {stage, of_row, tile, derived_tile, derived_tables, open, halves ? &activation_sums : nullptr});
    }
  }
}

constexpr std::array kRows = {
    ConvolutionKernel{"int2_vbmi", InstructionSet::avx512_vbmi, 2, 2, kLanes, kBlockChannels, kIndex3,
                      supports, pack, run, kPlanar8, nullptr, false, true},
};

}  // namespace

std::span<const ConvolutionKernel> int2_avx512_vbmi_kernels() {
  return kRows;
}

}  // namespace nibble
