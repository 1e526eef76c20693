#include "quant/weight_quantization.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "graph/network/float_parameters.h"
#include "kernels/requantize.h"

namespace nibble {
namespace {

constexpr float kZeroScale2Bits = 0x1p-100F;
/// Below this a channel's weights are zeros: no float32 sum of the network would notice them.
constexpr float kNegligible = 1e-20F;

int largest_level(const WeightRule& rule) {
  return rule.bits == 2 ? rule.levels[3] : weight_limit(rule.bits);
}

int nearest_level(double value, const WeightRule& rule) {
  if (rule.bits == 2) {
    const double magnitude = std::fabs(value);
    const int level = magnitude < (rule.levels[2] + rule.levels[3]) / 2.0 ? rule.levels[2] : rule.levels[3];
    return value < 0 ? -level : level;
  }
  const double limit = weight_limit(rule.bits);
  return static_cast<int>(std::nearbyint(std::clamp(value, -limit, limit)));
}

bool pair_is_safe(int a, int b, int limit) {
  return std::max(a, 0) + std::max(b, 0) <= limit && std::max(-a, 0) + std::max(-b, 0) <= limit;
}

/// Moves a pair of one sign to the nearest integers whose magnitudes sum to the limit.
void make_pair_safe(double first, double second, int limit, std::int16_t& a, std::int16_t& b) {
  const int sign = a < 0 ? -1 : 1;
  const double excess = sign * (first + second) - limit;
  const int size = std::clamp(static_cast<int>(std::nearbyint(sign * first - excess / 2)), 0,
                              std::min(limit, weight_limit(8)));
  a = static_cast<std::int16_t>(sign * size);
  b = static_cast<std::int16_t>(sign * std::min(limit - size, weight_limit(8)));
}

/// Sum of the 8 largest magnitudes.
std::int64_t largest_run(std::span<const std::int16_t> integers) {
  std::vector<int> magnitudes;
  for (const std::int16_t value : integers) magnitudes.push_back(std::abs(int{value}));
  const auto count = std::min<std::size_t>(8, magnitudes.size());
  std::partial_sort(magnitudes.begin(), magnitudes.begin() + static_cast<std::ptrdiff_t>(count),
                    magnitudes.end(), std::greater<>());
  return std::accumulate(magnitudes.begin(), magnitudes.begin() + static_cast<std::ptrdiff_t>(count),
                         std::int64_t{0});
}

double squared_error(std::span<const float> weights, double scale, std::span<const std::int16_t> integers) {
  double sum = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double error = double{weights[i]} - scale * integers[i];
    sum += error * error;
  }
  return sum;
}

/// Scales from a grid, the best of them refined by fitting scale and integers in turn.
double least_squares_scale(std::span<const float> weights, double largest, const WeightRule& rule,
                           std::span<std::int16_t> integers) {
  constexpr int steps = 160;
  const double full = largest / largest_level(rule);
  double best = full;
  double best_error = round_weights(weights, full, rule, integers);
  const auto attempt = [&](double scale) {
    const double error = round_weights(weights, scale, rule, integers);
    if (error >= best_error) return false;
    best = scale;
    best_error = error;
    return true;
  };
  for (int step = 1; step < steps; ++step) attempt(full * 1.3 * step / steps);
  for (int i = 0; i < 20; ++i) {
    round_weights(weights, best, rule, integers);
    const double fitted = fitted_scale(weights, integers);
    if (!(fitted > 0) || !attempt(fitted)) break;
  }
  return best;
}

}  // namespace

std::vector<float> raw_pixel_weights(std::span<const float> weights) {
  std::vector<float> result(weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    result[i] = static_cast<float>(double{weights[i]} / (255.0 * double{kPixelDeviation[i % 3]}));
  }
  return result;
}

double fitted_scale(std::span<const float> weights, std::span<const std::int16_t> integers) {
  double product = 0;
  double square = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    product += double{weights[i]} * integers[i];
    square += static_cast<double>(integers[i]) * integers[i];
  }
  return square > 0 ? product / square : 0;
}

double round_weights(std::span<const float> weights, double scale, const WeightRule& rule,
                     std::span<std::int16_t> integers) {
  for (std::size_t i = 0; i < weights.size(); ++i) {
    integers[i] = static_cast<std::int16_t>(nearest_level(double{weights[i]} / scale, rule));
  }
  if (rule.pair_limit != 0) {
    const auto channels = static_cast<std::size_t>(rule.input_channels);
    for (std::size_t tap = 0; tap < weights.size(); tap += channels) {
      for (std::size_t i = tap; i + 1 < tap + channels; i += 2) {
        if (!pair_is_safe(integers[i], integers[i + 1], rule.pair_limit)) {
          make_pair_safe(double{weights[i]} / scale, double{weights[i + 1]} / scale, rule.pair_limit,
                         integers[i], integers[i + 1]);
        }
      }
    }
  }
  return squared_error(weights, scale, integers);
}

QuantizedLayer quantize_weights(std::span<const float> weights, std::span<const float> bias,
                                const WeightRule& rule, ScaleChoice choice) {
  QuantizedLayer layer;
  layer.weight_bits = rule.bits;
  if (rule.bits == 2) layer.levels.assign(rule.levels.begin(), rule.levels.end());
  layer.weights.resize(weights.size());
  layer.weight_scale.resize(bias.size());
  layer.bias.assign(bias.begin(), bias.end());
  const std::size_t taps = weights.size() / bias.size();
  for (std::size_t channel = 0; channel < bias.size(); ++channel) {
    const auto source = weights.subspan(channel * taps, taps);
    const auto integers = std::span(layer.weights).subspan(channel * taps, taps);
    float largest = 0;
    for (const float weight : source) largest = std::max(largest, std::fabs(weight));
    if (largest < kNegligible) {
      std::fill(integers.begin(), integers.end(), rule.bits == 2 ? rule.levels[2] : std::int16_t{0});
      layer.weight_scale[channel] = rule.bits == 2 ? kZeroScale2Bits : 1.0F;
      continue;
    }
    double scale = double{largest} / largest_level(rule);
    if (choice == ScaleChoice::mse) scale = least_squares_scale(source, double{largest}, rule, integers);
    layer.weight_scale[channel] = static_cast<float>(scale);
    round_weights(source, double{layer.weight_scale[channel]}, rule, integers);
    while (rule.run_limit != 0 && largest_run(integers) > rule.run_limit) {
      const double excess = static_cast<double>(largest_run(integers)) / rule.run_limit;
      layer.weight_scale[channel] *= static_cast<float>(std::max(excess, 1.0001));
      round_weights(source, double{layer.weight_scale[channel]}, rule, integers);
    }
  }
  return layer;
}

bool is_zero_channel(const QuantizedLayer& layer, std::size_t channel) {
  const std::size_t taps = layer.weights.size() / layer.weight_scale.size();
  const auto begin = layer.weights.begin() + static_cast<std::ptrdiff_t>(channel * taps);
  return layer.weight_scale[channel] == kZeroScale2Bits ||
         std::all_of(begin, begin + static_cast<std::ptrdiff_t>(taps), [](std::int16_t w) { return w == 0; });
}

std::int64_t unsafe_pairs(std::span<const std::int16_t> weights, int input_channels, int limit) {
  const auto channels = static_cast<std::size_t>(input_channels);
  std::int64_t count = 0;
  for (std::size_t tap = 0; tap < weights.size(); tap += channels) {
    for (std::size_t i = tap; i + 1 < tap + channels; i += 2) {
      count += !pair_is_safe(weights[i], weights[i + 1], limit);
    }
  }
  return count;
}

}  // namespace nibble
