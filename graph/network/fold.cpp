#include "graph/network/fold.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "graph/network/error.h"

namespace nibble {

FoldedParameters fold_batch_normalization(const NetworkDescription& network,
                                          const FloatParameters& parameters) {
  FoldedParameters folded;
  folded.linear_weight = parameters.linear_weight;
  folded.linear_bias = parameters.linear_bias;
  folded.convolutions.reserve(network.convolutions.size());
  for (std::size_t layer = 0; layer < network.convolutions.size(); ++layer) {
    const FloatConvolution& source = parameters.convolutions[layer];
    const std::size_t channels = source.gamma.size();
    const std::size_t taps = source.weight.size() / channels;
    FoldedConvolution result;
    result.weight.resize(source.weight.size());
    result.bias.resize(channels);
    for (std::size_t channel = 0; channel < channels; ++channel) {
      const double factor = double{source.gamma[channel]} /
                            std::sqrt(double{source.running_variance[channel]} + kBatchNormalizationEpsilon);
      result.bias[channel] =
          static_cast<float>(double{source.beta[channel]} - double{source.running_mean[channel]} * factor);
      for (std::size_t i = channel * taps; i < (channel + 1) * taps; ++i) {
        result.weight[i] = static_cast<float>(double{source.weight[i]} * factor);
      }
    }
    const auto is_finite = [](float value) { return std::isfinite(value); };
    if (!std::all_of(result.weight.begin(), result.weight.end(), is_finite) ||
        !std::all_of(result.bias.begin(), result.bias.end(), is_finite)) {
      throw InputError("'" + network.convolutions[layer].name +
                       "' with its batch normalization folded in has weights beyond float32; use an earlier "
                       "checkpoint, of a training that had not diverged");
    }
    folded.convolutions.push_back(std::move(result));
  }
  return folded;
}

}  // namespace nibble
