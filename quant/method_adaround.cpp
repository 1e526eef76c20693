#include "graph/network/first_failure.h"
#include "quant/layer_by_layer.h"
#include "quant/rounding_search.h"

namespace nibble {

/// Adaptive rounding, one layer after the other (AdaRound, Nagel et al. 2020, arXiv:2004.10568): the integers
/// whose rounding errors cancel best in the layer's output on what the quantized network before it gives.
QuantizedParameters quantize_adaround(const QuantizationTask& task) {
  const auto improve = [&](int convolution, const Integers& inputs, QuantizedLayer& layer) {
    const auto index = static_cast<std::size_t>(convolution);
    const std::span<const float> weights = task.folded.convolutions[index].weight;
    const std::vector<double> covariance = tap_covariance(task.network.convolutions[index], inputs);
    const WeightRule rule = weight_rule(task, index);
    const std::size_t channels = layer.weight_scale.size();
    const std::size_t taps = layer.weights.size() / channels;
    FirstFailure failure;
#pragma omp parallel for schedule(dynamic)
    for (std::size_t c = 0; c < channels; ++c) {
      if (is_zero_channel(layer, c)) continue;
      failure.guard([&] {
        layer.weight_scale[c] = static_cast<float>(
            search_rounding(weights.subspan(c * taps, taps), double{layer.weight_scale[c]}, covariance, rule,
                            std::span(layer.weights).subspan(c * taps, taps)));
      });
    }
    failure.rethrow();
  };
  return quantize_layer_by_layer(task, improve);
}

}  // namespace nibble
