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

/// The same in BF16 with AMX-TILE and AMX-BF16 besides AVX-512 F, BW, VL and DQ, in a process that the kernel
/// lets use AMX (arch_prctl ARCH_REQ_XCOMP_PERM; oneDNN asks for it when it is asked for its instruction
/// set). The calling thread's tiles are configured and released.
///
/// gradient[row][input channel / 16][output channel / 16][column][output channel % 16][input channel % 16].
/// Pairs of two images again: a tile of x is any 16 pixels of a row padded with zeros, so that a tap is an
/// address. dy is transposed. Rows whose length has no divisor near 16 are summed in short tiles.
void weight_gradient_amx(const WeightGradientShape& shape, const Bfloat16* x, const Bfloat16* dy, int images,
                         void* scratch, float* gradient);
std::size_t weight_gradient_amx_scratch(const WeightGradientShape& shape);

/// What lies together in a gradient's layout: some input channels of 16 output channels, of one tap.
struct WeightGradientBlock {
  int inputs;
  int input_step, output_step;  ///< from one channel to the next
};
constexpr WeightGradientBlock kFp32WeightGradientBlock{2, 16, 1};

/// A weight gradient in BF16 and what belongs to it.
struct Bf16WeightGradient {
  void (*sum)(const WeightGradientShape& shape, const Bfloat16* x, const Bfloat16* dy, int images,
              void* scratch, float* gradient);
  std::size_t (*scratch)(const WeightGradientShape& shape);
  WeightGradientBlock block;
};
constexpr Bf16WeightGradient kAvx512WeightGradient{
    weight_gradient_bf16, weight_gradient_bf16_scratch, {8, 16, 1}};
constexpr Bf16WeightGradient kAmxWeightGradient{
    weight_gradient_amx, weight_gradient_amx_scratch, {16, 1, 16}};

/// A gradient as [output channel][row][column][input channel].
void unblock_weight_gradient(const WeightGradientShape& shape, const WeightGradientBlock& block,
                             const float* gradient, float* master);

}  // namespace nibble
