// All widths up to 8 bits, AMX: one instruction multiplies 16 output channels by 16 lanes, 64 products each,
// and adds them in s32, exactly. What is left to save are loads and the requantization.
//
//   weights:      s8 [16 output channels][16 quads][4]     a row of 64 bytes for each output channel
//   activations:  u8 [16 quads][16 lanes][4]               quads8 as they lie in the map, a row for each quad
//   sums:        s32 [16 output channels][16 lanes]
//
// A quad is four input channels of one tap. Where the taps of a kernel row follow each other in memory, in
// image lanes and, below 32 channels, in the column copies of position lanes, their quads are one chain, so
// that tiles are filled: three taps of 16 channels are a tile of 12 rows, three of 32 are tiles of 16 and 8,
// whatever meets padding is left out. A multiplication takes 16 cycles for any number of quads (measured on
// Emerald Rapids).
//
// A place is 16 lanes of a position. Its sums of 16 or 32 output channels are multiplied one place after the
// other in alternating tiles, so that a tile is stored while the next one is multiplied, and the place before
// is requantized meanwhile: that work needs other pipes, but for 512-bit products and conversions of floats,
// which have one pipe left instead of two. Where three steps are all, their weights stay in tiles.
//
//   weights:  s8 [block of 16 output channels][order][kernel row][16][row_bytes], quads padded to 64 bytes
//             order 0: taps from left to right; order 1, where it is needed: middle, left, right, as column
//             copies lie
//   program:  the largest magnitude of a sum

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/quads_avx512_vnni.h"
#include "kernels/steps.h"
#include "kernels/thresholds.h"
#include "kernels/tiles_amx.h"

namespace nibble {
namespace {

constexpr int kBlockOutputs = 16;  ///< output channels of a tile of sums
constexpr int kMaximumKernel = 7;
constexpr int kSumTiles = 4;
constexpr int kSumBytes = kPartLanes * static_cast<int>(sizeof(std::int32_t));
constexpr int kTileSums = kBlockOutputs * kPartLanes;
/// Tiles of both sizes that the steps of a call may have.
constexpr int kSizes = 2;
constexpr int kWeightTile[kSizes] = {4, 6};
constexpr int kInputTile[kSizes] = {5, 7};
/// Where weights stay: of the first, second and third step; and the input of each.
constexpr int kHeldSteps = 3;
constexpr int kFirstHeldTile = 4;
constexpr int kHeldInputTile = kFirstHeldTile + kHeldSteps;
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
/// Of the weights of one output channel's kernel row: no tile's row crosses more cache lines than it must.
std::ptrdiff_t row_bytes_of(const ConvolutionShape& shape) {
  const int bytes = shape.kernel * groups_of(shape) * kQuad;
  return (bytes + kTileRowBytes - 1) / kTileRowBytes * kTileRowBytes;
}
std::ptrdiff_t order_bytes_of(const ConvolutionShape& shape) {
  return shape.kernel * kBlockOutputs * row_bytes_of(shape);
}

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

[[gnu::cold]] PackedConvolution pack(const ConvolutionLayer& layer) {
  const ConvolutionShape& shape = layer.shape;
  const int blocks = (shape.output_channels + kBlockOutputs - 1) / kBlockOutputs;
  const std::ptrdiff_t row_bytes = row_bytes_of(shape);
  const std::ptrdiff_t tap_bytes = std::ptrdiff_t{groups_of(shape)} * kQuad;
  PackedConvolution packed{shape, layer.activation_bits, {}, {largest_sum(layer)}};
  packed.weights.resize(static_cast<std::size_t>(blocks * orders_of(shape) * order_bytes_of(shape)));
  std::uint8_t* to = packed.weights.data();
  for (int block = 0; block < blocks; ++block) {
    for (int order = 0; order < orders_of(shape); ++order) {
      for (int row = 0; row < shape.kernel; ++row) {
        for (int o = 0; o < kBlockOutputs; ++o, to += row_bytes) {
          for (int column = 0; column < shape.kernel; ++column) {
            for (int i = 0; i < shape.input_channels; ++i) {
              to[place_of(order, column) * tap_bytes + i] = static_cast<std::uint8_t>(
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

/// The steps of a call, by the number of their quads.
struct TileSteps {
  int quads[kSizes] = {};
  int counts[kSizes] = {};
  TileStep steps[kSizes][kMaximumSteps];

  TileSteps(const ConvolutionShape& shape, const ConvolutionCall& call) {
    // Steps of three sizes, when rows miss different taps, do not occur where each tap is a chain.
    if (add_rows(shape, call, true)) return;
    for (int size = 0; size < kSizes; ++size) quads[size] = counts[size] = 0;
    add_rows(shape, call, false);
  }

 private:
  /// False: there are more than two sizes.
  bool add_rows(const ConvolutionShape& shape, const ConvolutionCall& call, bool joins_taps) {
    const Tap* const end = call.taps.data() + call.taps.size();
    for (const Tap* first = call.taps.data(); first != end;) {
      const int row = first->index / shape.kernel;
      const Tap* last = first;
      while (last != end && last->index / shape.kernel == row) ++last;
      if (!add_row(shape, call, row, first, last, joins_taps)) return false;
      first = last;
    }
    return true;
  }

  bool add_row(const ConvolutionShape& shape, const ConvolutionCall& call, int row, const Tap* first,
               const Tap* last, bool joins_taps) {
    const int groups = groups_of(shape);
    const std::ptrdiff_t tap_stride = groups * call.input.group_stride;
    const auto add = [&](const Tap& tap, int order, int taps) {
      const std::ptrdiff_t weights =
          order * order_bytes_of(shape) + row * kBlockOutputs * row_bytes_of(shape) +
          std::ptrdiff_t{place_of(order, tap.index % shape.kernel)} * groups * kQuad;
      return add_chain({tap.offset, weights}, groups * taps, call.input.group_stride);
    };
    // The leftmost tap in memory, from which the others must follow without a gap, here and in the weights.
    const Tap* const begin =
        std::min_element(first, last, [](const Tap& a, const Tap& b) { return a.offset < b.offset; });
    for (int order = 0; joins_taps && order < orders_of(shape); ++order) {
      const int place = place_of(order, begin->index % shape.kernel);
      const bool follows = std::all_of(first, last, [&](const Tap& tap) {
        const int behind = place_of(order, tap.index % shape.kernel) - place;
        return behind >= 0 && behind < last - first && tap.offset == begin->offset + behind * tap_stride;
      });
      if (follows) return add(*begin, order, static_cast<int>(last - first));
    }
    return std::all_of(first, last, [&](const Tap& tap) { return add(tap, 0, 1); });
  }

  bool add_chain(TileStep step, int chain_quads, std::ptrdiff_t group_stride) {
    while (chain_quads > 0) {
      const int now = std::min(chain_quads, kTileRows);
      int size = 0;
      while (size < kSizes && quads[size] != now && counts[size] != 0) ++size;
      if (size == kSizes) return false;
      quads[size] = now;
      steps[size][counts[size]++] = step;
      step.input += now * group_stride;
      step.weights += std::ptrdiff_t{now} * kQuad;
      chain_quads -= now;
    }
    return true;
  }
};

struct TileCall;

/// Requantizes the sums, [output channel][16 lanes], of place `place` of a call.
using Write = void (*)(const TileCall& tiles, int place, const std::int32_t* sums);

/// What the places of some output channels share.
struct TileCall {
  const ConvolutionCall& call;
  const OutputStage& stage;
  const TileSteps& steps;
  const DerivedSteps& derived_steps;
  Write write;
  bool planar;                 ///< output, else quads8
  std::ptrdiff_t block_bytes;  ///< of the weights of 16 output channels
  std::ptrdiff_t row_bytes;
  const std::uint8_t* weights;  ///< of the first of them
  int channel;
  int end_channel;
  std::int32_t* sums;  ///< of two places

  const std::uint8_t* input_of(int place) const {
    return call.input.at(place / kParts, 0) + place % kParts * kPartBytes;
  }
};

template <Residual residual, bool is_signed_output, bool derives>
void write(const TileCall& given_tiles, int place, const std::int32_t* sums) {
  // Copies: the stores could change the originals, as far as the compiler knows.
  const OutputStage stage = given_tiles.stage;
  const DerivedSteps steps = given_tiles.derived_steps;
  const ConvolutionCall call = given_tiles.call;
  const bool planar = given_tiles.planar;
  const int end = given_tiles.end_channel;
  const int position = place / kParts;
  const int part = place % kParts;
  for (int channel = given_tiles.channel; channel < end; channel += kBlockChannels) {
    const __m512i bytes = requantized<residual, is_signed_output>(
        Requantization(stage, channel), residual_of<residual>(call, position, part, channel), 0,
        kBlockChannels, [&](int k) __attribute__((always_inline)) {
          return _mm512_load_si512(sums + k * kPartLanes);
        });
    std::uint8_t* const output = planar ? call.output.at(position, channel) + kPartLanes * part
                                        : call.output.at(position, channel / kQuad) + kPartBytes * part;
    const __m512i quads =
        store_part(bytes, planar, output, call.output.group_stride, std::min(kBlockChannels, end - channel));
    if constexpr (derives) {
      store(call.derived.at(position, channel / kQuad) + kPartBytes * part, derive(quads, stage, steps));
    }
    sums += kBlockChannels * kPartLanes;
  }
}

/// Every other combination of formats, value by value.
void write_values(const TileCall& tiles, int place, const std::int32_t* sums) {
  ConvolutionCall part = tiles.call;
  const auto skip_lanes = [&](auto& view, const ActivationFormat& format) {
    if (view.data != nullptr) view.data += place % kParts * kPartLanes * format.bytes;
  };
  skip_lanes(part.output, tiles.stage.format);
  skip_lanes(part.residual, tiles.stage.residual_format);
  skip_lanes(part.derived, tiles.stage.derived_format);
  for (int channel = tiles.channel; channel < tiles.end_channel; channel += kBlockChannels) {
    alignas(64) std::int32_t lanes[kBlockChannels][kLanes];
    for (int k = 0; k < kBlockChannels; ++k, sums += kPartLanes) {
      _mm512_storeu_si512(lanes[k], _mm512_load_si512(sums));
    }
    write_plainly(tiles.stage, part, place / kParts, channel,
                  std::min(kBlockChannels, tiles.end_channel - channel), lanes, kPartLanes);
  }
}

Write choose_write(const OutputStage& stage, const ConvolutionCall& call, std::int32_t largest) {
  if (!stays_convertible(stage, call, static_cast<float>(largest))) return write_values;
  const Write chosen =
      choose_by_stage<Write>(stage, []<Residual residual, bool is_signed_output, bool derives>() -> Write {
        return write<residual, is_signed_output, derives>;
      });
  return chosen != nullptr ? chosen : write_values;
}

/// Adds the products of all steps of a size to the sums of one place, tile `Sums` and, of 32 output channels,
/// the one behind it.
template <int Outputs, int Sums, int Size>
inline __attribute__((always_inline)) void multiply_steps(const TileCall& tiles, const std::uint8_t* input) {
  constexpr int kW = kWeightTile[Size];
  constexpr int kX = kInputTile[Size];
  const std::ptrdiff_t group_stride = tiles.call.input.group_stride;
  const TileStep* step = tiles.steps.steps[Size];
  for (const TileStep* const end = step + tiles.steps.counts[Size]; step != end; ++step) {
    const std::uint8_t* const weights = tiles.weights + step->weights;
    load_tile<kX>(input + step->input, group_stride);
    load_tile<kW>(weights, tiles.row_bytes);
    multiply_add_tiles<Sums, kW, kX>();
    if constexpr (Outputs == 2) {
      load_tile<kW>(weights + tiles.block_bytes, tiles.row_bytes);
      multiply_add_tiles<Sums + 1, kW, kX>();
    }
  }
}

/// The same for three steps whose weights stay.
template <int Sums>
inline __attribute__((always_inline)) void multiply_held(const TileCall& tiles, const std::uint8_t* input) {
  const std::ptrdiff_t group_stride = tiles.call.input.group_stride;
  const TileStep* const step = tiles.steps.steps[0];
  load_tile<kHeldInputTile>(input + step[0].input, group_stride);
  multiply_add_tiles<Sums, kFirstHeldTile, kHeldInputTile>();
  load_tile<kHeldInputTile>(input + step[1].input, group_stride);
  multiply_add_tiles<Sums, kFirstHeldTile + 1, kHeldInputTile>();
  load_tile<kHeldInputTile>(input + step[2].input, group_stride);
  multiply_add_tiles<Sums, kFirstHeldTile + 2, kHeldInputTile>();
}

/// The sums of place number `place` of the call to memory; requantizes those of the place before.
template <int Outputs, bool holds_weights, int Sums>
inline __attribute__((always_inline)) void run_place(const TileCall& tiles, int place) {
  const std::uint8_t* const input = tiles.input_of(place);
  std::int32_t* const sums = tiles.sums + Sums * kTileSums;
  zero_tile<Sums>();
  if constexpr (Outputs == 2) zero_tile<Sums + 1>();
  if constexpr (holds_weights) {
    multiply_held<Sums>(tiles, input);
  } else {
    multiply_steps<Outputs, Sums, 0>(tiles, input);
    multiply_steps<Outputs, Sums, 1>(tiles, input);
  }
  if (place > 0) tiles.write(tiles, place - 1, tiles.sums + (Sums + 2) % kSumTiles * kTileSums);
  store_tile_rows<Sums>(sums, kSumBytes);
  if constexpr (Outputs == 2) store_tile_rows<Sums + 1>(sums + kTileSums, kSumBytes);
}

template <int Outputs, bool holds_weights>
void run_places(const TileCall& tiles, int places) {
  if constexpr (holds_weights) {
    const TileStep* const step = tiles.steps.steps[0];
    load_tile<kFirstHeldTile>(tiles.weights + step[0].weights, tiles.row_bytes);
    load_tile<kFirstHeldTile + 1>(tiles.weights + step[1].weights, tiles.row_bytes);
    load_tile<kFirstHeldTile + 2>(tiles.weights + step[2].weights, tiles.row_bytes);
  }
  for (int place = 0; place < places; place += 2) {
    run_place<Outputs, holds_weights, 0>(tiles, place);
    if (place + 1 < places) run_place<Outputs, holds_weights, 2>(tiles, place + 1);
  }
  tiles.write(tiles, places - 1, tiles.sums + (places - 1) % 2 * 2 * kTileSums);
}

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const ConvolutionShape& shape = packed.shape;
  const TileSteps steps(shape, call);
  const bool holds_weights = steps.counts[0] == kHeldSteps && steps.counts[1] == 0 &&
                             call.last_channel - call.first_channel <= kBlockOutputs;
  TileConfiguration configuration;
  for (int tile = 0; tile < kSumTiles; ++tile) configuration.set(tile, kBlockOutputs, kSumBytes);
  if (holds_weights) {
    for (int step = 0; step < kHeldSteps; ++step) {
      configuration.set(kFirstHeldTile + step, kBlockOutputs, steps.quads[0] * kQuad);
    }
    configuration.set(kHeldInputTile, steps.quads[0], kPartBytes);
  } else {
    for (int size = 0; size < kSizes && steps.counts[size] != 0; ++size) {
      configuration.set(kWeightTile[size], kBlockOutputs, steps.quads[size] * kQuad);
      configuration.set(kInputTile[size], steps.quads[size], kPartBytes);
    }
  }
  configure_tiles(configuration);

  alignas(64) std::int32_t sums[kSumTiles * kTileSums];
  const DerivedSteps derived_steps(stage);
  TileCall tiles{call,
                 stage,
                 steps,
                 derived_steps,
                 choose_write(stage, call, packed.program[0]),
                 stage.format == kPlanar8,
                 orders_of(shape) * order_bytes_of(shape),
                 row_bytes_of(shape),
                 nullptr,
                 0,
                 0,
                 sums};
  const int places = call.positions * kParts;
  for (int channel = call.first_channel; channel < call.last_channel; channel = tiles.end_channel) {
    tiles.weights = packed.weights.data() + channel / kBlockOutputs * tiles.block_bytes;
    tiles.channel = channel;
    tiles.end_channel = std::min(channel + 2 * kBlockOutputs, call.last_channel);
    if (tiles.end_channel - channel > kBlockOutputs) {
      run_places<2, false>(tiles, places);
    } else if (holds_weights) {
      run_places<1, true>(tiles, places);
    } else {
      run_places<1, false>(tiles, places);
    }
  }
  release_tiles();
}

constexpr ConvolutionKernel row(std::string_view name, int weight_bits, int activation_bits) {
  return {name,         InstructionSet::avx512_amx,
          weight_bits,  activation_bits,
          kKernelLanes, kBlockOutputs,
          kQuads8,      supports,
          pack,         run,
          kQuads8};
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
