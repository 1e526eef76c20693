#pragma once

#include <cstddef>

#include "graph/network/description.h"
#include "kernels/shape.h"

namespace nibble {

/// What a kernel knows of a convolution.
inline ConvolutionShape shape_of(const Convolution& convolution) {
  return {convolution.input_channels, convolution.output_channels, convolution.kernel,     convolution.stride,
          convolution.padding,        convolution.input_height,    convolution.input_width};
}

/// Values of the maps that it reads and writes, of one image.
inline std::size_t input_size(const Convolution& convolution) {
  return shape_of(convolution).input_size();
}
inline std::size_t output_size(const Convolution& convolution) {
  return shape_of(convolution).output_size();
}

/// The first convolution of an integer network reads an image that has its border, mean pixels, already: a
/// larger map and no padding. Shape: Convolution or ConvolutionShape.
template <typename Shape>
Shape with_border(Shape shape) {
  shape.input_height += 2 * shape.padding;
  shape.input_width += 2 * shape.padding;
  shape.padding = 0;
  return shape;
}

/// Convolution `number` as an integer network computes it.
inline Convolution computed_shape(const NetworkDescription& network, int number) {
  const Convolution& convolution = network.convolutions[static_cast<std::size_t>(number)];
  return number == 0 ? with_border(convolution) : convolution;
}

}  // namespace nibble
