#pragma once

#include <cstddef>

#include "graph/onednn/elementwise.h"

namespace nibble {

/// A 3x3 convolution with one zero of padding, in numbers only. Maps are at least two pixels wide. Output
/// channels are a multiple of 16; input channels are even in FP32, a multiple of 16 in BF16.
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

/// The same in BF16 with FP32 sums, with AVX-512 F, BW, VL, DQ and BF16; `scratch` has the bytes of
/// weight_gradient_bf16_scratch.
///
/// gradient[row][input channel / 8][output channel / 16][column][input channel % 8][output channel % 16].
/// vdpbf16ps adds two products, here those of one pixel in two images: then taps need no shifted copies, as
/// two pixels of one image would. 24 registers stay for 256 pixels while one load of dy and 24 broadcasts
/// of x pass, all from the first-level cache.
void weight_gradient_bf16(const WeightGradientShape& shape, const Bfloat16* x, const Bfloat16* dy, int images,
                          void* scratch, float* gradient);
std::size_t weight_gradient_bf16_scratch(const WeightGradientShape& shape);

/// Input channels of a block of either gradient's layout.
constexpr int kFp32WeightGradientInputs = 2;
constexpr int kBf16WeightGradientInputs = 8;

/// Either gradient as [output channel][row][column][input channel].
void unblock_weight_gradient(const WeightGradientShape& shape, int block_inputs, const float* gradient,
                             float* master);

}  // namespace nibble
