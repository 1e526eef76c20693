#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/convolution_kernel.h"
#include "kernels/requantize.h"

namespace nibble {

/// Smallest and largest sum that a channel can reach with any activations of 0..activation_limit and any
/// subset of its taps (padding).
struct SumRange {
  std::int64_t lowest;
  std::int64_t highest;
};
SumRange reachable_sums(std::span<const std::int16_t> filter, int activation_bits);

/// The largest magnitude of any channel's reachable sum.
std::int32_t largest_sum(const ConvolutionLayer& layer);

/// x from the stream by comparisons: element k - 1 is the largest r with derive_input(r) < k, 255 when even
/// that one is. (1 << bits) - 1 elements; bits is 4 or 2.
std::vector<std::uint8_t> make_byte_thresholds(float ratio, int bits);

/// The three thresholds of a 2-bit requantization without residual, [3][padded_channels]: element [k - 1][c]
/// is the largest sum with requantize(sum) < k, so that q = (sum > t1) + (sum > t2) + (sum > t3) for every
/// reachable sum: requantize() rises with the sum. Empty when a reachable sum does not fit 16 bits.
/// scale, offset: [output channel].
std::vector<std::int16_t> make_sum_thresholds(const ConvolutionLayer& layer, std::span<const float> scale,
                                              std::span<const float> offset, int padded_channels);

}  // namespace nibble
