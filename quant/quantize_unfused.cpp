#include "quant/quantize_unfused.h"

#include <cmath>

#include "graph/network/error.h"
#include "graph/network/fold.h"
#include "quant/float_pass.h"
#include "quant/observer.h"
#include "quant/weight_quantization.h"

namespace nibble {
namespace {

constexpr int kLimit = 127;

/// Ranges of one convolution's tensors.
struct Ranges {
  ValueHistogram convolution;    ///< before batch normalization
  ValueHistogram normalization;  ///< after it; positive values only where a ReLU follows
  ValueHistogram output;         ///< of the block, for its second convolution
};

std::vector<Ranges> observe(const NetworkDescription& network, const FloatParameters& parameters,
                            std::span<const std::uint8_t> pixels_nhwc) {
  std::vector<Ranges> ranges(network.convolutions.size());
  std::vector<bool> signed_output(network.convolutions.size());
  for (const Block& block : network.blocks) {
    signed_output[static_cast<std::size_t>(block.conv2)] = true;
    if (block.projection >= 0) signed_output[static_cast<std::size_t>(block.projection)] = true;
  }
  std::vector<float> before;
  FloatPass pass(network, fold_batch_normalization(network, parameters));
  pass.run(pixels_nhwc, [&](const FloatTap& tap) {
    const auto number = static_cast<std::size_t>(tap.convolution);
    const FloatConvolution& values = parameters.convolutions[number];
    const std::size_t channels = values.gamma.size();
    // What batch normalization made is undone to see what the convolution gave. A channel with gamma = 0
    // tells nothing, and nothing of it is left behind the normalization either.
    std::vector<float> factor(channels);
    std::vector<float> offset(channels);
    for (std::size_t c = 0; c < channels; ++c) {
      if (std::fabs(values.gamma[c]) < 1e-6F) continue;
      factor[c] =
          static_cast<float>(std::sqrt(double{values.running_variance[c]} + kBatchNormalizationEpsilon) /
                             double{values.gamma[c]});
      offset[c] = values.running_mean[c] - values.beta[c] * factor[c];
    }
    before.resize(tap.sums.size());
    for (std::size_t i = 0; i < before.size(); ++i) {
      before[i] = tap.sums[i] * factor[i % channels] + offset[i % channels];
    }
    ranges[number].convolution.add(before);
    ranges[number].normalization.add(signed_output[number] ? tap.sums : tap.output);
    ranges[number].output.add(tap.output);
  });
  return ranges;
}

std::vector<std::int8_t> narrowed(const std::vector<std::int16_t>& weights) {
  return {weights.begin(), weights.end()};
}

}  // namespace

UnfusedNetwork quantize_unfused(const NetworkDescription& network, const FloatParameters& parameters,
                                std::span<const std::uint8_t> pixels_nhwc,
                                const QuantizationOptions& options) {
  if (pixels_nhwc.empty()) {
    throw InputError("quantization needs calibration images, there are none; give at least one");
  }
  const Observer& observer = find_observer(options.observer);
  const std::vector<Ranges> ranges = observe(network, parameters, pixels_nhwc);
  UnfusedNetwork unfused{network, {}};
  UnfusedParameters& result = unfused.parameters;
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const FloatConvolution& source = parameters.convolutions[i];
    const std::vector<float> weights = i == 0 ? raw_pixel_weights(source.weight) : source.weight;
    WeightRule rule;
    rule.input_channels = network.convolutions[i].input_channels;
    const QuantizedLayer layer = quantize_weights(weights, source.beta, rule, options.scale_choice);
    result.convolutions.push_back({narrowed(layer.weights), layer.weight_scale, source.gamma, source.beta,
                                   source.running_mean, source.running_variance,
                                   choose_scale(observer, ranges[i].convolution, kLimit),
                                   choose_scale(observer, ranges[i].normalization, kLimit)});
  }
  for (const Block& block : network.blocks) {
    result.block_scale.push_back(
        choose_scale(observer, ranges[static_cast<std::size_t>(block.conv2)].output, kLimit));
  }
  WeightRule rule;
  rule.input_channels = network.feature_channels;
  const QuantizedLayer linear =
      quantize_weights(parameters.linear_weight, parameters.linear_bias, rule, options.scale_choice);
  result.linear_weights = narrowed(linear.weights);
  result.linear_scale = linear.weight_scale;
  result.linear_bias = linear.bias;
  result.provenance["observer"] = options.observer;
  result.provenance["weight_scale"] = options.scale_choice == ScaleChoice::mse ? "mse" : "largest";
  return unfused;
}

}  // namespace nibble
