#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "graph/network/quantized_parameters.h"
#include "kernels/packed.h"

namespace nibble {

/// What the integers of a layer must keep to.
struct WeightRule {
  int bits = 8;
  Levels levels = kDefaultLevels;  ///< at 2 bits
  int input_channels = 1;          ///< the fastest dimension of the weights
  /// Where not 0: in each pair of adjacent input channels (0 and 1, 2 and 3, ...) of a tap, the sum of the
  /// positive and the sum of the negative weights stay within this magnitude, so that vpmaddubsw's 16-bit
  /// sum of two products cannot saturate: 128 * 255 <= 32767.
  int pair_limit = 0;
  /// Where not 0: the magnitudes of any 8 weights of a channel sum to at most this. At 16 bits four vpmaddwd
  /// results then fit s32: 65538 * 32767 < 2^31.
  int run_limit = 0;
};

inline constexpr int kPairLimit = 128;
inline constexpr int kRunLimit = 65538;

/// The first convolution's weights, [...][3], for raw pixels: divided by 255 * deviation of their input
/// channel.
std::vector<float> raw_pixel_weights(std::span<const float> weights);

/// Nearest integers of one channel at a given scale, within the rule; returns the sum of squared errors.
/// Weights of a pair that breaks the limit move to the nearest pair that keeps it.
double round_weights(std::span<const float> weights, double scale, const WeightRule& rule,
                     std::span<std::int16_t> integers);

/// The scale that fits given integers best, by least squares: <w, q> / <q, q>; 0 when all are zero.
double fitted_scale(std::span<const float> weights, std::span<const std::int16_t> integers);

enum class ScaleChoice {
  largest,  ///< the largest magnitude becomes the largest integer
  mse       ///< the least sum of squared errors of the weights
};

/// Quantizes the weights of a layer, one scale a channel; `bias` is copied. `weights` is [output
/// channel][...]. A channel of zeros is stored as zeros with scale 1; at 2 bits, which has no zero, as the
/// smallest positive level with scale 2^-100.
QuantizedLayer quantize_weights(std::span<const float> weights, std::span<const float> bias,
                                const WeightRule& rule, ScaleChoice choice);

/// Whether the channel holds nothing but the stand-in for zeros above.
bool is_zero_channel(const QuantizedLayer& layer, std::size_t channel);

/// Number of pairs that break `limit` (see WeightRule::pair_limit).
std::int64_t unsafe_pairs(std::span<const std::int16_t> weights, int input_channels, int limit = kPairLimit);

}  // namespace nibble
