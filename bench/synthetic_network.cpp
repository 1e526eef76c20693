#include "bench/synthetic_network.h"

#include <cmath>

#include "graph/data/random.h"
#include "kernels/packed.h"
#include "kernels/requantize.h"

namespace nibble {
namespace {

double bell(SplitMix64& random) {
  return (random.uniform() + random.uniform() + random.uniform()) / 1.5 - 1;
}

QuantizedLayer synthetic_layer(SplitMix64& random, int bits, int output_channels, std::int64_t inputs,
                               double activation_scale) {
  QuantizedLayer layer;
  layer.weight_bits = bits;
  if (bits == 2) layer.levels.assign(kDefaultLevels.begin(), kDefaultLevels.end());
  for (std::int64_t i = 0; i < output_channels * inputs; ++i) {
    const double value =
        bits == 2 ? kDefaultLevels[random.below(4)] : std::round(bell(random) * weight_limit(bits));
    layer.weights.push_back(static_cast<std::int16_t>(value));
  }
  // Weights of about 1 / sqrt(inputs), so that activations keep their size.
  const double scale = 2 / (std::sqrt(static_cast<double>(inputs)) * (bits == 2 ? 3 : weight_limit(bits)));
  layer.weight_scale.assign(static_cast<std::size_t>(output_channels),
                            static_cast<float>(scale * activation_scale));
  layer.bias.assign(static_cast<std::size_t>(output_channels), 0.05F);
  return layer;
}

}  // namespace

FloatParameters synthetic_parameters(const NetworkDescription& network) {
  SplitMix64 random(1);
  FloatParameters parameters = make_parameters(network);
  for (FloatConvolution& convolution : parameters.convolutions) {
    const double inputs =
        static_cast<double>(convolution.weight.size()) / static_cast<double>(convolution.gamma.size());
    for (float& weight : convolution.weight) weight = static_cast<float>(bell(random) / std::sqrt(inputs));
  }
  for (float& weight : parameters.linear_weight) weight = static_cast<float>(bell(random));
  return parameters;
}

QuantizedNetwork synthetic_quantized(const NetworkDescription& network, int bits) {
  SplitMix64 random(1);
  QuantizedNetwork quantized{network, {}};
  QuantizedParameters& parameters = quantized.parameters;
  parameters.weight_bits = bits;
  parameters.activation_bits = bits;
  const int outer_bits = bits == 16 ? 16 : 8;
  const float stream_scale = 4.0F / static_cast<float>(activation_limit(outer_bits));
  const float scale = 4.0F / static_cast<float>(activation_limit(bits));
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& c = network.convolutions[i];
    const std::int64_t inputs = c.weight_count() / c.output_channels;
    // The first layer's inputs are pixels of about 128.
    parameters.convolutions.push_back(synthetic_layer(random, i == 0 ? outer_bits : bits, c.output_channels,
                                                      inputs, i == 0 ? 1.0 / 128 : 1.0));
  }
  parameters.first_output_scale = stream_scale;
  for (const Block& block : network.blocks) {
    const bool projects = block.shortcut == Shortcut::projection;
    parameters.blocks.push_back(
        {bits, bits, bits < 8 ? scale : stream_scale, scale, projects ? stream_scale : 1.0F, stream_scale});
  }
  parameters.linear = synthetic_layer(random, outer_bits, network.classes, network.feature_channels, 1.0);
  return quantized;
}

}  // namespace nibble
