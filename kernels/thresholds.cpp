#include "kernels/thresholds.h"

#include <algorithm>
#include <limits>

namespace nibble {

SumRange reachable_sums(std::span<const std::int16_t> filter, int activation_bits) {
  SumRange range{0, 0};
  for (const std::int16_t weight : filter) {
    (weight < 0 ? range.lowest : range.highest) += std::int64_t{weight} * activation_limit(activation_bits);
  }
  return range;
}

std::int32_t largest_sum(const ConvolutionLayer& layer) {
  std::int64_t largest = 0;
  const std::size_t filter = layer.shape.filter_size();
  for (std::size_t at = 0; at < layer.weights.size(); at += filter) {
    const SumRange sums = reachable_sums(layer.weights.subspan(at, filter), layer.activation_bits);
    largest = std::max({largest, sums.highest, -sums.lowest});
  }
  return static_cast<std::int32_t>(largest);
}

std::vector<std::uint8_t> make_byte_thresholds(float ratio, int bits) {
  std::vector<std::uint8_t> thresholds;
  int r = 0;  // the largest r known to give less than k; r = 0 gives 0
  for (int k = 1; k <= activation_limit(bits); ++k) {
    while (r < 255 && derive_input(r + 1, ratio, bits) < k) ++r;
    thresholds.push_back(static_cast<std::uint8_t>(r));
  }
  return thresholds;
}

std::vector<std::int16_t> make_sum_thresholds(const ConvolutionLayer& layer, std::span<const float> scale,
                                              std::span<const float> offset, int padded_channels) {
  constexpr QuantizedRange kRange = activation_range(2);
  const std::size_t filter_size = layer.shape.filter_size();
  const auto padded = static_cast<std::size_t>(padded_channels);
  std::vector<std::int16_t> thresholds(3 * padded);
  for (std::size_t c = 0; c < static_cast<std::size_t>(layer.shape.output_channels); ++c) {
    const SumRange sums =
        reachable_sums(layer.weights.subspan(c * filter_size, filter_size), layer.activation_bits);
    // One below the lowest sum and the highest itself must be thresholds too: "always" and "never".
    if (sums.lowest <= std::numeric_limits<std::int16_t>::min() ||
        sums.highest > std::numeric_limits<std::int16_t>::max()) {
      return {};
    }
    for (std::size_t k = 1; k <= 3; ++k) {
      // Invariant of the bisection: below, or nothing, gives less than k; above, or nothing, gives k or more.
      auto below = static_cast<std::int32_t>(sums.lowest) - 1;
      auto above = static_cast<std::int32_t>(sums.highest) + 1;
      while (above - below > 1) {
        const std::int32_t middle = below + (above - below) / 2;
        const bool less = requantize(middle, scale[c], offset[c], kRange) < static_cast<int>(k);
        (less ? below : above) = middle;
      }
      thresholds[(k - 1) * padded + c] = static_cast<std::int16_t>(below);
    }
  }
  return thresholds;
}

}  // namespace nibble
