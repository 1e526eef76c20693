#include "graph/network/position_planes.h"

#include <algorithm>
#include <cstring>

#include "kernels/features.h"
#include "kernels/requantize.h"

namespace nibble {
namespace {

PlaneLayout layout_of(const IntegerPlan& plan, int size) {
  return {size, size, plan.lanes};
}

std::ptrdiff_t plane_bytes(const PlaneLayout& layout, const ActivationFormat& format) {
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
    const PlaneLayout layout = layout_of(plan, shape.output_width());
    const std::ptrdiff_t bytes = plane_bytes(layout, format);
    const std::ptrdiff_t phase_stride = group_count(format, shape.input_channels) * bytes;
    layers_.push_back({layout, plane_taps(shape, layout, format.bytes, phase_stride), bytes});
  }
  const ActivationFormat& format = plan.convolutions[0].kernel->input_format;
  const int positions = layers_[0].layout.positions();
  no_image_.resize(static_cast<std::size_t>(group_count(format, 3) * plane_bytes(layers_[0].layout, format)));
  for (int c = 0; c < 3; ++c) {
    for (int position = 0; position < positions; ++position) {
      store_activation({no_image_.data(), format.bytes, layers_[0].input_plane_bytes}, format, position, c, 0,
                       kBorderPixel[c]);
    }
  }
  tensors_ = plan_tensors(plan, no_image_.size(),
                          static_cast<std::size_t>(plan.network.feature_channels) * sizeof(std::int32_t),
                          true, [&](int size, int channels, const ActivationFormat& map_format) {
                            return static_cast<std::size_t>(group_count(map_format, channels) *
                                                            plane_bytes(layout_of(plan, size), map_format));
                          });
}

void PositionPlanes::load_image(const Pass& pass, const std::uint8_t* pixels) const {
  const int size = pass.plan.network.image_size;
  const PlaneLayout& layout = layers_[0].layout;
  const ActivationFormat& format = pass.plan.convolutions[0].kernel->input_format;
  std::uint8_t* planes = data(pass, tensors_.pixels);
  std::memcpy(planes, no_image_.data(), no_image_.size());
  load_pixels(pixels, 1, size, size, format,
              {planes + std::ptrdiff_t{layout.position(0, 0)} * format.bytes, format.bytes,
               layers_[0].input_plane_bytes},
              std::ptrdiff_t{layout.pitch()} * format.bytes);
}

void PositionPlanes::split_phases(const Pass& pass, std::size_t block) const {
  const auto index = static_cast<std::size_t>(pass.plan.network.blocks[block].conv1);
  const ConvolutionShape& shape = pass.plan.convolutions[index].shape;
  const ActivationFormat& format = pass.plan.blocks[block].input;
  const PlaneLayout from = layout_of(pass.plan, shape.input_width);
  const PlaneLayout& to = layers_[index].layout;
  const int groups = group_count(format, shape.input_channels);
  const std::ptrdiff_t phase_stride = groups * layers_[index].input_plane_bytes;
  const auto size = static_cast<std::size_t>(format.bytes);
  const Share own = share(groups, pass.team.thread, pass.team.threads);
  for (int group = own.first; group < own.last; ++group) {
    const std::uint8_t* source = data(pass, tensors_.blocks[block].input) + group * plane_bytes(from, format);
    std::uint8_t* target =
        data(pass, tensors_.blocks[block].phases) + group * layers_[index].input_plane_bytes;
    for (int phase = 0; phase < 4; ++phase) {
      std::uint8_t* plane = target + phase * phase_stride;
      for (int row = 0; row < to.height; ++row) {
        const std::uint8_t* in =
            source + std::ptrdiff_t{from.position(2 * row + phase / 2, phase % 2)} * format.bytes;
        std::uint8_t* out = plane + std::ptrdiff_t{to.position(row, 0)} * format.bytes;
        for (int column = 0; column < to.width; ++column) {
          std::memcpy(out, in, size);
          out += size;
          in += 2 * size;
        }
      }
      clear_pads(to, plane, 1, 0, format.bytes, 0, to.blocks());
    }
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
    const std::ptrdiff_t first = layer.layout.origin() + std::ptrdiff_t{blocks.first} * layer.layout.lanes;
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
  const auto clear = [&](std::size_t tensor, const ActivationFormat& format) {
    const std::ptrdiff_t plane = plane_bytes(layer.layout, format);
    const int first_group = first_channel / format.channels;
    clear_pads(layer.layout, data(pass, tensor) + first_group * plane,
               group_count(format, last_channel) - first_group, plane, format.bytes, blocks.first,
               blocks.last);
  };
  clear(output, stage.format);
  if (stage.derived_bits != 0) clear(derived, stage.derived_format);
}

void PositionPlanes::pad_shortcut(const Pass& pass, std::size_t block) const {
  const TensorPlan::BlockTensors& tensors = tensors_.blocks[block];
  const ActivationFormat& format = pass.plan.blocks[block].shortcut;
  const auto index = static_cast<std::size_t>(pass.plan.network.blocks[block].conv1);
  const ConvolutionShape& shape = pass.plan.convolutions[index].shape;
  const PlaneLayout from = layout_of(pass.plan, shape.input_width);
  const PlaneLayout& to = layers_[index].layout;
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
  const PlaneLayout layout = layout_of(plan, plan.network.feature_size);
  auto* sums = reinterpret_cast<std::int32_t*>(data(pass, tensors_.sums));
  pool_position_lanes(reinterpret_cast<const Value*>(data(pass, tensors_.features)), layout.positions(),
                      channels, sums);
  linear<Accumulator>(sums, channels, 1, 1, plan.linear_weights, plan.linear_scale, plan.linear_offset,
                      logits);
}

void PositionPlanes::run(const IntegerPlan& plan, const std::uint8_t* pixels, float* logits,
                         std::uint8_t* scratch, Team team) const {
  const Pass pass{plan, scratch, team};
  if (team.thread == 0) load_image(pass, pixels);
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
