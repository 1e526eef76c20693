#include "tests/graph/network/random_network.h"

#include <cmath>
#include <random>

#include "kernels/packed.h"
#include "kernels/requantize.h"

namespace nibble {
namespace {

using Random = std::mt19937_64;

/// real weights have a deviation of about sqrt(2 / inputs), so that activations keep their size through
/// layers.
QuantizedLayer random_layer(Random& random, int outputs, int inputs, int bits, float real_input_deviation) {
  QuantizedLayer layer{};
  layer.weight_bits = bits;
  if (bits == 2) layer.levels.assign(kDefaultLevels.begin(), kDefaultLevels.end());
  const int limit = weight_limit(bits);
  std::normal_distribution<double> normal(0.0, limit / 3.0);
  double square = 0;
  for (int i = 0; i < outputs * inputs; ++i) {
    const int value = bits == 2 ? kDefaultLevels[random() % 4]
                                : std::min(limit, std::max(-limit, static_cast<int>(normal(random))));
    layer.weights.push_back(static_cast<std::int16_t>(value));
    square += value * value;
  }
  const double deviation = std::sqrt(square / (outputs * inputs));
  std::uniform_real_distribution<double> spread(0.7, 1.4);
  for (int o = 0; o < outputs; ++o) {
    layer.weight_scale.push_back(static_cast<float>(spread(random) * std::sqrt(2.0 / inputs) / deviation /
                                                    static_cast<double>(real_input_deviation)));
    layer.bias.push_back(static_cast<float>(spread(random) - 1.0));
  }
  return layer;
}

}  // namespace

QuantizedNetwork random_network(const NetworkDescription& network, int weight_bits, int activation_bits,
                                std::uint64_t seed) {
  Random random(seed);
  QuantizedNetwork quantized{network, {}};
  QuantizedParameters& parameters = quantized.parameters;
  parameters.weight_bits = weight_bits;
  parameters.activation_bits = activation_bits;
  const int end_bits = weight_bits == 16 ? 16 : 8;
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& convolution = network.convolutions[i];
    const int inputs = convolution.kernel * convolution.kernel * convolution.input_channels;
    parameters.convolutions.push_back(random_layer(random, convolution.output_channels, inputs,
                                                   i == 0 ? end_bits : weight_bits, i == 0 ? 150.0F : 1.0F));
  }
  parameters.linear = random_layer(random, network.classes, network.feature_channels, end_bits, 1.0F);
  const float stream_limit = static_cast<float>(activation_limit(end_bits));
  const float narrow_limit = static_cast<float>(activation_limit(activation_bits));
  std::uniform_real_distribution<float> largest(2.5F, 4.0F);  // real value of the largest integer
  parameters.first_output_scale = largest(random) / stream_limit;
  float stream_scale = parameters.first_output_scale;
  for (const Block& block : network.blocks) {
    QuantizedBlock scales{activation_bits,
                          activation_bits,
                          stream_scale,
                          largest(random) / narrow_limit,
                          1.0F,
                          largest(random) / stream_limit};
    if (activation_bits < 8) scales.input_scale = largest(random) / narrow_limit;
    if (block.shortcut == Shortcut::projection) scales.shortcut_scale = 2 * largest(random) / stream_limit;
    parameters.blocks.push_back(scales);
    stream_scale = scales.output_scale;
  }
  return quantized;
}

std::vector<std::uint8_t> random_pixels(std::int64_t count, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(count) * 32 * 32 * 3);
  for (std::uint8_t& pixel : pixels) pixel = static_cast<std::uint8_t>(random() >> 56);
  return pixels;
}

}  // namespace nibble
