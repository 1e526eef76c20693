// All widths up to 8 bits, AMX: one instruction multiplies 16 output channels by 16 lanes, 64 products each,
// and adds them in s32, exactly. What is left to save are loads and the requantization.
//
//   weights:      s8 [16 output channels][16 quads][4]     a row of 64 bytes for each output channel
//   activations:  u8 [16 quads][16 lanes][4]               quads8 as they lie in the map, a row for each quad
//   sums:        s32 [16 output channels][16 lanes]
//
// A quad is four input channels of one tap. Where the taps of a kernel row follow each other in memory, in
// image lanes as in the column copies of position lanes, their quads are one chain, so that tiles are filled:
// three taps of 16 channels are a tile of 12 rows, three of 32 are tiles of 16 and 8, whatever meets padding
// is left out. A multiplication takes 16 cycles for any number of quads (measured on Emerald Rapids).
//
// Register blocks are 1 x 4 or 2 x 2 tiles of sums: output channels x places, a place being 16 lanes of a
// position. While a block is multiplied, the one before it is requantized from memory, some registers of
// bytes after each step.
//
//   weights:  s8 [block of 16 output channels][order][kernel row][16][row_bytes: quads of its taps, padded to
//   64]
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
/// Tiles of both sizes that the steps of a call may have.
constexpr int kSizes = 2;
constexpr int kWeightTile[kSizes] = {4, 6};
constexpr int kInputTile[kSizes] = {5, 7};
/// Where columns 0, 1, 2 of a kernel row lie in the column copies.
constexpr int kCopyOfColumn[] = {1, 0, 2};

int groups_of(const ConvolutionShape& shape) {
  return group_count(kQuads8, shape.input_channels);
}
/// Taps of more than 15 quads fill tiles alone.
int orders_of(const ConvolutionShape& shape) {
  return shape.kernel == 3 && groups_of(shape) < kTileRows ? 2 : 1;
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

PackedConvolution pack(const ConvolutionLayer& layer) {
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
    for (int order = 0; joins_taps && order < orders_of(shape); ++order) {
      // The leftmost tap in memory, from which the others must follow without a gap, here and in the weights.
      const Tap* const begin =
          std::min_element(first, last, [](const Tap& a, const Tap& b) { return a.offset < b.offset; });
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

/// A register block whose sums lie in memory: [output tile][place][16 output channels][16 lanes].
struct Block {
  const std::int32_t* sums;
  int places;
  int groups;  ///< of four output channels
  int first_place;
  int channel;
};

/// Registers of bytes of a block, in the order [place][group of four output channels], that wait for their
/// requantization.
struct Waiting {
  Block block{};
  int place = 0;
  int group = 0;
  int left = 0;

  explicit Waiting() = default;
  explicit Waiting(const Block& of) : block(of), left(of.places * of.groups) {}
};

/// Requantizes `count` registers.
using Write = void (*)(const OutputStage& stage, const DerivedSteps& steps, const ConvolutionCall& call,
                       Waiting& waiting, int count);

const std::int32_t* sums_of(const Waiting& waiting) {
  constexpr int kGroups = kBlockOutputs / kBlockChannels;
  const int tile = waiting.group / kGroups * waiting.block.places + waiting.place;
  return waiting.block.sums + (tile * kBlockOutputs + waiting.group % kGroups * kBlockChannels) * kPartLanes;
}

void go_on(Waiting& waiting) {
  --waiting.left;
  if (++waiting.group < waiting.block.groups) return;
  waiting.group = 0;
  ++waiting.place;
}

template <Residual residual, bool is_signed_output, bool derives>
void write(const OutputStage& given_stage, const DerivedSteps& given_steps, const ConvolutionCall& given_call,
           Waiting& given_waiting, int count) {
  // Copies: the stores could change the originals, as far as the compiler knows.
  const OutputStage stage = given_stage;
  const DerivedSteps steps = given_steps;
  const ConvolutionCall call = given_call;
  Waiting waiting = given_waiting;
  const bool planar = stage.format == kPlanar8;
  for (; count > 0; --count) {
    const std::int32_t* const sums = sums_of(waiting);
    const int place = waiting.block.first_place + waiting.place;
    write_part<residual, is_signed_output, derives>(
        stage, steps, call, planar, place / kParts, place % kParts,
        waiting.block.channel + waiting.group * kBlockChannels, [&](int k) __attribute__((always_inline)) {
          return _mm512_load_si512(sums + k * kPartLanes);
        });
    go_on(waiting);
  }
  given_waiting = waiting;
}

/// Every other combination of formats, value by value.
void write_values(const OutputStage& stage, const DerivedSteps&, const ConvolutionCall& given_call,
                  Waiting& waiting, int count) {
  for (; count > 0; --count) {
    const int place = waiting.block.first_place + waiting.place;
    const int channel = waiting.block.channel + waiting.group * kBlockChannels;
    alignas(64) std::int32_t sums[kBlockChannels][kLanes];
    for (int k = 0; k < kBlockChannels; ++k) {
      _mm512_storeu_si512(sums[k], _mm512_load_si512(sums_of(waiting) + k * kPartLanes));
    }
    ConvolutionCall call = given_call;
    const auto skip_lanes = [&](auto& view, const ActivationFormat& format) {
      if (view.data != nullptr) view.data += place % kParts * kPartLanes * format.bytes;
    };
    skip_lanes(call.output, stage.format);
    skip_lanes(call.residual, stage.residual_format);
    skip_lanes(call.derived, stage.derived_format);
    write_plainly(stage, call, place / kParts, channel, std::min(kBlockChannels, call.last_channel - channel),
                  sums, kPartLanes);
    go_on(waiting);
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

/// What the blocks of a call share.
struct TileCall {
  const ConvolutionCall& call;
  const OutputStage& stage;
  const TileSteps& steps;
  const DerivedSteps derived_steps;
  const Write write;
  const std::uint8_t* weights;
  std::ptrdiff_t block_bytes;  ///< of a block of output channels
  std::ptrdiff_t row_bytes;
  Waiting waiting{};

  void write_some(int count) {
    count = std::min(count, waiting.left);
    if (count > 0) write(stage, derived_steps, call, waiting, count);
  }
};

/// The sums of output tile o and place p are tile o * Places + p.
template <int Outputs, int Places, int Size>
inline __attribute__((always_inline)) void multiply_steps(TileCall& tiles, const std::uint8_t* weights,
                                                          const std::uint8_t* const (&input)[kSumTiles],
                                                          int writes_a_step) {
  constexpr int kW = kWeightTile[Size];
  constexpr int kX = kInputTile[Size];
  const std::ptrdiff_t group_stride = tiles.call.input.group_stride;
  const std::ptrdiff_t row_bytes = tiles.row_bytes;
  const TileStep* step = tiles.steps.steps[Size];
  for (const TileStep* const end = step + tiles.steps.counts[Size]; step != end; ++step) {
    const std::uint8_t* const w = weights + step->weights;
    load_tile<kX>(input[0] + step->input, group_stride);
    load_tile<kW>(w, row_bytes);
    multiply_add_tiles<0, kW, kX>();
    if constexpr (Outputs == 2) {
      load_tile<kW>(w + tiles.block_bytes, row_bytes);
      multiply_add_tiles<Places, kW, kX>();
      if constexpr (Places == 2) {
        load_tile<kX>(input[1] + step->input, group_stride);
        multiply_add_tiles<3, kW, kX>();
        load_tile<kW>(w, row_bytes);
        multiply_add_tiles<1, kW, kX>();
      }
    } else {
      if constexpr (Places > 1) {
        load_tile<kX>(input[1] + step->input, group_stride);
        multiply_add_tiles<1, kW, kX>();
      }
      if constexpr (Places > 2) {
        load_tile<kX>(input[2] + step->input, group_stride);
        multiply_add_tiles<2, kW, kX>();
      }
      if constexpr (Places > 3) {
        load_tile<kX>(input[3] + step->input, group_stride);
        multiply_add_tiles<3, kW, kX>();
      }
    }
    tiles.write_some(writes_a_step);
  }
}

using Multiply = void (*)(TileCall& tiles, const std::uint8_t* weights,
                          const std::uint8_t* const (&input)[kSumTiles], std::int32_t* sums);

template <int Outputs, int Places>
void multiply(TileCall& tiles, const std::uint8_t* weights, const std::uint8_t* const (&input)[kSumTiles],
              std::int32_t* sums) {
  zero_tile<0>();
  if constexpr (Outputs * Places > 1) zero_tile<1>();
  if constexpr (Outputs * Places > 2) zero_tile<2>();
  if constexpr (Outputs * Places > 3) zero_tile<3>();
  const int steps = tiles.steps.counts[0] + tiles.steps.counts[1];
  const int writes_a_step = (tiles.waiting.left + steps - 1) / steps;
  multiply_steps<Outputs, Places, 0>(tiles, weights, input, writes_a_step);
  multiply_steps<Outputs, Places, 1>(tiles, weights, input, writes_a_step);
  constexpr int kTile = kBlockOutputs * kPartLanes;
  store_tile_rows<0>(sums, kSumBytes);
  if constexpr (Outputs * Places > 1) store_tile_rows<1>(sums + kTile, kSumBytes);
  if constexpr (Outputs * Places > 2) store_tile_rows<2>(sums + 2 * kTile, kSumBytes);
  if constexpr (Outputs * Places > 3) store_tile_rows<3>(sums + 3 * kTile, kSumBytes);
}

/// [output tiles - 1][places - 1]
constexpr Multiply kMultiply[2][kSumTiles] = {
    {multiply<1, 1>, multiply<1, 2>, multiply<1, 3>, multiply<1, 4>},
    {multiply<2, 1>, multiply<2, 2>, nullptr, nullptr}};

void run(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const ConvolutionShape& shape = packed.shape;
  const TileSteps steps(shape, call);
  TileConfiguration configuration;
  for (int tile = 0; tile < kSumTiles; ++tile) configuration.set(tile, kBlockOutputs, kSumBytes);
  for (int size = 0; size < kSizes && steps.counts[size] != 0; ++size) {
    configuration.set(kWeightTile[size], kBlockOutputs, steps.quads[size] * kQuad);
    configuration.set(kInputTile[size], steps.quads[size], kPartBytes);
  }
  configure_tiles(configuration);

  TileCall tiles{call,
                 stage,
                 steps,
                 DerivedSteps(stage),
                 choose_write(stage, call, packed.program[0]),
                 packed.weights.data(),
                 orders_of(shape) * order_bytes_of(shape),
                 row_bytes_of(shape)};
  alignas(64) std::int32_t sums[2][kSumTiles * kBlockOutputs * kPartLanes];
  int current = 0;
  const int places = call.positions * kParts;
  for (int channel = call.first_channel; channel < call.last_channel;) {
    const int channels = std::min(call.last_channel - channel, 2 * kBlockOutputs);
    const int outputs = (channels + kBlockOutputs - 1) / kBlockOutputs;
    const std::uint8_t* const weights = tiles.weights + channel / kBlockOutputs * tiles.block_bytes;
    for (int first = 0; first < places;) {
      const int count = std::min(places - first, kSumTiles / outputs);
      const std::uint8_t* input[kSumTiles] = {};
      for (int p = 0; p < count; ++p) {
        input[p] = call.input.at((first + p) / kParts, 0) + (first + p) % kParts * kPartBytes;
      }
      kMultiply[outputs - 1][count - 1](tiles, weights, input, sums[current]);
      tiles.waiting =
          Waiting({sums[current], count, (channels + kBlockChannels - 1) / kBlockChannels, first, channel});
      current ^= 1;
      first += count;
    }
    channel += channels;
  }
  tiles.write_some(tiles.waiting.left);
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
