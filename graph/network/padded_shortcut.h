#pragma once

#include <algorithm>
#include <cstddef>

#include "graph/network/description.h"

namespace nibble {

/// Shortcut A passes on rows and columns 0, stride, 2 stride, ... of the small map,
/// [images][rows][columns][channels], which the block's `first` convolution reads. They are the middle
/// channels of the large map, which has the shape that `first` writes. Calls visit(place in the small map,
/// place in the large one) for the first channel of each position of rows first_row .. end_row - 1 of the
/// large maps, one image's behind the other's.
template <typename Visit>
void for_padded_positions(const Convolution& first, std::size_t first_row, std::size_t end_row,
                          const Visit& visit) {
  const auto channels = static_cast<std::size_t>(first.input_channels);
  const auto all_channels = static_cast<std::size_t>(first.output_channels);
  const auto stride = static_cast<std::size_t>(first.stride);
  const auto rows = static_cast<std::size_t>(first.output_height());
  const auto columns = static_cast<std::size_t>(first.output_width());
  const auto small_rows = static_cast<std::size_t>(first.input_height);
  const auto small_columns = static_cast<std::size_t>(first.input_width);
  for (std::size_t row = first_row; row < end_row; ++row) {
    const std::size_t small_row = (row / rows * small_rows + row % rows * stride) * small_columns;
    for (std::size_t column = 0; column < columns; ++column) {
      visit((small_row + column * stride) * channels,
            (row * columns + column) * all_channels + (all_channels - channels) / 2);
    }
  }
}

/// The same for each value of `images` images.
template <typename Visit>
void for_padded(const Convolution& first, std::size_t images, const Visit& visit) {
  const auto channels = static_cast<std::size_t>(first.input_channels);
  const std::size_t rows = images * static_cast<std::size_t>(first.output_height());
  for_padded_positions(first, 0, rows, [&](std::size_t small, std::size_t large) {
    for (std::size_t i = 0; i < channels; ++i) visit(small + i, large + i);
  });
}

/// Copies the values; the new channels are zero.
template <typename T>
void pad_shortcut_rows(const Convolution& first, std::size_t first_row, std::size_t end_row, const T* small,
                       T* large) {
  const auto channels = static_cast<std::size_t>(first.input_channels);
  const auto row_values = static_cast<std::size_t>(first.output_width() * first.output_channels);
  std::fill(large + first_row * row_values, large + end_row * row_values, T{});
  for_padded_positions(first, first_row, end_row, [&](std::size_t from, std::size_t to) {
    std::copy_n(small + from, channels, large + to);
  });
}

}  // namespace nibble
