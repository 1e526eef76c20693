#include "quant/trained.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "graph/data/sha256.h"
#include "graph/network/checkpoint_path.h"
#include "graph/network/error.h"
#include "graph/network/fold.h"
#include "graph/onednn/fake_quantization.h"
#include "kernels/requantize.h"
#include "quant/calibration.h"
#include "quant/observer.h"
#include "quant/weight_quantization.h"

namespace nibble {
namespace {

/// A scale below this makes its channel zero; at 2 bits it is the stand-in's scale.
constexpr double kSmallestScale = 0x1p-100;

std::vector<float> step_sizes(std::span<const float> weights, std::size_t channels, int bits) {
  const std::vector<float> no_bias(channels, 0.0F);
  WeightRule rule;
  rule.bits = bits;
  return quantize_weights(weights, no_bias, rule, ScaleChoice::mse).weight_scale;
}

QuantizedLayer empty_layer(int bits, std::size_t channels, std::size_t weights) {
  QuantizedLayer layer;
  layer.weight_bits = bits;
  if (bits == 2) layer.levels.assign(kDefaultLevels.begin(), kDefaultLevels.end());
  layer.weights.resize(weights);
  layer.weight_scale.resize(channels);
  layer.bias.resize(channels);
  return layer;
}

QuantizedLayer fold_convolution(const FloatConvolution& source, const std::vector<float>& scales, int bits,
                                bool is_first) {
  const std::size_t channels = scales.size();
  const std::size_t taps = source.weight.size() / channels;
  QuantizedLayer layer = empty_layer(bits, channels, source.weight.size());
  for (std::size_t c = 0; c < channels; ++c) {
    const double factor =
        double{source.gamma[c]} / std::sqrt(double{source.running_variance[c]} + kBatchNormalizationEpsilon);
    const double step = is_first ? double{scales[c]} / (255 * double{kMeanDeviation}) : double{scales[c]};
    std::int64_t border = 0;
    bool is_zero = true;
    for (std::size_t i = 0; i < taps; ++i) {
      const float weight = source.weight[c * taps + i];
      const float value = is_first ? weight * first_weight_factor(i % 3) : weight;
      const auto integer = static_cast<std::int16_t>(quantize_weight(value / scales[c], bits));
      if (is_first) border += std::int64_t{integer} * kBorderPixel[i % 3];
      is_zero = is_zero && (bits == 2 ? weight == 0 : integer == 0);
      layer.weights[c * taps + i] = factor < 0 ? static_cast<std::int16_t>(-integer) : integer;
    }
    double mean = double{source.running_mean[c]};
    if (is_zero || step * std::fabs(factor) < kSmallestScale) {
      std::fill_n(layer.weights.begin() + static_cast<std::ptrdiff_t>(c * taps), taps,
                  bits == 2 ? layer.levels[2] : std::int16_t{0});
      layer.weight_scale[c] = bits == 2 ? static_cast<float>(kSmallestScale) : 1.0F;
    } else {
      mean += step * static_cast<double>(border);
      layer.weight_scale[c] = static_cast<float>(step * std::fabs(factor));
    }
    layer.bias[c] = static_cast<float>(double{source.beta[c]} - mean * factor);
  }
  return layer;
}

}  // namespace

LearnedScales initial_scales(const NetworkDescription& network, const FloatParameters& parameters,
                             std::span<const std::uint8_t> pixels_nhwc, int weight_bits, int activation_bits,
                             const std::string& observer_name) {
  LearnedScales scales;
  scales.weight_bits = weight_bits;
  scales.activation_bits = activation_bits;
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    std::vector<float> weights = parameters.convolutions[i].weight;
    if (i == 0) {
      for (std::size_t k = 0; k < weights.size(); ++k) weights[k] *= first_weight_factor(k % 3);
    }
    scales.weights.push_back(
        step_sizes(weights, parameters.convolutions[i].gamma.size(), trained_weight_bits(scales, i)));
  }
  scales.linear = step_sizes(parameters.linear_weight, parameters.linear_bias.size(), 8);

  const Calibration calibration =
      calibrate(network, fold_batch_normalization(network, parameters), pixels_nhwc);
  QuantizedParameters frame;
  frame.weight_bits = weight_bits;
  frame.activation_bits = activation_bits;
  choose_activation_scales(
      network, calibration, find_observer(observer_name == "auto" ? "mse" : observer_name),
      [&](std::size_t) { return activation_bits; }, frame);
  scales.first_output = frame.first_output_scale;
  for (const QuantizedBlock& block : frame.blocks) {
    scales.blocks.push_back({activation_bits < 8 ? block.input_scale : 1.0F, block.middle_scale,
                             block.shortcut_scale, block.output_scale});
  }
  return scales;
}

QuantizedParameters integer_parameters(const NetworkDescription& network, const FloatParameters& parameters,
                                       const LearnedScales& scales) {
  QuantizedParameters result;
  result.weight_bits = scales.weight_bits;
  result.activation_bits = scales.activation_bits;
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    result.convolutions.push_back(fold_convolution(parameters.convolutions[i], scales.weights[i],
                                                   trained_weight_bits(scales, i), i == 0));
  }
  result.first_output_scale = scales.first_output;
  float stream = scales.first_output;
  for (std::size_t i = 0; i < network.blocks.size(); ++i) {
    const LearnedBlockScales& learned = scales.blocks[i];
    QuantizedBlock block{};
    block.input_bits = scales.activation_bits;
    block.middle_bits = scales.activation_bits;
    block.input_scale = scales.activation_bits < 8 ? learned.input : stream;
    block.middle_scale = learned.middle;
    block.shortcut_scale = network.blocks[i].shortcut == Shortcut::projection ? learned.shortcut : 1.0F;
    block.output_scale = learned.output;
    stream = learned.output;
    result.blocks.push_back(block);
  }
  const std::size_t classes = parameters.linear_bias.size();
  const std::size_t features = parameters.linear_weight.size() / classes;
  result.linear = empty_layer(8, classes, parameters.linear_weight.size());
  result.linear.bias = parameters.linear_bias;
  result.linear.weight_scale = scales.linear;
  for (std::size_t i = 0; i < parameters.linear_weight.size(); ++i) {
    result.linear.weights[i] = static_cast<std::int16_t>(
        quantize_weight(parameters.linear_weight[i] / scales.linear[i / features], 8));
  }
  result.provenance["method"] = "trained (LSQ)";
  return result;
}

bool is_trained(const TensorFile& file) {
  return file.entry("format") == kTrainedFormat;
}

std::map<std::string, std::string> trained_provenance(const TensorFile& file) {
  std::map<std::string, std::string> provenance;
  for (const char* key : {"from", "from_sha256", "teachers_sha256", "held_out", "observer",
                          "calibration_seed", "calibration_count", "calibration_sha256"}) {
    if (!file.entry(key).empty()) provenance[key] = file.entry(key);
  }
  return provenance;
}

QuantizedNetwork export_trained(const TensorFile& file) {
  const NetworkDescription network = stored_network(file, kTrainedFormat);
  QuantizedNetwork result{
      network, integer_parameters(network, stored_parameters(network, file), stored_scales(network, file))};
  auto& provenance = result.parameters.provenance;
  provenance["source"] = file.file.filename().string();
  provenance["source_sha256"] = sha256_of_file(file.file);
  provenance.merge(trained_provenance(file));
  return result;
}

std::filesystem::path integer_file(const std::string& checkpoint_path, int weight_bits, int activation_bits) {
  std::string name = CheckpointPaths(checkpoint_path).last.replace_extension().string();
  name += fmt::format("_int{}", weight_bits);
  if (activation_bits != weight_bits) name += fmt::format("a{}", activation_bits);
  return name + ".safetensors";
}

}  // namespace nibble
