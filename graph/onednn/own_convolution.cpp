#include "graph/onednn/own_convolution.h"

#include <algorithm>
#include <cstring>

#include "graph/network/instruction_set.h"
#include "kernels/registry.h"

namespace nibble {
namespace {

std::size_t index(std::ptrdiff_t value) {
  return static_cast<std::size_t>(value);
}

/// Positions of `planes` that a map fills, `step` apart in the map.
struct MapPart {
  int first_row, first_column, step;
};

/// Copies groups of `Bytes` channels between a map and its planes.
template <int Bytes, typename Move>
void for_groups(const PlaneLayout& layout, int channels, const MapPart& part, std::size_t row_stride,
                const Move& move) {
  const int groups = (channels + Bytes - 1) / Bytes;
  const std::size_t plane_bytes = index(layout.positions()) * Bytes;
  for (int row = 0; row < layout.height; ++row) {
    for (int group = 0; group < groups; ++group) {
      const std::size_t map = index(part.first_row + row * part.step) * row_stride +
                              index(part.first_column * channels + group * Bytes);
      const std::size_t plane = index(group) * plane_bytes + index(layout.position(row, 0)) * Bytes;
      const std::size_t bytes = index(std::min(Bytes, channels - group * Bytes));
      for (int column = 0; column < layout.width; ++column) {
        move(map + index(column * part.step * channels), plane + index(column) * Bytes, bytes);
      }
    }
  }
}

template <int Bytes>
void to_planes(const PlaneLayout& layout, int channels, const MapPart& part, const std::uint8_t* map,
               std::size_t row_stride, std::uint8_t* planes) {
  for_groups<Bytes>(layout, channels, part, row_stride,
                    [&](std::size_t from, std::size_t to, std::size_t bytes) {
                      if (bytes == Bytes) {
                        std::memcpy(planes + to, map + from, Bytes);
                      } else {
                        std::memcpy(planes + to, map + from, bytes);
                      }
                    });
}

template <int Bytes>
void from_planes(const PlaneLayout& layout, int channels, const std::uint8_t* planes, std::uint8_t* map) {
  for_groups<Bytes>(layout, channels, {0, 0, 1}, index(layout.width * channels),
                    [&](std::size_t to, std::size_t from, std::size_t bytes) {
                      if (bytes == Bytes) {
                        std::memcpy(map + to, planes + from, Bytes);
                      } else {
                        std::memcpy(map + to, planes + from, bytes);
                      }
                    });
}

void to_planes(const ActivationFormat& format, const PlaneLayout& layout, int channels, const MapPart& part,
               const std::uint8_t* map, std::size_t row_stride, std::uint8_t* planes) {
  switch (format.bytes) {
    case 4:
      return to_planes<4>(layout, channels, part, map, row_stride, planes);
    case 2:
      return to_planes<2>(layout, channels, part, map, row_stride, planes);
    default:
      return to_planes<1>(layout, channels, part, map, row_stride, planes);
  }
}

void from_planes(const ActivationFormat& format, const PlaneLayout& layout, int channels,
                 const std::uint8_t* planes, std::uint8_t* map) {
  switch (format.bytes) {
    case 4:
      return from_planes<4>(layout, channels, planes, map);
    case 2:
      return from_planes<2>(layout, channels, planes, map);
    default:
      return from_planes<1>(layout, channels, planes, map);
  }
}

std::size_t rounded_up(std::size_t bytes) {
  return (bytes + 63) / 64 * 64;
}

}  // namespace

OwnConvolution::OwnConvolution(const Convolution& shape, const QuantizedLayer& quantized,
                               const LayerFactors& factors, bool is_signed, Residual residual,
                               float residual_ratio, std::vector<std::uint8_t> border)
    : shape_{shape.input_channels, shape.output_channels, shape.kernel,     shape.stride,
             shape.padding,        shape.input_height,    shape.input_width},
      scale_(pad_channel_values(factors.scale)),
      offset_(pad_channel_values(factors.offset)),
      is_signed_(is_signed),
      residual_(residual),
      residual_ratio_(residual_ratio),
      border_(std::move(border)) {
  const ConvolutionLayer layer{shape_, 8, 8, {}, quantized.weights};
  kernel_ = &choose_kernel(layer, effective_instruction_set());
  packed_ = kernel_->pack(layer);
  layout_ = {shape_.output_height(), shape_.output_width(), kernel_->lanes};
  const ActivationFormat& format = kernel_->input_format;
  const auto plane_bytes = index(layout_.positions()) * index(format.bytes);
  const std::size_t phase_bytes = index(group_count(format, shape_.input_channels)) * plane_bytes;
  taps_ = plane_taps(shape_, layout_, format.bytes, static_cast<std::ptrdiff_t>(phase_bytes));
  input_bytes_ = rounded_up(shape_.stride == 2 ? 4 * phase_bytes : phase_bytes);
  output_bytes_ = rounded_up(index(group_count(format, shape_.output_channels)) * plane_bytes);
}

void OwnConvolution::run(const std::uint8_t* x, std::size_t row_stride, std::uint8_t* y,
                         std::uint8_t* scratch) const {
  const ActivationFormat& format = kernel_->input_format;
  const auto plane_bytes = index(layout_.positions()) * index(format.bytes);
  const int groups = group_count(format, shape_.input_channels);
  std::uint8_t* input = scratch;
  std::uint8_t* output = scratch + input_bytes_;

  std::memset(input, 0, input_bytes_);
  for (std::size_t c = 0; c < border_.size(); ++c) {
    const auto group = static_cast<int>(c) / format.channels;
    for (int position = 0; position < layout_.positions(); ++position) {
      input[index(group) * plane_bytes + index(position * format.bytes) + c % index(format.channels)] =
          border_[c];
    }
  }
  for (int phase = 0; phase < shape_.stride * shape_.stride; ++phase) {
    to_planes(format, layout_, shape_.input_channels, {phase / 2, phase % 2, shape_.stride}, x, row_stride,
              input + index(phase * groups) * plane_bytes);
  }
  OutputStage stage;
  stage.scale = scale_.data();
  stage.offset = offset_.data();
  stage.range = is_signed_ ? shortcut_range(8) : activation_range(8);
  stage.format = format;
  stage.padded_channels = static_cast<int>(scale_.size());
  if (residual_ != Residual::none) {
    to_planes(format, layout_, shape_.output_channels, {0, 0, 1}, y,
              index(layout_.width * shape_.output_channels), output);
    stage.residual_format = format;
    stage.residual_signed = residual_ == Residual::projection;
    stage.residual_ratio = residual_ratio_;
  }
  const std::size_t origin = index(layout_.origin() * format.bytes);
  const std::ptrdiff_t step = std::ptrdiff_t{kernel_->lanes} * format.bytes;
  const auto stride = static_cast<std::ptrdiff_t>(plane_bytes);
  kernel_->run(packed_, stage,
               {{input + origin, step, stride},
                taps_,
                layout_.blocks(),
                0,
                shape_.output_channels,
                {output + origin, step, stride},
                {output + origin, step, stride},
                {}});
  from_planes(format, layout_, shape_.output_channels, output, y);
}

}  // namespace nibble
