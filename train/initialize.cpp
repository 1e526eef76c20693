#include "train/initialize.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "graph/data/random.h"
#include "graph/network/error.h"

namespace nibble {
namespace {

void fill_uniform(std::span<float> values, std::int64_t inputs, std::uint64_t seed) {
  const double bound = 1 / std::sqrt(static_cast<double>(inputs));
  SplitMix64 random(seed);
  for (float& value : values) value = static_cast<float>((2 * random.uniform() - 1) * bound);
}

template <typename Parameters, typename Visitor>
void visit(Parameters& parameters, const Visitor& visitor) {
  for (auto& convolution : parameters.convolutions) {
    visitor(convolution.weight);
    visitor(convolution.gamma);
    visitor(convolution.beta);
    visitor(convolution.running_mean);
    visitor(convolution.running_variance);
  }
  visitor(parameters.linear_weight);
  visitor(parameters.linear_bias);
}

}  // namespace

FloatParameters initial_parameters(const NetworkDescription& network, std::uint64_t seed) {
  FloatParameters parameters = make_parameters(network);
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& shape = network.convolutions[i];
    fill_uniform(parameters.convolutions[i].weight, shape.weight_count() / shape.output_channels,
                 mix_seed(seed, i, 0, 1));
  }
  fill_uniform(parameters.linear_weight, network.feature_channels, mix_seed(seed, 0, 0, 2));
  fill_uniform(parameters.linear_bias, network.feature_channels, mix_seed(seed, 0, 0, 3));
  return parameters;
}

void flatten(const FloatParameters& parameters, std::vector<float>& values) {
  values.clear();
  visit(parameters,
        [&](const std::vector<float>& tensor) { values.insert(values.end(), tensor.begin(), tensor.end()); });
}

void unflatten(std::span<const float> values, FloatParameters& parameters) {
  std::size_t offset = 0;
  visit(parameters, [&](std::vector<float>& tensor) {
    if (offset + tensor.size() > values.size()) {
      throw InputError("parameters: " + std::to_string(values.size()) +
                       " values are too few for the network");
    }
    std::copy_n(values.data() + offset, tensor.size(), tensor.data());
    offset += tensor.size();
  });
}

}  // namespace nibble
