#include "graph/network/position_planes.h"

#include <algorithm>
#include <cstring>

#include "kernels/features.h"
#include "kernels/requantize.h"

namespace nibble {
namespace {

constexpr int kCopies = 3;  ///< of every plane: ColumnCopies

ColumnCopies layout_of(const IntegerPlan& plan, int size) {
  return {size, size, plan.lanes};
}

std::ptrdiff_t plane_bytes(const ColumnCopies& layout, const ActivationFormat& format) {
  return std::ptrdiff_t{layout.positions()} * format.bytes;
}

/// first .. last - 1 of `count` things for one of `parts` shares.
struct Share {
  int first;
  int last;
};
Share share(int count, int part, int parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

/// Cuts a layer for a team: into blocks of channels, blocks of positions, or both, so that the largest share
/// is smallest.
struct Cut {
  Share channels;  ///< in channel blocks
  Share positions;
};
Cut cut_layer(int channel_blocks, int position_blocks, PositionPlanes::Team team) {
  int best_parts = 1;
  int best_cost = 0;
  for (int parts = 1; parts <= team.threads; ++parts) {
    if (team.threads % parts != 0) continue;
    const int rest = team.threads / parts;
    const int cost = ((channel_blocks + parts - 1) / parts) * ((position_blocks + rest - 1) / rest);
    if (best_cost == 0 || cost < best_cost) {
      best_parts = parts;
      best_cost = cost;
    }
  }
  return {share(channel_blocks, team.thread % best_parts, best_parts),
          share(position_blocks, team.thread / best_parts, team.threads / best_parts)};
}

void wait_for(const PositionPlanes::Team& team) {
  if (team.threads > 1) {
#pragma omp barrier
  }
}

}  // namespace

PositionPlanes::PositionPlanes(const IntegerPlan& plan) {
  for (std::size_t i = 0; i < plan.convolutions.size(); ++i) {
    const ConvolutionShape& shape = plan.convolutions[i].shape;
    const ActivationFormat& format = plan.convolutions[i].kernel->input_format;
    const ColumnCopies layout = layout_of(plan, shape.output_width());
    const std::ptrdiff_t bytes = plane_bytes(layout, format);
    const std::ptrdiff_t copy_bytes = group_count(format, shape.input_channels) * bytes;
    layers_.push_back({layout, column_taps(shape, layout, format.bytes, copy_bytes), bytes, copy_bytes});
  }
  // Who writes the x of each block, who its y1.
  std::size_t writer = 0;
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const auto conv1 = static_cast<std::size_t>(plan.network.blocks[b].conv1);
    if (plan.convolutions[conv1].shape.stride == 1) {
      (plan.blocks[b].derives_input ? layers_[writer].copies_derived : layers_[writer].copies_output) = true;
    }
    layers_[conv1].copies_output = true;
    writer = static_cast<std::size_t>(plan.network.blocks[b].conv2);
  }
  const ActivationFormat& format = plan.convolutions[0].kernel->input_format;
  const int positions = layers_[0].layout.positions();
  no_image_.resize(kCopies * static_cast<std::size_t>(layers_[0].input_copy_bytes));
  for (int copy = 0; copy < kCopies; ++copy) {
    const OutputView planes{no_image_.data() + copy * layers_[0].input_copy_bytes, format.bytes,
                            layers_[0].input_plane_bytes};
    for (int c = 0; c < 3; ++c) {
      for (int position = 0; position < positions; ++position) {
        store_activation(planes, format, position, c, 0, kBorderPixel[c]);
      }
    }
  }
  tensors_ = plan_tensors(plan, no_image_.size(),
                          static_cast<std::size_t>(plan.network.feature_channels) * sizeof(std::int32_t),
                          true, [&](int size, int channels, const ActivationFormat& map_format) {
                            return static_cast<std::size_t>(kCopies * group_count(map_format, channels) *
                                                            plane_bytes(layout_of(plan, size), map_format));
                          });
}

void PositionPlanes::load_image(const Pass& pass, const std::uint8_t* pixels) const {
  const int size = pass.plan.network.image_size;
  const Layer& layer = layers_[0];
  const ActivationFormat& format = pass.plan.convolutions[0].kernel->input_format;
  const Share rows = share(size, pass.team.thread, pass.team.threads);
  if (rows.first == rows.last) return;
  // A border everywhere, then the pixels, then their neighbours' copies.
  const int first = rows.first == 0 ? 0 : layer.layout.position(rows.first, 0);
  const int last = rows.last == size ? layer.layout.positions() : layer.layout.position(rows.last, 0);
  const int planes = group_count(format, 3) * kCopies;
  for (int plane = 0; plane < planes; ++plane) {
    const std::ptrdiff_t from = plane * layer.input_plane_bytes + std::ptrdiff_t{first} * format.bytes;
    std::memcpy(data(pass, tensors_.pixels) + from, no_image_.data() + from,
                static_cast<std::size_t>(last - first) * static_cast<std::size_t>(format.bytes));
  }
  std::uint8_t* same = data(pass, tensors_.pixels);
  load_pixels(pixels + std::ptrdiff_t{rows.first} * size * 3, 1, rows.last - rows.first, size, format,
              {same + std::ptrdiff_t{layer.layout.position(rows.first, 0)} * format.bytes, format.bytes,
               layer.input_plane_bytes},
              std::ptrdiff_t{size} * format.bytes);
  const std::size_t moved = static_cast<std::size_t>(size - 1) * static_cast<std::size_t>(format.bytes);
  for (int group = 0; group < group_count(format, 3); ++group) {
    for (int row = rows.first; row < rows.last; ++row) {
      std::uint8_t* of_row = same + group * layer.input_plane_bytes +
                             std::ptrdiff_t{layer.layout.position(row, 0)} * format.bytes;
      std::memcpy(of_row + layer.input_copy_bytes + format.bytes, of_row, moved);
      std::memcpy(of_row + 2 * layer.input_copy_bytes, of_row + format.bytes, moved);
    }
  }
}

void PositionPlanes::split_phases(const Pass& pass, std::size_t block) const {
  const auto index = static_cast<std::size_t>(pass.plan.network.blocks[block].conv1);
  const ConvolutionShape& shape = pass.plan.convolutions[index].shape;
  const ActivationFormat& format = pass.plan.blocks[block].input;
  const Layer& layer = layers_[index];
  const ColumnCopies from = layout_of(pass.plan, shape.input_width);
  const Share own = share(group_count(format, shape.input_channels), pass.team.thread, pass.team.threads);
  for (int group = own.first; group < own.last; ++group) {
    copy_phases(from, data(pass, tensors_.blocks[block].input) + group * plane_bytes(from, format),
                layer.layout, data(pass, tensors_.blocks[block].phases) + group * layer.input_plane_bytes,
                layer.input_copy_bytes, format.bytes);
  }
}

void PositionPlanes::run_layer(const Pass& pass, std::size_t index, std::size_t input, std::size_t output,
                               std::size_t residual, std::size_t derived) const {
  const PlannedConvolution& planned = pass.plan.convolutions[index];
  const ConvolutionKernel& kernel = *planned.kernel;
  const OutputStage& stage = planned.stage;
  const Layer& layer = layers_[index];
  const int channels = planned.shape.output_channels;
  const Cut cut = cut_layer((channels + kernel.channel_block - 1) / kernel.channel_block,
                            layer.layout.blocks(), pass.team);
  const int first_channel = cut.channels.first * kernel.channel_block;
  const int last_channel = std::min(cut.channels.last * kernel.channel_block, channels);
  const Share& blocks = cut.positions;
  if (first_channel >= last_channel || blocks.first == blocks.last) return;

  const auto view = [&](std::size_t tensor, const ActivationFormat& format, std::ptrdiff_t plane) {
    const std::ptrdiff_t first = layer.layout.margin() + std::ptrdiff_t{blocks.first} * layer.layout.lanes;
    return OutputView{data(pass, tensor) + first * format.bytes, std::ptrdiff_t{kernel.lanes} * format.bytes,
                      plane};
  };
  const auto output_view = [&](std::size_t tensor, const ActivationFormat& format) {
    return view(tensor, format, plane_bytes(layer.layout, format));
  };
  const auto as_input = [](const OutputView& v) {
    return InputView{v.data, v.position_stride, v.group_stride};
  };
  kernel.run(planned.packed, stage,
             {as_input(view(input, kernel.input_format, layer.input_plane_bytes)), layer.taps,
              (blocks.last - blocks.first) * (layer.layout.lanes / kernel.lanes), first_channel, last_channel,
              output_view(output, stage.format), as_input(output_view(residual, stage.residual_format)),
              output_view(derived, stage.derived_format)});
  const auto copy = [&](std::size_t tensor, const ActivationFormat& format) {
    const std::ptrdiff_t plane = plane_bytes(layer.layout, format);
    const int first_group = first_channel / format.channels;
    copy_columns(layer.layout, data(pass, tensor) + first_group * plane,
                 group_count(format, last_channel) - first_group, plane,
                 group_count(format, channels) * plane, format.bytes, blocks.first, blocks.last);
  };
  if (layer.copies_output) copy(output, stage.format);
  if (layer.copies_derived) copy(derived, stage.derived_format);
}

void PositionPlanes::pad_shortcut(const Pass& pass, std::size_t block) const {
  const TensorPlan::BlockTensors& tensors = tensors_.blocks[block];
  const ActivationFormat& format = pass.plan.blocks[block].shortcut;
  const auto index = static_cast<std::size_t>(pass.plan.network.blocks[block].conv1);
  const ConvolutionShape& shape = pass.plan.convolutions[index].shape;
  const ColumnCopies from = layout_of(pass.plan, shape.input_width);
  const ColumnCopies& to = layers_[index].layout;
  const Share rows = share(to.height, pass.team.thread, pass.team.threads);
  for (int row = rows.first; row < rows.last; ++row) {
    for (int column = 0; column < to.width; ++column) {
      const std::uint8_t* source =
          data(pass, tensors.stream) + std::ptrdiff_t{from.position(2 * row, 2 * column)} * format.bytes;
      std::uint8_t* target =
          data(pass, tensors.shortcut) + std::ptrdiff_t{to.position(row, column)} * format.bytes;
      pad_channels({source, 0, plane_bytes(from, format)}, {target, 0, plane_bytes(to, format)}, format,
                   shape.input_channels, shape.output_channels, 1);
    }
  }
}

template <typename Value, typename Accumulator>
void PositionPlanes::classify(const Pass& pass, float* logits) const {
  const IntegerPlan& plan = pass.plan;
  const int channels = plan.network.feature_channels;
  const ColumnCopies layout = layout_of(plan, plan.network.feature_size);
  auto* sums = reinterpret_cast<std::int32_t*>(data(pass, tensors_.sums));
  pool_position_lanes(reinterpret_cast<const Value*>(data(pass, tensors_.features)) + layout.margin(),
                      layout.count(), layout.positions(), channels, sums);
  linear<Accumulator>(sums, channels, 1, 1, plan.linear_weights, plan.linear_scale, plan.linear_offset,
                      logits);
}

void PositionPlanes::run(const IntegerPlan& plan, const std::uint8_t* pixels, float* logits,
                         std::uint8_t* scratch, Team team) const {
  const Pass pass{plan, scratch, team};
  load_image(pass, pixels);
  wait_for(team);
  const std::size_t first_stream = plan.blocks.empty() ? tensors_.features : tensors_.blocks[0].stream;
  const std::size_t first_input = plan.blocks.empty() ? tensors_.features : tensors_.blocks[0].input;
  run_layer(pass, 0, tensors_.pixels, first_stream, first_stream, first_input);
  wait_for(team);
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const Block& block = plan.network.blocks[b];
    const TensorPlan::BlockTensors& t = tensors_.blocks[b];
    const auto conv1 = static_cast<std::size_t>(block.conv1);
    if (plan.convolutions[conv1].shape.stride == 2) {
      split_phases(pass, b);
      wait_for(team);
    }
    run_layer(pass, conv1, t.phases, t.middle, t.middle, t.middle);
    if (block.shortcut == Shortcut::projection) {
      run_layer(pass, static_cast<std::size_t>(block.projection), t.phases, t.shortcut, t.shortcut,
                t.shortcut);
    } else if (block.shortcut == Shortcut::pad_channels) {
      pad_shortcut(pass, b);
    }
    wait_for(team);
    run_layer(pass, static_cast<std::size_t>(block.conv2), t.middle, t.output, t.shortcut, t.next_input);
    wait_for(team);
  }
  if (team.thread != 0) return;
  if (plan.wide) {
    classify<std::uint16_t, std::int64_t>(pass, logits);
  } else {
    classify<std::uint8_t, std::int32_t>(pass, logits);
  }
}

}  // namespace nibble
