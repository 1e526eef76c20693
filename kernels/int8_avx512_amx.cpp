// All widths up to 8 bits, AMX: one instruction multiplies 16 output channels by 16 lanes, 64 products each,
// and adds them in s32, exactly. What is left to save are loads and the requantization.
//
//   weights:      s8 [16 output channels][16 quads][4]     a row of 64 bytes for each output channel
//   activations:  u8 [16 quads][16 lanes][4]               quads8 as they lie in the map, a row for each quad
//   sums:        s32 [16 output channels][16 lanes]
//
// A quad is four input channels of one tap. Where the taps of a kernel row follow each other in memory, in
// image lanes and, below 32 channels, in the column copies of position lanes, their quads are one chain,
// which is cut into as few equal tiles as it can: three taps of 16 channels are a tile of 12 rows, three of
// 32 are two, three of 64 three of 16. Whatever meets padding is left out. A multiplication takes 16 cycles
// for any number of quads (measured on Emerald Rapids).
//
// A place is 16 lanes of a position. The sums of its 16 or 32 output channels are multiplied one place after
// the other in alternating tiles, so that a tile is stored while the next one is multiplied:
//
//   multiply a step of place n, requantize 4 channels of place n - 2, multiply a step of place n, ...,
//   store the sums of place n
//
// A core looks only some 500 instructions ahead. Requantization in one piece behind the multiplications would
// wait for them, and they would wait for it; a place before the last is surely stored. Where three steps are
// all, their weights stay in tiles. A call takes all rows whose taps are the same, since its beginning and
// its end cost as much as a few places.
//
//   weights:  s8 [block of 16 output channels][order][kernel row][16][RowLayout::bytes], multiples of 64
//             order 0: taps from left to right; order 1, where it is needed: middle, left, right, as column
//             copies lie
//   program:  the largest magnitude of a sum; RowLayout

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>

#include "kernels/kernels.h"
#include "kernels/quads_avx512_vnni.h"
#include "kernels/steps.h"
#include "kernels/thresholds.h"
#include "kernels/tiles_amx.h"

namespace nibble {
namespace {

constexpr int kBlockOutputs = 16;  ///< output channels of a tile of sums
constexpr int kMaximumKernel = 7;
/// So many places later a place's sums are requantized, unless there are so few that the end counts more.
constexpr unsigned kMaximumDelay = 2;
constexpr int kFewPlaces = 40;
static_assert(kMaximumDelay <= unsigned{kParts});
/// Places whose sums are kept; a power of two.
constexpr unsigned kRing = 4;
constexpr int kSumTiles = 4;
constexpr int kSumBytes = kPartLanes * static_cast<int>(sizeof(std::int32_t));
constexpr int kTileSums = kBlockOutputs * kPartLanes;
constexpr int kMaximumBlocks = 2;  ///< of output channels that are multiplied together
constexpr int kWeightTile = kSumTiles;
constexpr int kInputTile = kWeightTile + kMaximumBlocks;
/// Where the weights of all steps stay.
constexpr int kHeldSteps = 3;
constexpr int kHeldInputTile = kWeightTile + kHeldSteps;
/// Where columns 0, 1, 2 of a kernel row lie in the column copies.
constexpr int kCopyOfColumn[] = {1, 0, 2};

int groups_of(const ConvolutionShape& shape) {
  return group_count(kQuads8, shape.input_channels);
}
/// Taps of 16 quads fill tiles alone, and those of 8 half of them: twice the weights would be too much
/// memory.
int orders_of(const ConvolutionShape& shape) {
  return shape.kernel == 3 && groups_of(shape) < kTileRows / 2 ? 2 : 1;
}
/// The largest number of quads that fit a tile and divide `chain`.
int tile_quads(int chain) {
  int quads = std::min(chain, kTileRows);
  while (chain % quads != 0) --quads;
  return quads;
}

/// Where a kernel row's weights lie; found when they are packed.
struct RowLayout {
  int quads;  ///< of the tiles that the whole row's chain is cut into
  int begin;  ///< bytes; two tiles of less than 64 bytes meet where cache lines do
  int bytes;  ///< of an output channel's row

  explicit RowLayout(const ConvolutionShape& shape) {
    const int chain = shape.kernel * groups_of(shape);
    quads = tile_quads(chain);
    begin = quads == chain ? 0 : kTileRowBytes - quads * kQuad;
    bytes = (begin + chain * kQuad + kTileRowBytes - 1) / kTileRowBytes * kTileRowBytes;
  }
  explicit RowLayout(const PackedConvolution& packed)
      : quads(packed.program[1]), begin(packed.program[2]), bytes(packed.program[3]) {}

  int order_bytes(int kernel) const { return kernel * kBlockOutputs * bytes; }
};

/// Where tap `column` of a kernel row lies among its taps.
int place_of(int order, int column) {
  return order == 0 ? column : kCopyOfColumn[column];
}

bool supports(const ConvolutionLayer& layer) {
  const ConvolutionShape& shape = layer.shape;
  // 255 * 128 * 4 * 1024 fits s32.
  return shape.kernel <= kMaximumKernel && shape.kernel * shape.kernel * groups_of(shape) <= kMaximumSteps &&
         weight_limit(layer.weight_bits) <= 127;
}

[[gnu::cold, gnu::flatten]] PackedConvolution pack(const ConvolutionLayer& layer) {
  const ConvolutionShape& shape = layer.shape;
  const int blocks = (shape.output_channels + kBlockOutputs - 1) / kBlockOutputs;
  const RowLayout layout(shape);
  const std::ptrdiff_t tap_bytes = std::ptrdiff_t{groups_of(shape)} * kQuad;
  PackedConvolution packed{
      shape, layer.activation_bits, {}, {largest_sum(layer), layout.quads, layout.begin, layout.bytes}};
  packed.weights.resize(
      static_cast<std::size_t>(blocks * orders_of(shape) * layout.order_bytes(shape.kernel)));
  std::uint8_t* to = packed.weights.data();
  for (int block = 0; block < blocks; ++block) {
    for (int order = 0; order < orders_of(shape); ++order) {
      for (int row = 0; row < shape.kernel; ++row) {
        for (int o = 0; o < kBlockOutputs; ++o, to += layout.bytes) {
          for (int column = 0; column < shape.kernel; ++column) {
            for (int i = 0; i < shape.input_channels; ++i) {
              to[layout.begin + place_of(order, column) * tap_bytes + i] = static_cast<std::uint8_t>(
                  weight_of(layer, block * kBlockOutputs + o, row * shape.kernel + column, i));
            }
          }
        }
      }
    }
  }
  return packed;
}

/// One multiplication of tiles: bytes from a place's input address to its first quad, and from the weights of
/// a block of output channels to its first.
struct TileStep {
  std::ptrdiff_t input;
  std::ptrdiff_t weights;
};

/// The steps of a call, all of `quads` quads.
struct TileSteps {
  int quads = 0;
  int count = 0;
  TileStep steps[kMaximumSteps];

  TileSteps(const ConvolutionShape& shape, const RowLayout& layout, const ConvolutionCall& call) {
    Chain chains[kMaximumKernel * kMaximumKernel];
    int chain_count = 0;
    const Tap* const end = call.taps.data() + call.taps.size();
    for (const Tap* first = call.taps.data(); first != end;) {
      const Tap* last = first + 1;
      while (last != end && last->index / shape.kernel == first->index / shape.kernel) ++last;
      chain_count += add_row(shape, layout, call, first, last, chains + chain_count);
      first = last;
    }
    // Chains of one length, as all are inside this network, are cut into the fewest tiles.
    int divisor = chains[0].quads;
    for (const Chain* chain = chains; chain != chains + chain_count; ++chain) {
      if (chain->quads != divisor) divisor = std::gcd(divisor, chain->quads);
    }
    quads = divisor == shape.kernel * groups_of(shape) ? layout.quads : tile_quads(divisor);
    for (const Chain* chain = chains; chain != chains + chain_count; ++chain) {
      for (int quad = 0; quad < chain->quads; quad += quads) {
        steps[count++] = {chain->begin.input + quad * call.input.group_stride,
                          chain->begin.weights + std::ptrdiff_t{quad} * kQuad};
      }
    }
  }

 private:
  /// Quads that follow each other in memory and in the weights.
  struct Chain {
    TileStep begin;
    int quads;
  };

  /// The chains of the taps first .. last - 1, which are of one kernel row; returns how many.
  static int add_row(const ConvolutionShape& shape, const RowLayout& layout, const ConvolutionCall& call,
                     const Tap* first, const Tap* last, Chain* chains) {
    const int groups = groups_of(shape);
    const std::ptrdiff_t tap_stride = groups * call.input.group_stride;
    const int row = first->index / shape.kernel;
    const auto begin_at = [&](const Tap& tap, int order) {
      const std::ptrdiff_t quad = std::ptrdiff_t{place_of(order, tap.index % shape.kernel)} * groups;
      return TileStep{tap.offset, order * layout.order_bytes(shape.kernel) +
                                      row * kBlockOutputs * layout.bytes + layout.begin + quad * kQuad};
    };
    // The leftmost tap in memory, from which the others must follow without a gap, here and in the weights.
    const Tap* begin = first;
    for (const Tap* tap = first; tap != last; ++tap) {
      if (tap->offset < begin->offset) begin = tap;
    }
    for (int order = 0; order < orders_of(shape); ++order) {
      const int place = place_of(order, begin->index % shape.kernel);
      bool follows = true;
      for (const Tap* tap = first; tap != last; ++tap) {
        const int behind = place_of(order, tap->index % shape.kernel) - place;
        follows = follows && behind >= 0 && behind < last - first &&
                  tap->offset == begin->offset + behind * tap_stride;
      }
      if (!follows) continue;
      chains[0] = {begin_at(*begin, order), groups * static_cast<int>(last - first)};
      return 1;
    }
    for (const Tap* tap = first; tap != last; ++tap) chains[tap - first] = {begin_at(*tap, 0), groups};
    return static_cast<int>(last - first);
  }
};

/// Output channels `first` .. end - 1, one block of them or two.
struct Channels {
  int first = 0;
  int end = 0;

  int count() const { return end - first; }
};

/// What the places of some output channels share.
struct TileCall {
  const ConvolutionCall& call;
  const OutputStage& stage;
  const TileSteps& steps;
  const DerivedSteps& derived_steps;
  std::ptrdiff_t row_bytes;  ///< of the weights of an output channel's kernel row
  std::int32_t* sums;        ///< of kRing places, [output channel][16 lanes]
  bool planar;               ///< output, else quads8
  unsigned delay;            ///< places between multiplication and requantization
  int between;  ///< blocks of four channels that are requantized between the multiplications of two steps

  Channels channels{};
  const std::uint8_t* weights = nullptr;  ///< of the first 16 output channels
  std::ptrdiff_t second_block = 0;        ///< bytes to those of the others

  int places() const { return call.rows * call.positions * kParts; }
  std::int32_t* sums_of(unsigned number) const { return sums + number % kRing * kMaximumBlocks * kTileSums; }
};

/// A place of a call: 16 lanes of a position. After the last place comes the first one again.
class Place {
 public:
  explicit Place(const ConvolutionCall& call) : positions_(call.positions), rows_(call.rows) {}

  void advance() {
    if (++part_ != kParts) return;
    part_ = 0;
    if (++position_ != positions_) return;
    position_ = 0;
    if (++row_ == rows_) row_ = 0;
  }

  /// Where it begins in a map of `lane_bytes` bytes for each lane.
  template <typename Byte>
  Byte* in(const MapView<Byte>& map, int lane_bytes) const {
    return map.data + row_ * map.row_stride + position_ * map.position_stride +
           part_ * kPartLanes * lane_bytes;
  }

 private:
  int positions_;
  int rows_;
  int row_ = 0;
  int position_ = 0;
  int part_ = 0;
};

/// Requantizes the sums of one place, four output channels at a time.
template <Residual residual, bool is_signed_output, bool derives>
class Writer {
 public:
  Writer(const TileCall& tiles, const Channels& channels, const Place& place, const std::int32_t* sums)
      : stage_(tiles.stage),
        steps_(tiles.derived_steps),
        to_(tiles.stage, channels.first),
        sums_(sums),
        channels_(channels.count()),
        planar_(tiles.planar),
        output_stride_(tiles.call.output.group_stride),
        residual_stride_(tiles.call.residual.group_stride),
        derived_stride_(tiles.call.derived.group_stride) {
    const ConvolutionCall& call = tiles.call;
    const int quad = channels.first / kQuad;
    output_ = place.in(call.output, planar_ ? 1 : kQuad) + (planar_ ? channels.first : quad) * output_stride_;
    if constexpr (residual != Residual::none) {
      residual_ = place.in(call.residual, kQuad) + quad * residual_stride_;
    }
    if constexpr (derives) derived_ = place.in(call.derived, kQuad) + quad * derived_stride_;
  }

  bool done() const { return channels_ <= 0; }

  /// The next four output channels.
  inline __attribute__((always_inline)) void advance() {
    const __m512i bytes = requantized<residual, is_signed_output>(
        to_, residual_, 0, kBlockChannels, [&](int k) __attribute__((always_inline)) {
          return _mm512_load_si512(sums_ + k * kPartLanes);
        });
    const __m512i quads =
        store_part(bytes, planar_, output_, output_stride_, std::min(kBlockChannels, channels_));
    output_ += planar_ ? kBlockChannels * output_stride_ : output_stride_;
    if constexpr (derives) {
      store(derived_, derive(quads, stage_, steps_));
      derived_ += derived_stride_;
    }
    if constexpr (residual != Residual::none) residual_ += residual_stride_;
    to_.scale += kBlockChannels;
    to_.offset += kBlockChannels;
    sums_ += kBlockChannels * kPartLanes;
    channels_ -= kBlockChannels;
  }

 private:
  const OutputStage& stage_;
  const DerivedSteps& steps_;
  Requantization to_;
  const std::int32_t* sums_;
  int channels_;  ///< left
  bool planar_;
  std::ptrdiff_t output_stride_;
  std::ptrdiff_t residual_stride_;
  std::ptrdiff_t derived_stride_;
  std::uint8_t* output_;
  const std::uint8_t* residual_ = nullptr;
  std::uint8_t* derived_ = nullptr;
};

/// Every other combination of formats, value by value.
class ValueWriter {
 public:
  ValueWriter(const TileCall& tiles, const Channels& channels, const Place& place, const std::int32_t* sums)
      : tiles_(tiles), place_(place), channel_(channels.first), end_channel_(channels.end), sums_(sums) {}

  bool done() const { return channel_ >= end_channel_; }

  [[gnu::noinline]] void advance() {
    ConvolutionCall part = tiles_.call;
    const auto go_to_place = [&](auto& view, const ActivationFormat& format) {
      if (view.data != nullptr) view.data = place_.in(view, format.bytes);
    };
    go_to_place(part.output, tiles_.stage.format);
    go_to_place(part.residual, tiles_.stage.residual_format);
    go_to_place(part.derived, tiles_.stage.derived_format);
    alignas(64) std::int32_t lanes[kBlockChannels][kLanes];
    for (int k = 0; k < kBlockChannels; ++k, sums_ += kPartLanes) {
      _mm512_storeu_si512(lanes[k], _mm512_load_si512(sums_));
    }
    write_plainly(tiles_.stage, part, 0, channel_, std::min(kBlockChannels, end_channel_ - channel_), lanes,
                  kPartLanes);
    channel_ += kBlockChannels;
  }

 private:
  const TileCall& tiles_;
  const Place place_;
  int channel_;
  int end_channel_;
  const std::int32_t* sums_;
};

/// The sums of the place whose input begins at `input` to memory. Meanwhile, between multiplications,
/// `writer` does its work.
template <int Sums, typename W>
inline __attribute__((always_inline)) void run_place(const TileCall& tiles, const std::uint8_t* input,
                                                     std::int32_t* sums, W writer) {
  const std::ptrdiff_t group_stride = tiles.call.input.group_stride;
  const std::ptrdiff_t row_bytes = tiles.row_bytes;
  zero_tile<Sums>();
  zero_tile<Sums + 1>();
  const TileStep* step = tiles.steps.steps;
  for (const TileStep* const end = step + tiles.steps.count; step != end; ++step) {
    const std::uint8_t* const weights = tiles.weights + step->weights;
    load_tile<kInputTile>(input + step->input, group_stride);
    load_tile<kWeightTile>(weights, row_bytes);
    multiply_add_tiles<Sums, kWeightTile, kInputTile>();
    load_tile<kWeightTile + 1>(weights + tiles.second_block, row_bytes);
    multiply_add_tiles<Sums + 1, kWeightTile + 1, kInputTile>();
    for (int i = tiles.between; i != 0 && !writer.done(); --i) writer.advance();
  }
  store_tile_rows<Sums>(sums, kSumBytes);
  store_tile_rows<Sums + 1>(sums + kTileSums, kSumBytes);
}

/// The same for 16 output channels and three steps whose weights stay.
template <int Sums, typename W>
inline __attribute__((always_inline)) void run_held_place(const TileCall& tiles, const std::uint8_t* input,
                                                          std::int32_t* sums, W writer) {
  const std::ptrdiff_t group_stride = tiles.call.input.group_stride;
  const TileStep* const step = tiles.steps.steps;
  zero_tile<Sums>();
  load_tile<kHeldInputTile>(input + step[0].input, group_stride);
  multiply_add_tiles<Sums, kWeightTile, kHeldInputTile>();
  load_tile<kHeldInputTile>(input + step[1].input, group_stride);
  multiply_add_tiles<Sums, kWeightTile + 1, kHeldInputTile>();
  load_tile<kHeldInputTile>(input + step[2].input, group_stride);
  multiply_add_tiles<Sums, kWeightTile + 2, kHeldInputTile>();
  while (!writer.done()) writer.advance();
  store_tile_rows<Sums>(sums, kSumBytes);
}

/// All places of one block of output channels or two after those of the others. `tiles`: without output
/// channels, which are filled in.
template <typename W>
void run_blocks(const PackedConvolution& packed, TileCall& tiles, bool holds_weights) {
  const ConvolutionCall& call = tiles.call;
  const std::ptrdiff_t block_bytes =
      orders_of(packed.shape) * RowLayout(packed).order_bytes(packed.shape.kernel);
  const int places = tiles.places();
  Channels written_channels;  // what the place that is requantized belongs to: at first, none
  Place multiplied_place(call);
  Place written_place(call);
  unsigned number = 0;  // of places before, for all output channels
  const auto writer = [&]() __attribute__((always_inline)) {
    return W(tiles, written_channels, written_place, tiles.sums_of(number - tiles.delay));
  };
  const auto next = [&](int place) __attribute__((always_inline)) {
    ++number;
    multiplied_place.advance();
    if (number > tiles.delay) written_place.advance();
    if (place + 1 == static_cast<int>(tiles.delay)) written_channels = tiles.channels;
  };
  for (int channel = call.first_channel; channel < call.last_channel; channel = tiles.channels.end) {
    tiles.channels = {channel, std::min(channel + kMaximumBlocks * kBlockOutputs, call.last_channel)};
    tiles.weights = packed.weights.data() + channel / kBlockOutputs * block_bytes;
    tiles.second_block = tiles.channels.count() > kBlockOutputs ? block_bytes : 0;
    if (holds_weights) {
      const TileStep* const step = tiles.steps.steps;
      load_tile<kWeightTile>(tiles.weights + step[0].weights, tiles.row_bytes);
      load_tile<kWeightTile + 1>(tiles.weights + step[1].weights, tiles.row_bytes);
      load_tile<kWeightTile + 2>(tiles.weights + step[2].weights, tiles.row_bytes);
      for (int place = 0; place < places; place += 2) {
        run_held_place<0>(tiles, multiplied_place.in(call.input, kQuad), tiles.sums_of(number), writer());
        next(place);
        run_held_place<2>(tiles, multiplied_place.in(call.input, kQuad), tiles.sums_of(number), writer());
        next(place + 1);
      }
    } else {
      for (int place = 0; place < places; place += 2) {
        run_place<0>(tiles, multiplied_place.in(call.input, kQuad), tiles.sums_of(number), writer());
        next(place);
        run_place<2>(tiles, multiplied_place.in(call.input, kQuad), tiles.sums_of(number), writer());
        next(place + 1);
      }
    }
  }
  for (unsigned rest = 0; rest != tiles.delay; ++rest, ++number) {
    for (W last = writer(); !last.done();) last.advance();
    written_place.advance();
  }
}

using RunBlocks = void (*)(const PackedConvolution& packed, TileCall& tiles, bool holds_weights);

RunBlocks choose(const OutputStage& stage, const ConvolutionCall& call, std::int32_t largest) {
  if (!stays_convertible(stage, call, static_cast<float>(largest))) return run_blocks<ValueWriter>;
  const RunBlocks chosen = choose_by_stage<RunBlocks>(
      stage, []<Residual residual, bool is_signed_output, bool derives>() -> RunBlocks {
        constexpr bool adds = residual != Residual::none;
        return run_blocks<Writer<adds ? Residual::any_quads : residual, is_signed_output, derives>>;
      });
  return chosen != nullptr ? chosen : run_blocks<ValueWriter>;
}

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const ConvolutionShape& shape = packed.shape;
  const RowLayout layout(packed);
  const TileSteps steps(shape, layout, call);
  const bool holds_weights =
      steps.count == kHeldSteps && call.last_channel - call.first_channel <= kBlockOutputs;
  TileConfiguration configuration;
  for (int tile = 0; tile < kSumTiles; ++tile) configuration.set(tile, kBlockOutputs, kSumBytes);
  for (int tile = kWeightTile; tile < kTiles; ++tile) {
    if (tile < (holds_weights ? kHeldInputTile : kInputTile)) {
      configuration.set(tile, kBlockOutputs, steps.quads * kQuad);
    } else {
      configuration.set(tile, steps.quads, kPartBytes);
    }
  }
  configure_tiles(configuration);

  alignas(64) std::int32_t sums[kRing * kMaximumBlocks * kTileSums];
  const DerivedSteps derived_steps(stage);
  const unsigned delay = call.rows * call.positions * kParts < kFewPlaces ? 1 : kMaximumDelay;
  // Enough for the channels that were multiplied before, which may be more than those that are.
  const int channels = std::min(call.last_channel - call.first_channel, kMaximumBlocks * kBlockOutputs);
  const int writes = (channels + kBlockChannels - 1) / kBlockChannels;
  const int between = (writes + steps.count - 1) / steps.count;
  TileCall tiles{call,  stage,  steps, derived_steps, layout.bytes, sums, stage.format == kPlanar8,
                 delay, between};
  choose(stage, call, packed.program[0])(packed, tiles, holds_weights);
  release_tiles();
}

constexpr ConvolutionKernel row(std::string_view name, int weight_bits, int activation_bits) {
  return {name,         InstructionSet::avx512_amx,
          weight_bits,  activation_bits,
          kKernelLanes, kBlockOutputs,
          kQuads8,      supports,
          pack,         run,
          kQuads8,      nullptr,
          false,        true};
}

constexpr std::array kRows = {
    row("int8_amx", 8, 8),   row("int8a4_amx", 8, 4), row("int8a2_amx", 8, 2),
    row("int4a8_amx", 4, 8), row("int4_amx", 4, 4),   row("int4a2_amx", 4, 2),
    row("int2a8_amx", 2, 8), row("int2a4_amx", 2, 4), row("int2_amx", 2, 2),
};

}  // namespace

std::span<const ConvolutionKernel> int8_avx512_amx_kernels() {
  return kRows;
}

}  // namespace nibble
