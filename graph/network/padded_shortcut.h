#pragma once

#include <algorithm>
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

/// The same where the values are copied, and the new channels are zero: rows first_row .. end_row - 1 of the
/// large maps, one image's behind the other's.
template <typename T>
void pad_shortcut_rows(const Convolution& first, std::size_t first_row, std::size_t end_row, const T* small,
                       T* large) {
  const auto channels = static_cast<std::size_t>(first.input_channels);
  const auto all_channels = static_cast<std::size_t>(first.output_channels);
  const auto stride = static_cast<std::size_t>(first.stride);
  const auto rows = static_cast<std::size_t>(first.output_height());
  const auto columns = static_cast<std::size_t>(first.output_width());
  const auto small_rows = static_cast<std::size_t>(first.input_height);
  const auto small_columns = static_cast<std::size_t>(first.input_width);
  for (std::size_t row = first_row; row < end_row; ++row) {
    const T* from = small + (row / rows * small_rows + row % rows * stride) * small_columns * channels;
    T* to = large + row * columns * all_channels;
    std::fill_n(to, columns * all_channels, T{});
    to += (all_channels - channels) / 2;
    for (std::size_t column = 0; column < columns; ++column) {
      std::copy_n(from + column * stride * channels, channels, to + column * all_channels);
    }
  }
}

}  // namespace nibble
