#include "tests/graph/onednn/quantized_reference.h"

#include <algorithm>
#include <cmath>

namespace nibble::reference {
namespace {

constexpr double kBorder[] = {124, 116, 104};
constexpr double kDeviation[] = {0.229, 0.224, 0.225};
constexpr double kCommonDeviation = 0.226;

double largest_weight(int bits) {
  return bits == 2 ? 3 : bits == 4 ? 7 : 127;
}

double nearest_weight(double v, int bits) {
  const double clipped = std::clamp(v, -largest_weight(bits), largest_weight(bits));
  if (bits != 2) return std::nearbyint(clipped);
  const double magnitude = std::abs(clipped) < 2 ? 1 : 3;
  return clipped < 0 ? -magnitude : magnitude;
}

}  // namespace

QuantizedNetwork::QuantizedNetwork(const NetworkDescription& description, const Tensors& master,
                                   const LearnedScales& scales)
    : Network(description, master), master_(master), scales_(scales), blocks_(description.blocks.size()) {
  for (std::size_t i = 0; i < description.convolutions.size(); ++i) {
    parameters.weight[i] =
        quantized_weights(master.weight[i], scales.weights[i], i == 0 ? 8 : scales.weight_bits, i == 0);
  }
  parameters.linear_weight = quantized_weights(master.linear_weight, scales.linear, 8, false);
}

/// Scale * integer; the first convolution's in units of weights of normalized pixels.
Values QuantizedNetwork::quantized_weights(const Values& master, const std::vector<float>& scales, int bits,
                                           bool is_first) {
  const std::size_t taps = master.size() / scales.size();
  Values result(master.size());
  for (std::size_t i = 0; i < master.size(); ++i) {
    const double factor = is_first ? kCommonDeviation / kDeviation[i % 3] : 1;
    const double scale = double{scales[i / taps]};
    result[i] = scale * nearest_weight(master[i] * factor / scale, bits) / factor;
  }
  return result;
}

void QuantizedNetwork::weight_backward(const Values& master, const std::vector<float>& scales, int bits,
                                       bool is_first, Values& gradient, Values& scale_gradient,
                                       Values& terms) const {
  const std::size_t taps = master.size() / scales.size();
  scale_gradient.assign(scales.size(), 0.0);
  terms.assign(scales.size(), 0.0);
  for (std::size_t i = 0; i < master.size(); ++i) {
    const double factor = is_first ? kCommonDeviation / kDeviation[i % 3] : 1;
    const double v = master[i] * factor / double{scales[i / taps]};
    const bool inside = std::abs(v) < largest_weight(bits);
    const double d = gradient[i] / factor;  // d loss / d (scale * integer)
    const double term = d * (nearest_weight(v, bits) - (inside ? v : 0));
    scale_gradient[i / taps] += term;
    terms[i / taps] += term * term;
    if (!inside) gradient[i] = 0;
  }
  const double divisor = std::sqrt(static_cast<double>(taps) * largest_weight(bits));
  for (double& each : scale_gradient) each /= divisor;
  for (double& each : terms) each = std::sqrt(each) / divisor;
}

Values QuantizedNetwork::Quantizer::forward(const Values& z) {
  v.resize(z.size());
  Values result(z.size());
  for (std::size_t i = 0; i < z.size(); ++i) {
    v[i] = z[i] / scale;
    result[i] = scale * std::nearbyint(std::clamp(v[i], lowest, highest));
  }
  return result;
}

Values QuantizedNetwork::Quantizer::backward(const Values& d, double& gradient) const {
  Values result(d.size());
  double total = 0;
  for (std::size_t i = 0; i < d.size(); ++i) {
    const bool inside = v[i] > lowest && v[i] < highest;
    result[i] = inside ? d[i] : 0;
    total += d[i] * (std::nearbyint(std::clamp(v[i], lowest, highest)) - (inside ? v[i] : 0));
  }
  gradient += total / std::sqrt(count * highest);
  return result;
}

double QuantizedNetwork::pixel(std::uint8_t value, std::size_t channel) const {
  return (value - kBorder[channel]) / (255 * kDeviation[channel]);
}

Values QuantizedNetwork::activation(Place place, int block, Values z) {
  const auto quantized = [&](Quantizer& quantizer, float scale, double lowest, double highest) {
    quantizer.scale = double{scale};
    quantizer.lowest = lowest;
    quantizer.highest = highest;
    quantizer.count = static_cast<double>(z.size()) / count_;
    return quantizer.forward(z);
  };
  if (block < 0) return quantized(first_, scales_.first_output, 0, 255);
  const double limit = (1 << scales_.activation_bits) - 1;
  const LearnedBlockScales& scales = scales_.blocks[static_cast<std::size_t>(block)];
  BlockQuantizers& quantizers = blocks_[static_cast<std::size_t>(block)];
  switch (place) {
    case Place::input:
      if (scales_.activation_bits == 8) break;
      return quantized(quantizers.input, scales.input, -1, limit);  // nothing is below 0
    case Place::middle:
      return quantized(quantizers.middle, scales.middle, 0, limit);
    case Place::shortcut:
      return quantized(quantizers.shortcut, scales.shortcut, -128, 127);
    case Place::output:
      return quantized(quantizers.output, scales.output, 0, 255);
  }
  return z;
}

Values QuantizedNetwork::activation_backward(Place place, int block, Values d) {
  if (block < 0) return first_.backward(d, first_output_gradient);
  const BlockQuantizers& quantizers = blocks_[static_cast<std::size_t>(block)];
  BlockScales& gradients = block_gradients[static_cast<std::size_t>(block)];
  switch (place) {
    case Place::input:
      if (scales_.activation_bits == 8) break;
      return quantizers.input.backward(d, gradients.input);
    case Place::middle:
      return quantizers.middle.backward(d, gradients.middle);
    case Place::shortcut:
      return quantizers.shortcut.backward(d, gradients.shortcut);
    case Place::output:
      return quantizers.output.backward(d, gradients.output);
  }
  return d;
}

Values QuantizedNetwork::forward(std::span<const std::uint8_t> pixels, int count) {
  return Network::forward(pixels, count, true);
}

Tensors QuantizedNetwork::backward(const Values& logit_gradients) {
  first_output_gradient = 0;
  block_gradients.assign(blocks_.size(), {});
  Tensors gradients = Network::backward(logit_gradients);
  const std::size_t layers = master_.weight.size();
  weight_scale_gradients.resize(layers);
  weight_scale_terms.resize(layers);
  for (std::size_t i = 0; i < layers; ++i) {
    weight_backward(master_.weight[i], scales_.weights[i], i == 0 ? 8 : scales_.weight_bits, i == 0,
                    gradients.weight[i], weight_scale_gradients[i], weight_scale_terms[i]);
  }
  weight_backward(master_.linear_weight, scales_.linear, 8, false, gradients.linear_weight,
                  linear_scale_gradients, linear_scale_terms);
  return gradients;
}

}  // namespace nibble::reference
