#include <algorithm>
#include <cmath>
#include <utility>

#include "quant/equalization.h"
#include "quant/layer_by_layer.h"

namespace nibble {
namespace {

/// A channel without weights to speak of still has a bias, which must not be blown up.
constexpr double kLargestScale = 16;

}  // namespace

bool is_equalized(const QuantizedParameters& parameters) {
  const auto method = parameters.provenance.find("method");
  return method != parameters.provenance.end() && method->second == kEqualizeMethod;
}

FoldedParameters folded_source(const NetworkDescription& network, const FloatParameters& parameters,
                               const QuantizedParameters& quantized) {
  FoldedParameters folded = fold_batch_normalization(network, parameters);
  return is_equalized(quantized) ? equalized(network, std::move(folded)) : folded;
}

FoldedParameters equalized(const NetworkDescription& network, FoldedParameters folded) {
  for (const Block& block : network.blocks) {
    FoldedConvolution& conv1 = folded.convolutions[static_cast<std::size_t>(block.conv1)];
    FoldedConvolution& conv2 = folded.convolutions[static_cast<std::size_t>(block.conv2)];
    const std::size_t channels = conv1.bias.size();
    const std::size_t taps = conv1.weight.size() / channels;
    for (std::size_t i = 0; i < channels; ++i) {
      const std::span<float> row = std::span(conv1.weight).subspan(i * taps, taps);
      float range1 = 0;
      float range2 = 0;
      for (const float weight : row) range1 = std::max(range1, std::abs(weight));
      for (std::size_t j = i; j < conv2.weight.size(); j += channels) {
        range2 = std::max(range2, std::abs(conv2.weight[j]));
      }
      const double scale = std::sqrt(double{range1} / double{range2});
      if (!(scale >= 1 / kLargestScale && scale <= kLargestScale)) continue;
      const auto divided = [scale](float& value) { value = static_cast<float>(double{value} / scale); };
      std::for_each(row.begin(), row.end(), divided);
      divided(conv1.bias[i]);
      for (std::size_t j = i; j < conv2.weight.size(); j += channels) {
        conv2.weight[j] = static_cast<float>(double{conv2.weight[j]} * scale);
      }
    }
  }
  return folded;
}

/// Nearest rounding of the equalized network, which is calibrated anew: the scale of a block's middle tensor
/// is one for all of its channels.
QuantizedParameters quantize_equalize(const QuantizationTask& task) {
  const FoldedParameters folded = equalized(task.network, task.folded);
  const Calibration calibration = calibrate(task.network, folded, task.pixels);
  const QuantizedParameters frame = make_frame(task.network, calibration, task.options);
  return quantize_layer_by_layer(
      {task.network, folded, task.raw_first_weight, task.pixels, calibration, task.options, frame}, {});
}

}  // namespace nibble
