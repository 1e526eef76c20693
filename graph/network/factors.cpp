#include "graph/network/factors.h"

#include "kernels/requantize.h"

namespace nibble {
namespace {

LayerFactors layer_factors(const QuantizedLayer& layer, float input_scale, float output_scale) {
  LayerFactors factors;
  for (const float weight_scale : layer.weight_scale) {
    factors.scale.push_back(requantize_scale(input_scale, weight_scale, output_scale));
  }
  for (const float bias : layer.bias) factors.offset.push_back(scale_ratio(bias, output_scale));
  return factors;
}

}  // namespace

NetworkFactors make_factors(const QuantizedNetwork& quantized) {
  const NetworkDescription& network = quantized.network;
  const QuantizedParameters& parameters = quantized.parameters;
  NetworkFactors factors;
  factors.convolutions.resize(network.convolutions.size());
  const auto set = [&](int index, float input_scale, float output_scale) {
    const auto i = static_cast<std::size_t>(index);
    factors.convolutions[i] = layer_factors(parameters.convolutions[i], input_scale, output_scale);
  };
  set(0, 1.0F, parameters.first_output_scale);
  float stream_scale = parameters.first_output_scale;
  for (std::size_t i = 0; i < network.blocks.size(); ++i) {
    const Block& block = network.blocks[i];
    const QuantizedBlock& scales = parameters.blocks[i];
    set(block.conv1, scales.input_scale, scales.middle_scale);
    set(block.conv2, scales.middle_scale, scales.output_scale);
    float residual_scale = stream_scale;
    if (block.shortcut == Shortcut::projection) {
      set(block.projection, scales.input_scale, scales.shortcut_scale);
      residual_scale = scales.shortcut_scale;
    }
    factors.blocks.push_back(
        {scale_ratio(stream_scale, scales.input_scale), scale_ratio(residual_scale, scales.output_scale)});
    stream_scale = scales.output_scale;
  }
  // A map of 2^k pixels: dividing the scale by it is exact, so S keeps its one rounding.
  const auto pixels = static_cast<float>(network.feature_size * network.feature_size);
  factors.linear = layer_factors(parameters.linear, stream_scale, 1.0F);
  for (float& scale : factors.linear.scale) scale /= pixels;
  return factors;
}

}  // namespace nibble
