#include <algorithm>

#include "graph/network/error.h"
#include "graph/network/float_parameters.h"
#include "quant/equalization.h"
#include "quant/method.h"
#include "quant/observer.h"

namespace nibble {
namespace {

constexpr Method kMethods[] = {
    {"nearest", false, false, quantize_nearest},  {kEqualizeMethod, false, false, quantize_equalize},
    {"adaround", true, false, quantize_adaround}, {"brecq", true, true, quantize_brecq},
    {"blocks", true, true, quantize_blocks},      {"distill", true, true, quantize_distill},
};

/// The block that convolution `index`, which is not the first, belongs to.
std::size_t block_of(const NetworkDescription& network, int index) {
  const auto found = std::find_if(network.blocks.begin(), network.blocks.end(), [&](const Block& block) {
    return block.conv1 == index || block.conv2 == index || block.projection == index;
  });
  return static_cast<std::size_t>(found - network.blocks.begin());
}

}  // namespace

std::span<const Method> methods() {
  return kMethods;
}

const char* automatic_method(int bits, int activation_bits, bool pair_safe) {
  const int least = std::min(bits, activation_bits);
  return pair_safe || least > 4 ? "nearest" : least == 4 ? "brecq" : "blocks";
}

const Method& find_method(const std::string& name) {
  std::string names;
  for (const Method& method : kMethods) {
    if (method.name == name) return method;
    names += (names.empty() ? "" : ", ") + std::string(method.name);
  }
  throw InputError("there is no rounding method '" + name + "'; choose one of " + names);
}

int weight_bits_of(const QuantizationOptions& options, std::size_t block) {
  return options.block_bits.empty() ? options.bits : options.block_bits[block];
}

int activation_bits_of(const QuantizationOptions& options, std::size_t block) {
  return options.block_bits.empty() ? options.activation_bits : options.block_bits[block];
}

QuantizedParameters make_frame(const NetworkDescription& network, const Calibration& calibration,
                               const QuantizationOptions& options) {
  QuantizedParameters frame;
  frame.weight_bits = options.bits;
  frame.activation_bits = options.activation_bits;
  choose_activation_scales(
      network, calibration, find_observer(options.observer),
      [&](std::size_t block) { return activation_bits_of(options, block); }, frame);
  return frame;
}

WeightRule weight_rule(const QuantizationTask& task, std::size_t index) {
  const std::size_t convolutions = task.network.convolutions.size();
  const bool end_layer = index == 0 || index == convolutions;
  WeightRule rule;
  rule.bits = end_layer ? std::max(task.options.bits, 8)
                        : weight_bits_of(task.options, block_of(task.network, static_cast<int>(index)));
  rule.levels = task.options.levels;
  if (index == convolutions) {
    rule.input_channels = task.network.feature_channels;
    return rule;  // summed in 32 or 64 bits by every engine
  }
  rule.input_channels = task.network.convolutions[index].input_channels;
  if (rule.bits == 8 && task.options.pair_safe) rule.pair_limit = kPairLimit;
  // The first convolution's pixels are u8: its whole sum fits 32 bits.
  if (rule.bits == 16 && index != 0) rule.run_limit = kRunLimit;
  return rule;
}

void fold_pixel_mean(std::span<const float> bias, QuantizedLayer& layer) {
  const std::size_t taps = layer.weights.size() / bias.size();
  for (std::size_t channel = 0; channel < bias.size(); ++channel) {
    double sum = 0;
    for (std::size_t i = 0; i < taps; ++i) {
      sum += 255.0 * double{kPixelMean[i % 3]} * layer.weights[channel * taps + i];
    }
    layer.bias[channel] =
        static_cast<float>(double{bias[channel]} - double{layer.weight_scale[channel]} * sum);
  }
}

}  // namespace nibble
