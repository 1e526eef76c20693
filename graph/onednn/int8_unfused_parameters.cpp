#include "graph/onednn/int8_unfused_parameters.h"

#include <algorithm>
#include <array>

#include "graph/network/error.h"
#include "graph/network/float_parameters.h"
#include "graph/network/tensor_file.h"

namespace nibble {
namespace {

constexpr std::string_view kProvenance = "provenance.";

using Shape1 = std::array<std::int64_t, 1>;
using Shape2 = std::array<std::int64_t, 2>;
using Shape4 = std::array<std::int64_t, 4>;

struct ChannelTensor {
  const char* suffix;
  std::vector<float> UnfusedConvolution::*member;
};
constexpr ChannelTensor kChannelTensors[] = {{".weight_scale", &UnfusedConvolution::weight_scale},
                                             {".gamma", &UnfusedConvolution::gamma},
                                             {".beta", &UnfusedConvolution::beta},
                                             {".mean", &UnfusedConvolution::mean},
                                             {".variance", &UnfusedConvolution::variance}};

Shape4 weight_shape(const Convolution& shape) {
  return {shape.output_channels, shape.kernel, shape.kernel, shape.input_channels};
}

std::int64_t scale_count(const NetworkDescription& network) {
  return static_cast<std::int64_t>(2 * network.convolutions.size() + network.blocks.size());
}

void require_positive(const TensorFile& file, const std::string& name, const std::vector<float>& scales) {
  const auto bad = std::find_if(scales.begin(), scales.end(), [](float scale) { return !(scale > 0); });
  if (bad == scales.end()) return;
  throw InputError(file.file.string() + ": tensor '" + name + "' has " + std::to_string(*bad) +
                   " at element " + std::to_string(bad - scales.begin()) +
                   ", expected scales above 0; quantize the network again");
}

}  // namespace

void write_unfused(const std::filesystem::path& path, const UnfusedNetwork& unfused) {
  const NetworkDescription& network = unfused.network;
  const UnfusedParameters& parameters = unfused.parameters;
  TensorFile file;
  file.metadata["format"] = unfused_format;
  file.metadata["variant"] = network.variant;
  file.metadata["depth"] = std::to_string(network.depth);
  file.metadata["shortcut"] = network.shortcut;
  for (const auto& [key, value] : parameters.provenance)
    file.metadata[std::string(kProvenance) + key] = value;
  std::vector<float> scales;
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& shape = network.convolutions[i];
    const UnfusedConvolution& values = parameters.convolutions.at(i);
    file.set<std::int8_t>(shape.name + ".weight", weight_shape(shape), values.weights);
    for (const ChannelTensor& tensor : kChannelTensors) {
      file.set<float>(shape.name + tensor.suffix, Shape1{shape.output_channels}, values.*tensor.member);
    }
    scales.insert(scales.end(), {values.convolution_scale, values.output_scale});
  }
  scales.insert(scales.end(), parameters.block_scale.begin(), parameters.block_scale.end());
  file.set<float>("scales", Shape1{scale_count(network)}, scales);
  file.set<std::int8_t>("linear.weight", Shape2{network.classes, network.feature_channels},
                        parameters.linear_weights);
  file.set<float>("linear.scale", Shape1{network.classes}, parameters.linear_scale);
  file.set<float>("linear.bias", Shape1{network.classes}, parameters.linear_bias);
  write_tensor_file(path, file);
}

UnfusedNetwork read_unfused(const std::filesystem::path& path) {
  const TensorFile file = read_tensor_file(path);
  UnfusedNetwork unfused;
  unfused.network = stored_network(file, unfused_format);
  const NetworkDescription& network = unfused.network;
  UnfusedParameters& parameters = unfused.parameters;
  const std::vector<float> scales = file.values<float>("scales", Shape1{scale_count(network)});
  require_positive(file, "scales", scales);
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& shape = network.convolutions[i];
    UnfusedConvolution values{};
    values.weights = file.values<std::int8_t>(shape.name + ".weight", weight_shape(shape));
    for (const ChannelTensor& tensor : kChannelTensors) {
      values.*tensor.member = file.values<float>(shape.name + tensor.suffix, Shape1{shape.output_channels});
    }
    require_positive(file, shape.name + ".weight_scale", values.weight_scale);
    if (std::any_of(values.variance.begin(), values.variance.end(), [](float v) { return v < 0; })) {
      throw InputError(file.file.string() + ": tensor '" + shape.name +
                       ".variance' has a negative value, expected variances; quantize the network again");
    }
    values.convolution_scale = scales[2 * i];
    values.output_scale = scales[2 * i + 1];
    parameters.convolutions.push_back(std::move(values));
  }
  parameters.block_scale.assign(scales.end() - static_cast<std::ptrdiff_t>(network.blocks.size()),
                                scales.end());
  parameters.linear_weights =
      file.values<std::int8_t>("linear.weight", Shape2{network.classes, network.feature_channels});
  parameters.linear_scale = file.values<float>("linear.scale", Shape1{network.classes});
  require_positive(file, "linear.scale", parameters.linear_scale);
  parameters.linear_bias = file.values<float>("linear.bias", Shape1{network.classes});
  for (const auto& [key, value] : file.metadata) {
    if (key.starts_with(kProvenance)) parameters.provenance[key.substr(kProvenance.size())] = value;
  }
  return unfused;
}

}  // namespace nibble
