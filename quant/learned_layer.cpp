#include "quant/learned_layer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/requantize.h"
#include "quant/weight_quantization.h"

namespace nibble {
namespace {

// AdaRound's rectified sigmoid h = clamp(sigmoid(v) * (zeta - gamma) + gamma, 0, 1).
constexpr double kZeta = 1.1;
constexpr double kGamma = -0.1;

/// The level at or below `value` and the one above it, within the layer's range.
std::pair<float, float> neighbours(const QuantizedLayer& layer, float value) {
  if (layer.weight_bits == 2) {
    for (std::size_t i = 1; i + 1 < layer.levels.size(); ++i) {
      if (value < static_cast<float>(layer.levels[i])) {
        return {static_cast<float>(layer.levels[i - 1]), static_cast<float>(layer.levels[i])};
      }
    }
    return {static_cast<float>(layer.levels[2]), static_cast<float>(layer.levels[3])};
  }
  const auto limit = static_cast<float>(weight_limit(layer.weight_bits));
  const float low = std::clamp(std::floor(value), -limit, limit - 1);
  return {low, low + 1};
}

float nearest_of(const QuantizedLayer& layer, float value) {
  const auto [low, high] = neighbours(layer, value);
  if (layer.weight_bits != 2) {
    const auto limit = static_cast<float>(weight_limit(layer.weight_bits));
    return std::nearbyint(std::clamp(value, -limit, limit));
  }
  return value < (low + high) / 2 ? low : high;
}

}  // namespace

LearnedLayer::LearnedLayer(const QuantizedLayer& layer, std::span<const float> weights, Rounding how)
    : start(layer), channels(layer.bias.size()), taps(layer.weights.size() / channels), rounding(how) {
  position.resize(layer.weights.size());
  integers.resize(position.size());
  slope.resize(position.size());
  position_gradient.resize(position.size());
  scale_gradient.resize(channels);
  bias_gradient.resize(channels);
  scale.resize(channels);
  offset.resize(channels);
  bias = layer.bias;
  weight_scale = layer.weight_scale;
  for (std::size_t c = 0; c < channels; ++c) {
    frozen.push_back(is_zero_channel(layer, c));
    log_scale.push_back(std::log(layer.weight_scale[c]));
    // A correction may have changed the scale since the integers were rounded: a weight counts in the scale
    // that suits the integers.
    const std::size_t first = c * taps;
    const float fitted =
        frozen[c] ? 1.0F
                  : static_cast<float>(fitted_scale(weights.subspan(first, taps),
                                                    std::span(start.weights).subspan(first, taps)));
    for (std::size_t i = first; i < first + taps; ++i) {
      const float real = frozen[c] ? static_cast<float>(layer.weights[i]) : weights[i] / fitted;
      position[i] = rounding == Rounding::adaptive ? adaptive_start(real) : real;
    }
  }
  clamp();
}

/// v whose h puts the integer at `real`. The lower level is remembered by `low`.
float LearnedLayer::adaptive_start(float real) {
  const auto [below, above] = neighbours(start, real);
  low.push_back(below);
  high.push_back(above);
  const double h = std::clamp(double{(real - below) / (above - below)}, 0.01, 0.99);
  return static_cast<float>(-std::log((kZeta - kGamma) / (h - kGamma) - 1));
}

double LearnedLayer::rectified(double v, double& derivative) {
  const double sigmoid = 1 / (1 + std::exp(-v));
  const double h = sigmoid * (kZeta - kGamma) + kGamma;
  derivative = h > 0 && h < 1 ? sigmoid * (1 - sigmoid) * (kZeta - kGamma) : 0;
  return std::clamp(h, 0.0, 1.0);
}

/// Keeps learned weights where a small step can bring them back.
void LearnedLayer::clamp() {
  if (rounding == Rounding::adaptive) return;
  const float limit = start.weight_bits == 2 ? static_cast<float>(start.levels[3]) + 0.5F
                                             : static_cast<float>(weight_limit(start.weight_bits)) + 0.49F;
  for (float& value : position) value = std::clamp(value, -limit, limit);
}

void LearnedLayer::refresh(bool round, float input_scale, float output_scale) {
  if (round) clamp();
  for (std::size_t i = 0; i < position.size(); ++i) {
    if (frozen[i / taps]) {
      integers[i] = static_cast<float>(start.weights[i]);
      slope[i] = 0;
    } else if (rounding == Rounding::adaptive) {
      double derivative = 0;
      const double h = rectified(double{position[i]}, derivative);
      const double gap = double{high[i] - low[i]};
      integers[i] = static_cast<float>(double{low[i]} + gap * h);
      slope[i] = static_cast<float>(gap * derivative);
    } else {
      integers[i] = round ? nearest_of(start, position[i]) : position[i];
      slope[i] = 1;
    }
  }
  for (std::size_t c = 0; c < channels; ++c) {
    weight_scale[c] = frozen[c] ? start.weight_scale[c] : std::exp(log_scale[c]);
    scale[c] = requantize_scale(input_scale, weight_scale[c], output_scale);
    offset[c] = scale_ratio(bias[c], output_scale);
  }
}

QuantizedLayer LearnedLayer::result() const {
  QuantizedLayer layer = start;
  for (std::size_t i = 0; i < position.size(); ++i) {
    if (frozen[i / taps]) continue;
    float value = position[i];
    if (rounding == Rounding::adaptive) {
      double derivative = 0;
      value = rectified(double{position[i]}, derivative) >= 0.5 ? high[i] : low[i];
    }
    layer.weights[i] = static_cast<std::int16_t>(nearest_of(start, value));
  }
  layer.weight_scale = weight_scale;
  layer.bias = bias;
  return layer;
}

}  // namespace nibble
