#pragma once

#include <cstddef>

namespace nibble {

/// A 3x3 convolution with one zero of padding, in numbers only. Input channels are even, output channels a
/// multiple of 16.
struct WeightGradientShape {
  int input_channels, output_channels, stride;
  int input_height, input_width, output_height, output_width;

  std::size_t count() const {
    return std::size_t{9} * static_cast<std::size_t>(input_channels) *
           static_cast<std::size_t>(output_channels);
  }
};

/// The weight gradient of a 3x3 convolution in FP32 with AVX2 and FMA; callable only where the CPU has both.
/// x: [images][row][column][input channel], dy: [images][row][column][output channel], both nhwc.
///
/// gradient[row][input channel / 2][output channel / 16][column][input channel % 2][output channel % 16], for
/// these are the 12 registers that stay while a strip of pixels passes: 12 multiply-adds for 2 loads of dy
/// and 6 broadcasts of x, where oneDNN's AVX2 kernel waits for loads (measured on Zen 3, one core: 46 against
/// 33 GMAC/s; with AVX-512 oneDNN's own is the quicker one).
void weight_gradient_avx2(const WeightGradientShape& shape, const float* x, const float* dy, int images,
                          float* gradient);

/// The same gradient as [output channel][row][column][input channel].
void unblock_weight_gradient(const WeightGradientShape& shape, const float* gradient, float* master);

}  // namespace nibble
