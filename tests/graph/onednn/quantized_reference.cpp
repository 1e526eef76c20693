#include "tests/graph/onednn/quantized_reference.h"

#include <algorithm>
#include <cmath>

namespace nibble::reference {
namespace {

constexpr double kBorder[] = {124, 116, 104};
constexpr double kDeviation[] = {0.229, 0.224, 0.225};
constexpr double kCommonDeviation = 0.226;

std::size_t index(int value) {
  return static_cast<std::size_t>(value);
}

double largest_weight(int bits) {
  return bits == 2 ? 3 : bits == 4 ? 7 : 127;
}

double nearest_weight(double v, int bits) {
  const double clipped = std::clamp(v, -largest_weight(bits), largest_weight(bits));
  if (bits != 2) return std::nearbyint(clipped);
  const double magnitude = std::abs(clipped) < 2 ? 1 : 3;
  return clipped < 0 ? -magnitude : magnitude;
}

Values sum(Values a, const Values& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

}  // namespace

QuantizedNetwork::QuantizedNetwork(const NetworkDescription& description, const Tensors& master,
                                   const LearnedScales& scales)
    : Network(description, master), network_(description), master_(master), scales_(scales) {
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

Values QuantizedNetwork::forward(std::span<const std::uint8_t> pixels, int count) {
  count_ = count;
  const auto layer = [&](int number, const Values& x) {
    input_[index(number)] = x;
    return normalize(number, convolve(number, x), true);
  };
  const auto quantizer = [&](float scale, double lowest, double highest, const Values& z) {
    Quantizer made;
    made.scale = double{scale};
    made.lowest = lowest;
    made.highest = highest;
    made.count = static_cast<double>(z.size()) / count;
    return made;
  };
  const double limit = (1 << scales_.activation_bits) - 1;
  Values x(index(count * network_.image_size * network_.image_size * 3));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = (pixels[i] - kBorder[i % 3]) / (255 * kDeviation[i % 3]);
  Values z = layer(0, x);
  first_ = quantizer(scales_.first_output, 0, 255, z);
  Values stream = first_.forward(z);
  blocks_.resize(network_.blocks.size());
  for (std::size_t i = 0; i < network_.blocks.size(); ++i) {
    const Block& block = network_.blocks[i];
    const LearnedBlockScales& scales = scales_.blocks[i];
    BlockQuantizers& quantizers = blocks_[i];
    Values input = stream;
    if (scales_.activation_bits < 8) {
      quantizers.input = quantizer(scales.input, -1, limit, stream);  // nothing is below 0
      input = quantizers.input.forward(stream);
    }
    z = layer(block.conv1, input);
    quantizers.middle = quantizer(scales.middle, 0, limit, z);
    z = layer(block.conv2, quantizers.middle.forward(z));
    Values shortcut = stream;
    if (block.shortcut == Shortcut::projection) {
      const Values projected = layer(block.projection, input);
      quantizers.shortcut = quantizer(scales.shortcut, -128, 127, projected);
      shortcut = quantizers.shortcut.forward(projected);
    }
    if (block.shortcut == Shortcut::pad_channels) shortcut = pad_shortcut(block, stream);
    z = sum(std::move(z), shortcut);
    quantizers.output = quantizer(scales.output, 0, 255, z);
    stream = quantizers.output.forward(z);
  }
  const std::size_t channels = index(network_.feature_channels);
  const std::size_t area = index(network_.feature_size * network_.feature_size);
  pooled_.assign(index(count) * channels, 0.0);
  for (std::size_t i = 0; i < stream.size(); ++i) {
    pooled_[i / (area * channels) * channels + i % channels] += stream[i] / static_cast<double>(area);
  }
  const std::size_t classes = index(network_.classes);
  Values logits(index(count) * classes);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    logits[i] = parameters.linear_bias[i % classes];
    for (std::size_t c = 0; c < channels; ++c) {
      logits[i] += parameters.linear_weight[i % classes * channels + c] * pooled_[i / classes * channels + c];
    }
  }
  return logits;
}

Tensors QuantizedNetwork::backward(const Values& logit_gradients) {
  Tensors gradients;
  const std::size_t layers = network_.convolutions.size();
  for (auto* each : {&gradients.weight, &gradients.gamma, &gradients.beta}) each->resize(layers);
  const std::size_t channels = index(network_.feature_channels);
  const std::size_t classes = index(network_.classes);
  const std::size_t area = index(network_.feature_size * network_.feature_size);
  gradients.linear_weight.assign(parameters.linear_weight.size(), 0.0);
  gradients.linear_bias.assign(classes, 0.0);
  Values d(blocks_.back().output.v.size());
  for (std::size_t i = 0; i < logit_gradients.size(); ++i) {
    const std::size_t image = i / classes;
    gradients.linear_bias[i % classes] += logit_gradients[i];
    for (std::size_t c = 0; c < channels; ++c) {
      const std::size_t weight = i % classes * channels + c;
      gradients.linear_weight[weight] += logit_gradients[i] * pooled_[image * channels + c];
      for (std::size_t pixel = 0; pixel < area; ++pixel) {
        d[(image * area + pixel) * channels + c] +=
            logit_gradients[i] * parameters.linear_weight[weight] / static_cast<double>(area);
      }
    }
  }
  const auto layer = [&](int number, const Values& output_gradient) {
    return convolve_backward(number, input_[index(number)],
                             normalize_backward(number, output_gradient, gradients), gradients);
  };
  block_gradients.assign(blocks_.size(), {});
  for (std::size_t i = blocks_.size(); i-- > 0;) {
    const Block& block = network_.blocks[i];
    const BlockQuantizers& quantizers = blocks_[i];
    BlockScales& scale = block_gradients[i];
    d = quantizers.output.backward(d, scale.output);
    Values main = layer(block.conv1, quantizers.middle.backward(layer(block.conv2, d), scale.middle));
    Values shortcut;
    if (block.shortcut == Shortcut::projection) {
      main = sum(std::move(main), layer(block.projection, quantizers.shortcut.backward(d, scale.shortcut)));
    } else {
      shortcut = block.shortcut == Shortcut::pad_channels ? pad_shortcut_backward(block, d) : d;
    }
    if (scales_.activation_bits < 8) main = quantizers.input.backward(main, scale.input);
    d = shortcut.empty() ? main : sum(std::move(main), shortcut);
  }
  first_output_gradient = 0;
  layer(0, first_.backward(d, first_output_gradient));
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
