#pragma once

#include <cstddef>

namespace nibble {

/// A square convolution. Maps are [row][column][channel], weights [output channel][row][column][input
/// channel].
struct ConvolutionShape {
  int input_channels;
  int output_channels;
  int kernel;   ///< rows = columns
  int stride;   ///< 1 or 2
  int padding;  ///< zeros on each side
  int input_height;
  int input_width;

  int output_height() const { return (input_height + 2 * padding - kernel) / stride + 1; }
  int output_width() const { return (input_width + 2 * padding - kernel) / stride + 1; }
  std::size_t input_size() const {
    return static_cast<std::size_t>(input_height) * static_cast<std::size_t>(input_width) *
           static_cast<std::size_t>(input_channels);
  }
  std::size_t output_size() const {
    return static_cast<std::size_t>(output_height()) * static_cast<std::size_t>(output_width()) *
           static_cast<std::size_t>(output_channels);
  }
  /// Weights of one output channel.
  std::size_t filter_size() const {
    return static_cast<std::size_t>(kernel) * static_cast<std::size_t>(kernel) *
           static_cast<std::size_t>(input_channels);
  }
};

}  // namespace nibble
