#pragma once

#include <cstddef>

#include "graph/network/description.h"

namespace nibble {

/// Shortcut A of `images` images: calls visit(place in the small map, place in the large one) for each value
/// that it passes on. The small map, [images][rows][columns][channels], is what the block's `first`
/// convolution reads: rows and columns 0, stride, 2 stride, ... of it. The large one has the shape that
/// `first` writes; the values are its middle channels.
template <typename Visit>
void for_padded(const Convolution& first, std::size_t images, const Visit& visit) {
  const auto channels = static_cast<std::size_t>(first.input_channels);
  const auto all_channels = static_cast<std::size_t>(first.output_channels);
  const auto stride = static_cast<std::size_t>(first.stride);
  const auto rows = static_cast<std::size_t>(first.output_height());
  const auto columns = static_cast<std::size_t>(first.output_width());
  const auto small_rows = static_cast<std::size_t>(first.input_height);
  const auto small_columns = static_cast<std::size_t>(first.input_width);
  for (std::size_t image = 0; image < images; ++image) {
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t column = 0; column < columns; ++column) {
        const std::size_t small =
            ((image * small_rows + row * stride) * small_columns + column * stride) * channels;
        const std::size_t large =
            ((image * rows + row) * columns + column) * all_channels + (all_channels - channels) / 2;
        for (std::size_t i = 0; i < channels; ++i) visit(small + i, large + i);
      }
    }
  }
}

}  // namespace nibble
