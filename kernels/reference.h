#pragma once

#include <cstdint>
#include <span>

#include "kernels/requantize.h"
#include "kernels/shape.h"

namespace nibble {

// The scalar reference of every operation: what the kernels must equal bit for bit. Plain C++, one image at a
// time; every value of any width lies in an int16_t, maps are [row][column][channel].

/// How one layer's accumulators become the next tensor's integers.
struct Requantization {
  std::span<const float> scale;   ///< S[output channel]
  std::span<const float> offset;  ///< B[output channel]
  QuantizedRange range;
  float residual_ratio = 0.0F;  ///< s_r / s_out; used when there is a residual
};

/// Exact sums of products. Accumulator: int32_t up to 8 bits and for the first convolution, int64_t at 16
/// bits. `weights` are canonical; `output` is [row][column][output channel].
template <typename Accumulator>
void reference_convolution(const ConvolutionShape& shape, std::span<const std::int16_t> input,
                           std::span<const std::int16_t> weights, std::span<Accumulator> output);

/// Requantizes a map of accumulators. `residual` is empty or a map of the same size.
template <typename Accumulator>
void reference_requantize(std::span<const Accumulator> accumulators, const Requantization& requantization,
                          std::span<const std::int16_t> residual, std::span<std::int16_t> output);

/// x of a block from the stream: every value by derive_input(). At 8 and 16 bits x is the stream, call
/// nothing.
void reference_derive_input(std::span<const std::int16_t> stream, float ratio, int bits,
                            std::span<std::int16_t> input);

/// Shortcut A of He et al. 2015: rows and columns 0, 2, 4, ...; the new channels, half of them before and
/// half after the old ones, are zero. output: [(height + 1) / 2][(width + 1) / 2][output_channels].
void reference_pad_channels(int height, int width, int input_channels, int output_channels,
                            std::span<const std::int16_t> input, std::span<std::int16_t> output);

/// Average pool and linear layer in one: the exact sum over all pixels goes into the integers, 1 / pixels is
/// part of `scale`. logits[class] = float(acc) * scale[class] + offset[class].
/// map: [pixel][channel]; weights: [class][channel]. Accumulator as for convolutions.
template <typename Accumulator>
void reference_pool_linear(std::span<const std::int16_t> map, int channels,
                           std::span<const std::int16_t> weights, std::span<const float> scale,
                           std::span<const float> offset, std::span<float> logits);

/// Copies an image into the middle of a buffer of (height + 2) x (width + 2) x 3 whose border is
/// kBorderPixel.
void reference_bordered_image(int height, int width, std::span<const std::uint8_t> pixels,
                              std::span<std::int16_t> bordered);

}  // namespace nibble
