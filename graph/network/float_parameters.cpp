#include "graph/network/float_parameters.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "graph/network/error.h"

namespace nibble {
namespace {

using Shape1 = std::array<std::int64_t, 1>;
using Shape2 = std::array<std::int64_t, 2>;
using Shape4 = std::array<std::int64_t, 4>;

struct ChannelTensor {
  const char* suffix;
  std::vector<float> FloatConvolution::*member;
};

constexpr ChannelTensor kChannelTensors[] = {{".gamma", &FloatConvolution::gamma},
                                             {".beta", &FloatConvolution::beta},
                                             {".running_mean", &FloatConvolution::running_mean},
                                             {".running_variance", &FloatConvolution::running_variance}};

Shape4 weight_shape(const Convolution& convolution) {
  return {convolution.output_channels, convolution.kernel, convolution.kernel, convolution.input_channels};
}

const std::string& metadata_entry(const TensorFile& file, const char* key) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) {
    throw InputError(file.file.string() + ": the metadata entry '" + key +
                     "' is missing; it is not a checkpoint of this program, name another file");
  }
  return found->second;
}

}  // namespace

FloatParameters make_parameters(const NetworkDescription& network) {
  FloatParameters parameters;
  for (const Convolution& convolution : network.convolutions) {
    const auto channels = static_cast<std::size_t>(convolution.output_channels);
    parameters.convolutions.push_back(
        {std::vector<float>(static_cast<std::size_t>(convolution.weight_count())),
         std::vector<float>(channels, 1.0F), std::vector<float>(channels), std::vector<float>(channels),
         std::vector<float>(channels, 1.0F)});
  }
  const auto classes = static_cast<std::size_t>(network.classes);
  parameters.linear_weight.resize(classes * static_cast<std::size_t>(network.feature_channels));
  parameters.linear_bias.resize(classes);
  return parameters;
}

void store_parameters(const NetworkDescription& network, const FloatParameters& parameters,
                      TensorFile& file) {
  file.metadata["format"] = kFloatFormat;
  file.metadata["variant"] = network.variant;
  file.metadata["depth"] = std::to_string(network.depth);
  file.metadata["shortcut"] = network.shortcut;
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& convolution = network.convolutions[i];
    const FloatConvolution& values = parameters.convolutions.at(i);
    file.set<float>(convolution.name + ".weight", weight_shape(convolution), values.weight);
    for (const ChannelTensor& tensor : kChannelTensors) {
      file.set<float>(convolution.name + tensor.suffix, Shape1{convolution.output_channels},
                      values.*tensor.member);
    }
  }
  file.set<float>("linear.weight", Shape2{network.classes, network.feature_channels},
                  parameters.linear_weight);
  file.set<float>("linear.bias", Shape1{network.classes}, parameters.linear_bias);
}

NetworkDescription stored_network(const TensorFile& file, const std::string& format) {
  const std::string& stored_format = metadata_entry(file, "format");
  if (stored_format != format) {
    throw InputError(file.file.string() + ": the format is '" + stored_format + "', expected '" + format +
                     "'; name a checkpoint of that kind");
  }
  const std::string& depth_text = metadata_entry(file, "depth");
  int depth = 0;
  const auto [end, error] = std::from_chars(depth_text.data(), depth_text.data() + depth_text.size(), depth);
  if (error != std::errc{} || end != depth_text.data() + depth_text.size()) {
    throw InputError(file.file.string() + ": the metadata entry 'depth' is '" + depth_text +
                     "', expected a number; make or download the file again");
  }
  try {
    return describe_network(metadata_entry(file, "variant"), depth, metadata_entry(file, "shortcut"));
  } catch (const InputError& error_found) {
    throw InputError(file.file.string() + ": " + error_found.what());
  }
}

FloatParameters stored_parameters(const NetworkDescription& network, const TensorFile& file) {
  FloatParameters parameters;
  for (const Convolution& convolution : network.convolutions) {
    FloatConvolution values;
    values.weight = file.values<float>(convolution.name + ".weight", weight_shape(convolution));
    for (const ChannelTensor& tensor : kChannelTensors) {
      values.*tensor.member =
          file.values<float>(convolution.name + tensor.suffix, Shape1{convolution.output_channels});
    }
    if (std::any_of(values.running_variance.begin(), values.running_variance.end(),
                    [](float v) { return v < 0; })) {
      throw InputError(
          file.file.string() + ": tensor '" + convolution.name +
          ".running_variance' has a negative value, expected variances; use an earlier checkpoint");
    }
    parameters.convolutions.push_back(std::move(values));
  }
  parameters.linear_weight =
      file.values<float>("linear.weight", Shape2{network.classes, network.feature_channels});
  parameters.linear_bias = file.values<float>("linear.bias", Shape1{network.classes});
  return parameters;
}

}  // namespace nibble
