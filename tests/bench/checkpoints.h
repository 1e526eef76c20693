#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "bench/synthetic_network.h"
#include "graph/network/description.h"
#include "graph/network/float_parameters.h"
#include "graph/network/quantized_parameters.h"
#include "graph/network/tensor_file.h"
#include "graph/onednn/int8_unfused_parameters.h"

namespace nibble {

/// Files as train and quant write them, with made-up values.
inline void write_float_checkpoint(const std::filesystem::path& file, const NetworkDescription& network,
                                   const std::string& validation = "0") {
  TensorFile tensors;
  store_parameters(network, synthetic_parameters(network), tensors);
  tensors.metadata["validation"] = validation;
  const std::int64_t shape[] = {1000};
  tensors.set<float>("optimizer.first_moment", shape, std::vector<float>(1000, 0.5F));
  write_tensor_file(file, tensors);
}

inline void write_quantized_checkpoint(const std::filesystem::path& file, const NetworkDescription& network,
                                       int bits, const std::map<std::string, std::string>& provenance = {}) {
  QuantizedNetwork quantized = synthetic_quantized(network, bits);
  for (const auto& [key, value] : provenance) quantized.parameters.provenance[key] = value;
  write_quantized(file, quantized);
}

/// Weights of 8 bits, activations of 4: for our own kernels only.
inline void write_int8a4_checkpoint(const std::filesystem::path& file, const NetworkDescription& network) {
  QuantizedNetwork quantized = synthetic_quantized(network, 8);
  quantized.parameters.activation_bits = 4;
  for (QuantizedBlock& block : quantized.parameters.blocks) block.input_bits = block.middle_bits = 4;
  write_quantized(file, quantized);
}

inline void write_unfused_checkpoint(const std::filesystem::path& file, const NetworkDescription& network) {
  const QuantizedParameters values = synthetic_quantized(network, 8).parameters;
  UnfusedNetwork unfused{network, {}};
  for (const QuantizedLayer& layer : values.convolutions) {
    const std::size_t channels = layer.weight_scale.size();
    unfused.parameters.convolutions.push_back({{layer.weights.begin(), layer.weights.end()},
                                               layer.weight_scale,
                                               std::vector<float>(channels, 1.0F),
                                               std::vector<float>(channels, 0.05F),
                                               std::vector<float>(channels),
                                               std::vector<float>(channels, 1.0F),
                                               4.0F / 127,
                                               4.0F / 127});
  }
  unfused.parameters.block_scale.assign(network.blocks.size(), 4.0F / 127);
  unfused.parameters.linear_weights.assign(values.linear.weights.begin(), values.linear.weights.end());
  unfused.parameters.linear_scale = values.linear.weight_scale;
  unfused.parameters.linear_bias = values.linear.bias;
  write_unfused(file, unfused);
}

}  // namespace nibble
