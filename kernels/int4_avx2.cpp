// 4-bit weights and activations, AVX2: vpmaddubsw and a 16-bit addition for 32 products. The same code serves
// every pair of widths whose channel pairs are proved to fit 16 bits.
//
//   activations (quads8), 8 lanes:   L0: a0 a1 a2 a3 | L1: a0 a1 a2 a3 | ...      u8
//   weights of four input channels:  w0 w1 w2 w3, one vpbroadcastd                s8
//   sums of a run, 16 words:         L0: a0 w0 + a1 w1, a2 w2 + a3 w3 | L1: ...   s16
//
// Each word adds one pair of a group, so at 15 * 7 * 2 = 210 a pair 156 groups fit: 3x3 over 64 channels has
// 144 and is never widened. Run lengths are proved at packing for every stretch of steps. Multiplication by
// one (vpmaddwd) at the end adds the two words of a lane and gives the s32 that requantization converts.
//
// Register blocks are those of kernels/blocks_avx2.h.
//
// Where a call's taps form whole lines, four neighbouring positions take six multiplications a line instead
// of twelve, or two take four instead of six (kernels/line_filter.h): three tiles of such positions replace
// the three positions of a block. The sums of a tile's points add up to 8 or 2 times the sums of its
// positions, which the scale divides again.
//
//   weights:  s8 [pair of output channels][tap][group of 4 input channels][2][4]
//             for each filter that is proved, s8
//             [direction][pair of output channels][point][line][group][2][4]
//   program:  run length; for each filter 0, or the places of its constants here and of its weights; then
//             [direction][line][output channel, padded][output] two words each: what is added to an output

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/blocks_avx2.h"
#include "kernels/kernels.h"
#include "kernels/line_filter.h"
#include "kernels/output_avx2.h"

namespace nibble {
namespace {

constexpr int kHalves = kLanes / (8 * kParts);
constexpr int kQuad = 4;               ///< input channels of a step
constexpr int kFilteredGroups = 16;    ///< of layers that are filtered by lines
constexpr int kFilteredOutputs = 256;  ///< output channels of layers that are
constexpr int kHeader = 7;             ///< of the program: run length, places of three filters
constexpr float kLargestSum = 2.0F * 32768.0F * kMaximumSteps;  ///< two words a step, at the very most

int groups_of(const ConvolutionShape& shape) {
  return group_count(kQuads8, shape.input_channels);
}
int padded_channels_of(const ConvolutionShape& shape) {
  return (shape.output_channels + kOutputBlock - 1) / kOutputBlock * kOutputBlock;
}

/// The largest number of steps with which no word of any output channel leaves s16, wherever a run begins;
/// 0 when a single pair could, which vpmaddubsw would saturate.
int proven_run_length(const ConvolutionLayer& layer) {
  const int taps = layer.shape.kernel * layer.shape.kernel;
  const int groups = groups_of(layer.shape);
  const int limit = activation_limit(layer.activation_bits);
  const int steps = taps * groups;
  if (steps > kMaximumSteps) return 0;
  std::vector<int> negative(static_cast<std::size_t>(steps));
  std::vector<int> positive(static_cast<std::size_t>(steps));
  int proven = steps;
  for (int o = 0; o < layer.shape.output_channels; ++o) {
    for (int first = 0; first < kQuad; first += 2) {  // the word's place in the group
      for (int step = 0; step < steps; ++step) {
        int& lowest = negative[static_cast<std::size_t>(step)] = 0;
        int& highest = positive[static_cast<std::size_t>(step)] = 0;
        for (int i = first; i < first + 2; ++i) {
          const int weight = weight_of(layer, o, step / groups, kQuad * (step % groups) + i);
          (weight < 0 ? lowest : highest) += std::abs(weight) * limit;
        }
      }
      proven = std::min({proven, longest_run(negative, 32768), longest_run(positive, 32767)});
    }
  }
  return proven;
}

bool supports(const ConvolutionLayer& layer) {
  return steps_fit(layer.shape, groups_of(layer.shape), proven_run_length(layer));
}

/// Whether lines of taps may be filtered: every V fits u8 and every U s8, no pair of products saturates, and
/// `filter.times` the sum of each word fits s16.
bool lines_are_proved(const ConvolutionLayer& layer, const LineFilter& filter) {
  const ConvolutionShape& shape = layer.shape;
  const int limit = activation_limit(layer.activation_bits);
  if (shape.kernel != kLines || shape.stride != 1 || groups_of(shape) > kFilteredGroups ||
      shape.output_channels > kFilteredOutputs ||
      *std::max_element(filter.largest, filter.largest + filter.points) * limit > 255) {
    return false;
  }
  for (int o = 0; o < shape.output_channels; ++o) {
    std::int64_t sums[2][2] = {};  // [place of the word in the group][sign]
    for (int tap = 0; tap < kLines * kLines; ++tap) {
      for (int i = 0; i < shape.input_channels; ++i) {
        const int weight = weight_of(layer, o, tap, i);
        sums[i % kQuad / 2][weight < 0 ? 0 : 1] += std::abs(weight) * limit * filter.times;
      }
    }
    for (const auto& word : sums) {
      if (word[0] > 32768 || word[1] > 32767) return false;
    }
    for (int direction = 0; direction < kDirections; ++direction) {
      for (int line = 0; line < kLines; ++line) {
        for (int point = 0; point < filter.points; ++point) {
          for (int i = 0; i < shape.input_channels; i += 2) {
            const int first = std::abs(point_weight_of(layer, filter, o, direction, line, point, i));
            const int second = std::abs(point_weight_of(layer, filter, o, direction, line, point, i + 1));
            const int highest = filter.largest[point] * limit;
            if (std::max(first, second) > 127 || (first + second) * highest > 32767) return false;
          }
        }
      }
    }
  }
  return true;
}

/// What is added to one output for one line, two words: less than nothing of what was added to each V.
std::uint32_t line_constant(const ConvolutionLayer& layer, const LineFilter& filter, int output_channel,
                            int direction, int line, int output) {
  const int limit = activation_limit(layer.activation_bits);
  std::uint16_t words[2] = {};
  for (int i = 0; i < layer.shape.input_channels; ++i) {
    std::uint16_t& word = words[i % kQuad / 2];
    for (int point = 0; point < filter.points; ++point) {
      const int weight = point_weight_of(layer, filter, output_channel, direction, line, point, i);
      word = static_cast<std::uint16_t>(word -
                                        filter.outputs_of[output][point] *
                                            static_cast<std::uint32_t>(filter.added[point] * limit * weight));
    }
  }
  return words[0] | std::uint32_t{words[1]} << 16;
}

[[gnu::cold]] void pack_lines(const ConvolutionLayer& layer, const LineFilter& filter,
                              PackedConvolution& packed) {
  const int padded = padded_channels_of(layer.shape);
  const int groups = groups_of(layer.shape);
  for (int direction = 0; direction < kDirections; ++direction) {
    for (int line = 0; line < kLines; ++line) {
      for (int o = 0; o < padded; ++o) {
        for (int output = 0; output < filter.outputs; ++output) {
          packed.program.push_back(
              static_cast<std::int32_t>(line_constant(layer, filter, o, direction, line, output)));
        }
      }
    }
    for (int pair = 0; pair < padded; pair += kPair) {
      for (int point = 0; point < filter.points; ++point) {
        for (int step = 0; step < kLines * groups; ++step) {
          for (int o = pair; o < pair + kPair; ++o) {
            for (int i = 0; i < kQuad; ++i) {
              packed.weights.push_back(static_cast<std::uint8_t>(point_weight_of(
                  layer, filter, o, direction, step / groups, point, kQuad * (step % groups) + i)));
            }
          }
        }
      }
    }
  }
}

/// Where the program says whether a filter may be used.
constexpr std::size_t place_of(const LineFilter& filter) {
  return filter.outputs == 2 ? 1 : filter.times == 8 ? 3 : 5;
}

[[gnu::cold]] PackedConvolution pack(const ConvolutionLayer& layer) {
  const int taps = layer.shape.kernel * layer.shape.kernel;
  const int groups = groups_of(layer.shape);
  PackedConvolution packed{layer.shape, layer.activation_bits, {}, std::vector<std::int32_t>(kHeader)};
  packed.program[0] = proven_run_length(layer);
  for (int pair = 0; pair < padded_channels_of(layer.shape); pair += kPair) {
    for (int tap = 0; tap < taps; ++tap) {
      for (int group = 0; group < groups; ++group) {
        for (int o = pair; o < pair + kPair; ++o) {
          for (int i = kQuad * group; i < kQuad * (group + 1); ++i) {
            packed.weights.push_back(static_cast<std::uint8_t>(weight_of(layer, o, tap, i)));
          }
        }
      }
    }
  }
  for (const LineFilter& filter : {kTwoOutputs, kFourOutputs, kFourOfTwice}) {
    const bool has_better = filter.outputs == 4 && packed.program[place_of(kFourOutputs)] != 0;
    if (has_better || !lines_are_proved(layer, filter)) continue;
    packed.program[place_of(filter)] = static_cast<std::int32_t>(packed.program.size());
    packed.program[place_of(filter) + 1] = static_cast<std::int32_t>(packed.weights.size());
    pack_lines(layer, filter, packed);
  }
  return packed;
}

/// Sums of the runs of one register block, s16: [run][output channel of the pair][position][part].
struct Partial {
  __m256i sums[kMaximumRuns * kPair * kPositions * kParts];
};

struct PairProducts {
  static __m256i loaded(__m256i activations) { return loaded_once(activations); }
  static __m256i multiply(__m256i activations, __m256i weights) {
    return _mm256_maddubs_epi16(activations, weights);
  }
  static void add_to(__m256i& sum, __m256i product) { sum = _mm256_add_epi16(sum, product); }
};

using Accumulate = void (*)(const std::uint8_t* input, std::ptrdiff_t stride, const Steps& steps,
                            const std::uint8_t* weights, __m256i* store);

template <std::size_t Positions>
void accumulate(const std::uint8_t* input, std::ptrdiff_t stride, const Steps& steps,
                const std::uint8_t* weights, __m256i* store) {
  constexpr std::size_t kRegisters = Positions * kParts;
  accumulate_block<PairProducts>(
      std::make_index_sequence<kRegisters>{}, input, stride, steps,
      weights, [&](int run, std::size_t i, __m256i sum) __attribute__((always_inline)) {
        _mm256_store_si256(store + static_cast<std::size_t>(run) * kPair * kRegisters + i, sum);
      });
}

constexpr Accumulate kAccumulate[kPositions] = {accumulate<1>, accumulate<2>, accumulate<3>};

/// How the sums of a block lie in memory.
enum class Form {
  single_run,  ///< [output channel][position][part] of a pair of output channels
  runs,        ///< [run] of these
  points,  ///< [point][output channel][tile of two positions][part] of a pair; they add up to twice the sum
};

/// A block whose runs are done: what the output stages read.
struct Block {
  const __m256i* pairs[2];  ///< sums of two pairs of output channels, 16 lanes
  int positions;
  int runs;
  int first_position;
  int channel;                               ///< first of the two pairs
  int half;                                  ///< which 16 of the 32 lanes
  float times = 1.0F;                        ///< what the sums are, times what they should be
  const std::uint32_t* constants = nullptr;  ///< [output channel][2 outputs]: added to points

  /// Sums of channel `channel` + k, 8 lanes, s32, of position p; of points position 2 p + place.
  template <Form form>
  __m256i sum(int k, int p, [[maybe_unused]] int place, int part) const {
    const __m256i ones = _mm256_set1_epi16(1);
    if constexpr (form == Form::points) {
      const int registers = kPair * (positions / 2) * kParts;
      const __m256i* m = pairs[k / kPair] + ((k % kPair) * (positions / 2) + p) * kParts + part;
      const __m256i constant = _mm256_set1_epi32(static_cast<std::int32_t>(constants[2 * k + place]));
      const __m256i sum1 = _mm256_add_epi16(constant, m[registers]);
      const __m256i words =
          place == 0 ? _mm256_add_epi16(_mm256_add_epi16(sum1, m[2 * registers]), m[0])
                     : _mm256_sub_epi16(_mm256_sub_epi16(sum1, m[2 * registers]), m[3 * registers]);
      return _mm256_madd_epi16(words, ones);
    }
    const __m256i* words = pairs[k / kPair] + ((k % kPair) * positions + p) * kParts + part;
    __m256i total = _mm256_madd_epi16(words[0], ones);
    if constexpr (form == Form::runs) {
      const int registers = kPair * positions * kParts;
      for (int r = 1; r < runs; ++r) {
        total = _mm256_add_epi32(total, _mm256_madd_epi16(words[r * registers], ones));
      }
    }
    return total;
  }
};

using Output = void (*)(const OutputStage& stage, const ConvolutionCall& call, const Block& block,
                        const DerivedInput& derived);

template <typename Writer, Form form>
void output_bytes(const OutputStage& stage, const ConvolutionCall& call, const Block& given,
                  const DerivedInput& derived) {
  const Block block = given;  // the stores could change the other, as far as the compiler knows
  const Writer writer(stage, call, block.channel, block.first_position, derived, block.times);
  constexpr int kStep = form == Form::points ? 2 : 1;
  for (int p = 0; p < block.positions; p += kStep) {
    for (int part = 0; part < kParts; ++part) {
      const auto write = [&](int place) __attribute__((always_inline)) {
        writer.write(
            p + place, block.half * kParts + part, [&](int k) __attribute__((always_inline)) {
              return block.sum<form>(k, p / kStep, place, part);
            });
      };
      write(0);
      if constexpr (kStep == 2) write(1);
    }
  }
}

template <Form form>
Output choose_output(const OutputStage& stage) {
  return choose_byte_writer(stage,
                            []<typename Writer>(Writer*) -> Output { return output_bytes<Writer, form>; });
}

/// The two halves of a block's lanes, by the shared output stage.
void output_any(const OutputStage& stage, const ConvolutionCall& call, const Block (&halves)[kHalves]) {
  const Block& block = halves[0];
  for (int p = 0; p < block.positions; ++p) {
    __m256i sums[kOutputBlock][kHalves * kParts] = {};
    for (int k = 0; k < kOutputBlock && block.channel + k < call.last_channel; ++k) {
      for (int part = 0; part < kHalves * kParts; ++part) {
        sums[k][part] = halves[part / kParts].sum<Form::runs>(k, p, 0, part % kParts);
      }
    }
    write_outputs(stage, call, block.first_position + p, block.channel, sums);
  }
}

struct Bytes {
  static __m256i repeated(int n) { return _mm256_set1_epi8(static_cast<char>(n)); }
  static __m256i add(__m256i a, __m256i b) { return _mm256_add_epi8(a, b); }
  static __m256i sub(__m256i a, __m256i b) { return _mm256_sub_epi8(a, b); }
  static __m256i four(__m256i a) { return _mm256_slli_epi16(a, 2); }
};

struct Words {
  static __m256i add(__m256i a, __m256i b) { return _mm256_add_epi16(a, b); }
  static __m256i sub(__m256i a, __m256i b) { return _mm256_sub_epi16(a, b); }
  static __m256i third(__m256i a) {
    return _mm256_mullo_epi16(a, _mm256_set1_epi16(static_cast<std::int16_t>(kThird)));  // modulo 2^16
  }
};

/// The same where twice the sums are enough (kFourOfTwice).
template <int Tiles, typename Load, typename Store>
inline __attribute__((always_inline)) void transform_four_of_twice(int limit, Load load, Store store) {
  const auto times = [&](int n) { return _mm256_set1_epi8(static_cast<char>(n * limit)); };
  const auto twice = [](__m256i value) { return _mm256_add_epi8(value, value); };
  const auto thrice = [&](__m256i value) { return _mm256_add_epi8(value, twice(value)); };
  __m256i d0 = load(0);
  __m256i d1 = load(1);
  for (int tile = 0; tile < Tiles; ++tile) {
    const __m256i d2 = load(4 * tile + 2);
    const __m256i d3 = load(4 * tile + 3);
    const __m256i d4 = load(4 * tile + 4);
    const __m256i d5 = load(4 * tile + 5);
    const __m256i a = _mm256_add_epi8(_mm256_sub_epi8(d4, d2), times(4));
    const __m256i b = _mm256_sub_epi8(d3, d1);
    const __m256i v3 = _mm256_add_epi8(twice(a), b);
    const __m256i v4 = _mm256_sub_epi8(a, twice(b));
    const __m256i sum = _mm256_add_epi8(d2, d3);
    const __m256i difference = _mm256_sub_epi8(_mm256_sub_epi8(d2, d3), times(1));
    const __m256i after = _mm256_add_epi8(_mm256_sub_epi8(d5, d3), times(10));
    store(tile, 0, _mm256_add_epi8(twice(_mm256_sub_epi8(v4, _mm256_sub_epi8(d2, d0))), b));
    store(tile, 1, _mm256_sub_epi8(_mm256_add_epi8(v3, b), thrice(sum)));
    store(tile, 2, _mm256_add_epi8(_mm256_add_epi8(v4, a), thrice(difference)));
    store(tile, 3, v3);
    store(tile, 4, v4);
    store(tile, 5, _mm256_add_epi8(twice(_mm256_sub_epi8(after, v3)), a));
    d0 = d4;
    d1 = d5;
  }
}

/// Ends of a whole row within a call for tiles: the input before the first position, and behind the last one,
/// is not there and counts as zero.
struct Ends {
  bool before;
  bool behind;
};

/// V of `Tiles` tiles of positions, 16 lanes: [point][line][group][tile][part]. input: of the first position.
template <const LineFilter& filter, int Tiles>
void transform(const ConvolutionCall& call, const Lines& lines, int groups, int activation_bits,
               const std::uint8_t* input, Ends ends, std::uint8_t* to) {
  const int limit = activation_limit(activation_bits);
  const std::ptrdiff_t point_bytes = std::ptrdiff_t{lines.count} * groups * Tiles * kBlockBytes;
  for (int line = 0; line < lines.count; ++line) {
    const std::uint8_t* from = input + lines.offsets[line];
    for (int group = 0; group < groups; ++group, from += call.input.group_stride, to += Tiles * kBlockBytes) {
      for (int part = 0; part < kParts; ++part) {
        const auto store = [&](int tile, int point, __m256i v) __attribute__((always_inline)) {
          _mm256_store_si256(
              reinterpret_cast<__m256i*>(to + point * point_bytes + tile * kBlockBytes + part * kPartBytes),
              v);
        };
        const auto load = [&](int i) __attribute__((always_inline)) {
          if ((i == 0 && ends.before) || (i == filter.outputs * Tiles + 1 && ends.behind)) {
            return _mm256_setzero_si256();
          }
          return loaded_once(_mm256_loadu_si256(
              reinterpret_cast<const __m256i*>(from + part * kPartBytes + i * call.input.position_stride)));
        };
        if constexpr (filter.outputs == 2) {
          transform_two<Bytes, Tiles>(limit, load, store);
        } else if constexpr (filter.times == 8) {
          transform_four<Bytes, Tiles>(limit, load, store);
        } else {
          transform_four_of_twice<Tiles>(limit, load, store);
        }
      }
    }
  }
}

/// The sums of a pair's points, [point][output channel][tile of four positions][part], as `filter.times`
/// those of its positions: [output channel][position][part]. constants: [output channel][output].
template <const LineFilter& filter>
void combine_four(const __m256i* points, int tiles, const std::uint32_t* constants, __m256i* to) {
  const int registers = kPair * tiles * kParts;
  for (int o = 0; o < kPair; ++o) {
    __m256i constant[4];
    for (int output = 0; output < 4; ++output) {
      constant[output] = _mm256_set1_epi32(static_cast<std::int32_t>(constants[4 * o + output]));
    }
    for (int tile = 0; tile < tiles; ++tile, to += 4 * kParts) {
      for (int part = 0; part < kParts; ++part, ++points) {
        const auto m = [&](int point) { return points[point * registers]; };
        const auto store = [&](int output, __m256i words) {
          _mm256_store_si256(to + output * kParts + part, _mm256_add_epi16(words, constant[output]));
        };
        if constexpr (filter.times == 2) {
          const __m256i inverse = _mm256_set1_epi16(static_cast<std::int16_t>(kFifteenth));  // modulo 2^16
          const auto divided = [&](__m256i words) { return _mm256_mullo_epi16(words, inverse); };
          const __m256i s = _mm256_add_epi16(m(1), m(2));
          const __m256i t = _mm256_sub_epi16(m(1), m(2));
          const __m256i twice_m3 = _mm256_add_epi16(m(3), m(3));
          const __m256i u = _mm256_sub_epi16(twice_m3, _mm256_slli_epi16(m(4), 2));
          const __m256i v = _mm256_add_epi16(twice_m3, m(4));
          const __m256i w = _mm256_add_epi16(m(3), _mm256_slli_epi16(m(4), 3));
          const __m256i x = _mm256_sub_epi16(_mm256_slli_epi16(m(3), 3), m(4));
          store(0, _mm256_add_epi16(m(0), divided(_mm256_add_epi16(s, w))));
          store(1, divided(_mm256_add_epi16(t, u)));
          store(2, divided(_mm256_add_epi16(s, _mm256_add_epi16(v, v))));
          store(3, _mm256_add_epi16(m(5), divided(_mm256_add_epi16(t, x))));
        } else {
          combine_points<Words>(m, store);
        }
      }
    }
  }
}

/// `positions` of a call from `first` on, a multiple of the filter's outputs, by line filters.
template <const LineFilter& filter>
void run_lines(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call,
               const Lines& lines, int first, int positions, const DerivedInput& derived) {
  if (positions == 0) return;  // also of a filter that was not proved, whose constants do not exist
  constexpr int kPoints = filter.points;
  constexpr int kOutputs = filter.outputs;
  using Transform = void (*)(const ConvolutionCall& call, const Lines& lines, int groups, int activation_bits,
                             const std::uint8_t* input, Ends ends, std::uint8_t* to);
  constexpr Transform kTransform[kPositions] = {transform<filter, 1>, transform<filter, 2>,
                                                transform<filter, 3>};
  const int groups = groups_of(packed.shape);
  const int padded = padded_channels_of(packed.shape);
  const std::ptrdiff_t line_bytes = std::ptrdiff_t{groups} * kPair * kQuad;
  const std::uint8_t* weights = packed.weights.data() + packed.program[place_of(filter) + 1] +
                                lines.direction * (padded / kPair) * kPoints * kLines * line_bytes +
                                lines.first * line_bytes;
  const std::int32_t* of_lines = packed.program.data() + packed.program[place_of(filter)] +
                                 (lines.direction * kLines + lines.first) * padded * kOutputs;
  const int last_channel = (call.last_channel + kOutputBlock - 1) / kOutputBlock * kOutputBlock;
  const Output output = choose_output < kOutputs == 2 ? Form::points : Form::single_run > (stage);
  // Words of the lines' constants are added apart: no carry from the lower one.
  std::uint32_t constants[kOutputs * kFilteredOutputs];
  for (int i = 0; i < kOutputs * padded; ++i) {
    std::uint32_t low = 0;
    std::uint32_t high = 0;
    for (int line = 0; line < lines.count; ++line) {
      const auto words = static_cast<std::uint32_t>(of_lines[line * padded * kOutputs + i]);
      low += words & 0xFFFFU;
      high += words >> 16;
    }
    constants[i] = (low & 0xFFFFU) | high << 16;
  }
  constexpr int kFilteredChannels = kOutputs == 2 ? 16 : 8;  // that share the loads of a point's V
  alignas(32) std::uint8_t v[kPoints * kLines * kFilteredGroups * kPositions * kBlockBytes];
  alignas(32) __m256i points[kFilteredChannels / kPair][kPoints * kPair * kPositions * kParts];
  alignas(32) __m256i sums[kOutputBlock / kPair][kOutputs * kPair * kPositions * kParts];
  for (int left = positions / kOutputs; left > 0;) {
    const int tiles = left / ((left + kPositions - 1) / kPositions);
    const Steps steps(lines.count * groups, std::ptrdiff_t{tiles} * kBlockBytes);
    const std::ptrdiff_t point_bytes = std::ptrdiff_t{lines.count} * groups * tiles * kBlockBytes;
    const Ends ends{call.whole_row && first == 0,
                    call.whole_row && first + kOutputs * tiles == call.positions};
    for (int half = 0; half < kHalves; ++half) {
      kTransform[tiles - 1](call, lines, groups, packed.activation_bits,
                            call.input.at(first, 0) + std::ptrdiff_t{half} * kBlockBytes, ends, v);
      for (int chunk = call.first_channel; chunk < call.last_channel; chunk += kFilteredChannels) {
        const int chunk_end = std::min(chunk + kFilteredChannels, last_channel);
        for (int point = 0; point < kPoints; ++point) {
          for (int channel = chunk; channel < chunk_end; channel += kPair) {
            kAccumulate[tiles - 1](v + point * point_bytes, kBlockBytes, steps,
                                   weights + (channel / kPair * kPoints + point) * kLines * line_bytes,
                                   points[(channel - chunk) / kPair] + point * kPair * tiles * kParts);
          }
        }
        for (int channel = chunk; channel < chunk_end; channel += kOutputBlock) {
          const __m256i* of_pairs[kOutputBlock / kPair];
          for (int pair = 0; pair < kOutputBlock / kPair; ++pair) {
            of_pairs[pair] = points[(channel - chunk) / kPair + pair];
            if constexpr (kOutputs == 4) {
              combine_four<filter>(of_pairs[pair], tiles, constants + kOutputs * (channel + kPair * pair),
                                   sums[pair]);
              of_pairs[pair] = sums[pair];
            }
          }
          output(stage, call,
                 {{of_pairs[0], of_pairs[1]},
                  kOutputs * tiles,
                  1,
                  first,
                  channel,
                  half,
                  float{filter.times},
                  constants + kOutputs * channel},
                 derived);
        }
      }
    }
    first += kOutputs * tiles;
    left -= tiles;
  }
}

bool takes_whole_rows(const PackedConvolution& packed) {
  const bool by_four =
      packed.program[place_of(kFourOutputs)] != 0 || packed.program[place_of(kFourOfTwice)] != 0;
  return by_four && packed.program[place_of(kTwoOutputs)] != 0 && packed.shape.padding == 1 &&
         packed.shape.input_width % 4 == 0;
}

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call);

/// A whole row's ends and its inside, each with the taps that it has.
void run_cut(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& row) {
  const auto run_part = [&](int first, int positions, int first_column, int last_column) {
    std::array<Tap, kLines * kLines> taps;
    std::size_t count = 0;
    for (const Tap& tap : row.taps) {
      const int column = tap.index % kLines;
      if (first_column <= column && column < last_column) taps[count++] = tap;
    }
    ConvolutionCall part = part_of(row, first, positions);
    part.taps = std::span(taps).first(count);
    part.whole_row = false;
    run(packed, stage, part);
  };
  run_part(0, 1, 1, kLines);
  run_part(1, row.positions - 2, 0, kLines);
  run_part(row.positions - 1, 1, 0, kLines - 1);
}

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const bool own_output = has_byte_form(stage, call, kLargestSum);
  if (call.whole_row && !own_output) return run_cut(packed, stage, call);
  const DerivedInput derived(stage);
  int filtered = 0;
  if (packed.program[place_of(kTwoOutputs)] != 0 && own_output && call.positions > 1) {
    const Lines lines = lines_of(call);
    if (lines.count > 0) {
      // Of 4 to 7 positions, two or three pairs fill a register block better than a four and the rest.
      const bool eight_times = packed.program[place_of(kFourOutputs)] != 0;
      const bool by_four = (eight_times || packed.program[place_of(kFourOfTwice)] != 0) &&
                           (call.positions >= 8 || call.whole_row);
      const int in_fours = by_four ? call.positions / 4 * 4 : 0;
      const int in_twos = (call.positions - in_fours) / 2 * 2;
      if (eight_times) {
        run_lines<kFourOutputs>(packed, stage, call, lines, 0, in_fours, derived);
      } else {
        run_lines<kFourOfTwice>(packed, stage, call, lines, 0, in_fours, derived);
      }
      run_lines<kTwoOutputs>(packed, stage, call, lines, in_fours, in_twos, derived);
      filtered = in_fours + in_twos;
    }
  }
  if (filtered == call.positions) return;

  const int groups = groups_of(packed.shape);
  const std::ptrdiff_t pair_bytes =
      std::ptrdiff_t{packed.shape.kernel} * packed.shape.kernel * groups * kPair * kQuad;
  const Steps steps(call, groups, packed.program[0]);
  const Output output = !own_output          ? nullptr
                        : steps.count() == 1 ? choose_output<Form::single_run>(stage)
                                             : choose_output<Form::runs>(stage);

  alignas(32) Partial partial[kHalves][kOutputBlock / kPair];
  for (int first = filtered, left = call.positions - filtered; left > 0;) {
    const int positions = left / ((left + kPositions - 1) / kPositions);
    const auto compute = [&](int channel, int half) {
      const std::uint8_t* input = call.input.at(first, 0) + std::ptrdiff_t{half} * kBlockBytes;
      for (int pair = 0; pair < kOutputBlock / kPair; ++pair) {
        kAccumulate[positions - 1](input, call.input.position_stride, steps,
                                   packed.weights.data() + (channel / kPair + pair) * pair_bytes,
                                   partial[half][pair].sums);
      }
      return Block{
          {partial[half][0].sums, partial[half][1].sums}, positions, steps.count(), first, channel, half};
    };
    if (output != nullptr) {
      // Half the lanes at a time, so that the rows under a block stay in the first-level cache.
      for (int half = 0; half < kHalves; ++half) {
        for (int channel = call.first_channel; channel < call.last_channel; channel += kOutputBlock) {
          output(stage, call, compute(channel, half), derived);
        }
      }
    } else {
      for (int channel = call.first_channel; channel < call.last_channel; channel += kOutputBlock) {
        output_any(stage, call, {compute(channel, 0), compute(channel, 1)});
      }
    }
    first += positions;
    left -= positions;
  }
}

constexpr ConvolutionKernel row(std::string_view name, int weight_bits, int activation_bits) {
  return {name,
          InstructionSet::avx2,
          weight_bits,
          activation_bits,
          kLanes,
          kOutputBlock,
          kQuads8,
          supports,
          pack,
          run,
          kQuads8,
          takes_whole_rows,
          activation_bits < 8};  // products of 8 bits leave 16 no room for the lines' sums
}

constexpr std::array kRows = {
    row("int4_avx2", 4, 4),   row("int4a8_avx2", 4, 8), row("int4a2_avx2", 4, 2), row("int2a4_avx2", 2, 4),
    row("int2a8_avx2", 2, 8), row("int8a4_avx2", 8, 4), row("int8a2_avx2", 8, 2),
};

}  // namespace

std::span<const ConvolutionKernel> int4_avx2_kernels() {
  return kRows;
}

}  // namespace nibble
