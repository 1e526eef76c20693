#include "graph/network/image_tiles.h"

#include <chrono>
#include <cstring>
#include <utility>

#include "graph/network/convolution_shape.h"
#include "kernels/features.h"
#include "kernels/reference.h"

namespace nibble {
namespace {

ConvolutionShape tile_shape(const IntegerPlan& plan, std::size_t index) {
  const ConvolutionShape& shape = plan.convolutions[index].shape;
  return index == 0 ? with_border(shape) : shape;
}

/// Seconds since the last lap; asks the clock only when it is wanted.
class Stopwatch {
 public:
  explicit Stopwatch(bool wanted) {
    if (wanted) last_ = Clock::now();
  }
  double lap() {
    const Clock::time_point now = Clock::now();
    return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_;
};

std::ptrdiff_t position_bytes(const IntegerPlan& plan, int channels, const ActivationFormat& format) {
  return std::ptrdiff_t{group_count(format, channels)} * plan.lanes * format.bytes;
}

}  // namespace

ImageTiles::ImageTiles(const IntegerPlan& plan) {
  for (std::size_t i = 0; i < plan.convolutions.size(); ++i) {
    const ConvolutionShape shape = tile_shape(plan, i);
    const std::ptrdiff_t bytes =
        position_bytes(plan, shape.input_channels, plan.convolutions[i].kernel->input_format);
    const ConvolutionKernel& kernel = *plan.convolutions[i].kernel;
    geometries_.push_back(cut_into_runs(shape, {shape.input_width * bytes, bytes},
                                        kernel.prefers_whole_rows(plan.convolutions[i].packed),
                                        kernel.takes_rows));
  }
  const ActivationFormat& format = plan.convolutions[0].kernel->input_format;
  border_.resize(static_cast<std::size_t>(position_bytes(plan, 3, format)));
  for (int c = 0; c < 3; ++c) {
    for (int lane = 0; lane < plan.lanes; ++lane) {
      store_activation({border_.data(), 0, plan.lanes * format.bytes}, format, 0, c, lane, kBorderPixel[c]);
    }
  }
  const auto side = static_cast<std::size_t>(tile_shape(plan, 0).input_width);
  const std::size_t sum_bytes =
      static_cast<std::size_t>(plan.network.feature_channels * plan.lanes) * sizeof(std::int32_t);
  tensors_ = plan_tensors(
      plan, side * side * border_.size(), sum_bytes, false,
      [&](int size, int channels, const ActivationFormat& map_format) {
        return static_cast<std::size_t>(size * size * position_bytes(plan, channels, map_format));
      });
}

ImageTiles::TileMap ImageTiles::map_of(const IntegerPlan& plan, std::size_t tensor, int width, int channels,
                                       const ActivationFormat& format, std::uint8_t* scratch) const {
  return {scratch + tensors_.memory.offset(tensor), width, position_bytes(plan, channels, format),
          std::ptrdiff_t{plan.lanes} * format.bytes};
}

void ImageTiles::load_images(const IntegerPlan& plan, const std::uint8_t* pixels, int count,
                             std::uint8_t* scratch) const {
  const int size = plan.network.image_size;
  const int side = tile_shape(plan, 0).input_width;
  const int border = (side - size) / 2;
  const ActivationFormat& format = plan.convolutions[0].kernel->input_format;
  const TileMap tile = map_of(plan, tensors_.pixels, side, 3, format, scratch);
  const auto at = [&](int row, int column) {
    return tile.data + (std::ptrdiff_t{row} * side + column) * tile.position_bytes;
  };
  for (int row = 0; row < side; ++row) {
    const bool outside = row < border || row >= side - border;
    for (int column = 0; column < side; ++column) {
      if (!outside && column == border) column += size;
      std::memcpy(at(row, column), border_.data(), border_.size());
    }
  }
  load_pixels(pixels, count, size, size, format, {at(border, border), tile.position_bytes, tile.group_bytes},
              side * tile.position_bytes);
}

void ImageTiles::run_layer(const IntegerPlan& plan, std::size_t index, std::size_t input, std::size_t output,
                           std::size_t residual, std::size_t derived, std::uint8_t* scratch) const {
  const PlannedConvolution& planned = plan.convolutions[index];
  const ConvolutionKernel& kernel = *planned.kernel;
  const OutputStage& stage = planned.stage;
  const ConvolutionShape shape = tile_shape(plan, index);
  const int width = shape.output_width();
  const TileMap input_map =
      map_of(plan, input, shape.input_width, shape.input_channels, kernel.input_format, scratch);
  const auto output_map = [&](std::size_t tensor, const ActivationFormat& format) {
    return map_of(plan, tensor, width, shape.output_channels, format.bytes == 0 ? kPlanar8 : format, scratch);
  };
  const TileMap maps[3] = {output_map(output, stage.format), output_map(residual, stage.residual_format),
                           output_map(derived, stage.derived_format)};
  for (int block = 0; block < plan.lanes / kernel.lanes; ++block) {
    for (const PositionRun& run : geometries_[index].runs) {
      const auto view = [&](const TileMap& map, int stride, const ActivationFormat& format) {
        const std::ptrdiff_t column = stride * map.position_bytes;
        const std::ptrdiff_t row = map.width * column;
        const std::ptrdiff_t first = run.row * row + run.column * column;
        const std::ptrdiff_t step = run.row_step * row + run.column_step * column;
        return OutputView{map.data + first + std::ptrdiff_t{block} * kernel.lanes * format.bytes, step,
                          map.group_bytes, row};
      };
      kernel.run(planned.packed, stage,
                 {view(input_map, shape.stride, kernel.input_format), geometries_[index].tap_lists[run.taps],
                  run.positions, 0, shape.output_channels, view(maps[0], 1, stage.format),
                  view(maps[1], 1, stage.residual_format), view(maps[2], 1, stage.derived_format),
                  run.whole_row, run.rows});
    }
  }
}

void ImageTiles::pad_shortcut(const IntegerPlan& plan, std::size_t block, std::uint8_t* scratch) const {
  const TensorPlan::BlockTensors& tensors = tensors_.blocks[block];
  const ActivationFormat& format = plan.blocks[block].shortcut;
  const ConvolutionShape& shape =
      plan.convolutions[static_cast<std::size_t>(plan.network.blocks[block].conv1)].shape;
  const TileMap from = map_of(plan, tensors.stream, shape.input_width, shape.input_channels, format, scratch);
  const TileMap to =
      map_of(plan, tensors.shortcut, shape.output_width(), shape.output_channels, format, scratch);
  for (int row = 0; row < shape.output_height(); ++row) {
    for (int column = 0; column < shape.output_width(); ++column) {
      const std::ptrdiff_t source = (std::ptrdiff_t{2} * row * from.width + 2 * column) * from.position_bytes;
      const std::ptrdiff_t target = (std::ptrdiff_t{row} * to.width + column) * to.position_bytes;
      pad_channels({from.data + source, 0, from.group_bytes}, {to.data + target, 0, to.group_bytes}, format,
                   shape.input_channels, shape.output_channels, plan.lanes);
    }
  }
}

template <typename Value, typename Accumulator>
void ImageTiles::classify(const IntegerPlan& plan, int count, float* logits, std::uint8_t* scratch) const {
  const int channels = plan.network.feature_channels;
  const int positions = plan.network.feature_size * plan.network.feature_size;
  const auto* features = reinterpret_cast<const Value*>(scratch + tensors_.memory.offset(tensors_.features));
  auto* sums = reinterpret_cast<std::int32_t*>(scratch + tensors_.memory.offset(tensors_.sums));
  pool_image_lanes(features, positions, channels, plan.lanes, sums);
  linear<Accumulator>(sums, channels, plan.lanes, count, plan.linear_weights, plan.linear_scale,
                      plan.linear_offset, logits);
}

void ImageTiles::run(const IntegerPlan& plan, const std::uint8_t* pixels, int count, float* logits,
                     std::uint8_t* scratch, TileTimes* times) const {
  Stopwatch watch(times != nullptr);
  load_images(plan, pixels, count, scratch);
  if (times != nullptr) times->images += watch.lap();
  const auto layer = [&](int index, std::size_t input, std::size_t output, std::size_t residual,
                         std::size_t derived) {
    const auto i = static_cast<std::size_t>(index);
    run_layer(plan, i, input, output, residual, derived, scratch);
    if (times != nullptr) times->convolutions[i] += watch.lap();
  };
  const std::size_t first_stream = plan.blocks.empty() ? tensors_.features : tensors_.blocks[0].stream;
  const std::size_t first_input = plan.blocks.empty() ? tensors_.features : tensors_.blocks[0].input;
  layer(0, tensors_.pixels, first_stream, first_stream, first_input);
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const Block& block = plan.network.blocks[b];
    const TensorPlan::BlockTensors& t = tensors_.blocks[b];
    layer(block.conv1, t.input, t.middle, t.middle, t.middle);
    if (block.shortcut == Shortcut::projection) {
      layer(block.projection, t.input, t.shortcut, t.shortcut, t.shortcut);
    } else if (block.shortcut == Shortcut::pad_channels) {
      pad_shortcut(plan, b, scratch);
      if (times != nullptr) times->shortcuts += watch.lap();
    }
    layer(block.conv2, t.middle, t.output, t.shortcut, t.next_input);
  }
  if (plan.wide) {
    classify<std::uint16_t, std::int64_t>(plan, count, logits, scratch);
  } else {
    classify<std::uint8_t, std::int32_t>(plan, count, logits, scratch);
  }
  if (times != nullptr) times->classes += watch.lap();
}

}  // namespace nibble
