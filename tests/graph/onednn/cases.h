#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/float_parameters.h"

namespace nibble::cases {

/// The same network for images of `size` x `size`, so that plain loops in double are quick.
inline NetworkDescription with_image_size(NetworkDescription network, int size) {
  const int divisor = network.image_size / size;
  network.image_size = size;
  network.feature_size /= divisor;
  for (Convolution& convolution : network.convolutions) {
    convolution.input_height /= divisor;
    convolution.input_width /= divisor;
  }
  return network;
}

/// Parameters as a network in training has them: He's deviation for weights, everything else off its start.
inline FloatParameters random_parameters(const NetworkDescription& network, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  FloatParameters parameters = make_parameters(network);
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& shape = network.convolutions[i];
    FloatConvolution& each = parameters.convolutions[i];
    const float deviation =
        std::sqrt(2.0F / static_cast<float>(shape.kernel * shape.kernel * shape.input_channels));
    for (float& value : each.weight) value = deviation * normal(generator);
    for (float& value : each.gamma) value = 0.7F + 0.2F * normal(generator);
    for (float& value : each.beta) value = 0.3F * normal(generator);
    for (float& value : each.running_mean) value = 0.5F * normal(generator);
    for (float& value : each.running_variance) value = std::exp(0.5F * normal(generator));
  }
  for (float& value : parameters.linear_weight) value = 0.2F * normal(generator);
  for (float& value : parameters.linear_bias) value = 0.2F * normal(generator);
  return parameters;
}

/// Images with structure (a few waves each), as noise alone gives every image the same features.
inline std::vector<std::uint8_t> random_pixels(const NetworkDescription& network, int count,
                                               std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<std::uint8_t> pixels;
  for (int image = 0; image < count; ++image) {
    double wave[3][3];
    for (auto& channel : wave) {
      for (double& value : channel) value = 6 * uniform(generator);
    }
    for (int row = 0; row < network.image_size; ++row) {
      for (int column = 0; column < network.image_size; ++column) {
        for (const auto& channel : wave) {
          const double phase = (channel[0] * row + channel[1] * column) / network.image_size + channel[2];
          const double value = 128 + 90 * std::sin(phase) + 60 * (uniform(generator) - 0.5);
          pixels.push_back(static_cast<std::uint8_t>(value));
        }
      }
    }
  }
  return pixels;
}

inline std::vector<float> random_gradients(std::size_t count, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = 0.1F * normal(generator);
  return values;
}

}  // namespace nibble::cases
