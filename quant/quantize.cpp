#include "quant/quantize.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "graph/network/error.h"
#include "graph/network/fold.h"
#include "kernels/requantize.h"
#include "quant/equalization.h"
#include "quant/float_pass.h"
#include "quant/simulation.h"

namespace nibble {
namespace {

const char* name_of(Correction correction) {
  switch (correction) {
    case Correction::none:
      return "none";
    case Correction::bias:
      return "bias";
    case Correction::statistics:
      return "statistics";
  }
  return "";
}

/// How many channels the bound of their runs keeps from the whole range of 16 bits.
std::string narrowed_text(const QuantizedParameters& parameters) {
  int narrowed = 0;
  int channels = 0;
  for (std::size_t i = 1; i < parameters.convolutions.size(); ++i) {
    const QuantizedLayer& layer = parameters.convolutions[i];
    const std::size_t count = layer.weight_scale.size();
    const std::size_t taps = layer.weights.size() / count;
    for (std::size_t channel = 0; channel < count; ++channel) {
      if (is_zero_channel(layer, channel)) continue;
      const auto begin = layer.weights.begin() + static_cast<std::ptrdiff_t>(channel * taps);
      const auto [low, high] = std::minmax_element(begin, begin + static_cast<std::ptrdiff_t>(taps));
      narrowed += std::max(-int{*low}, int{*high}) < weight_limit(16) - 1;
      ++channels;
    }
  }
  return fmt::format(
      "the 8 largest weights of a channel sum to at most {}, so that 4 vpmaddwd results fit 32 bits: {} of "
      "{} "
      "channels do not reach {}",
      kRunLimit, narrowed, channels, weight_limit(16) - 1);
}

void record(const QuantizationTask& task, QuantizedParameters& parameters) {
  auto& provenance = parameters.provenance;
  const QuantizationOptions& options = task.options;
  provenance["observer"] = options.observer;
  provenance["method"] = options.method;
  provenance["weight_scale"] = options.scale_choice == ScaleChoice::mse ? "mse" : "largest";
  provenance["correction"] = name_of(options.correction);
  if (!options.block_bits.empty()) {
    provenance[kMixedWidths] = fmt::format("{}", fmt::join(options.block_bits, " "));
  }
  if (options.bits == 16) provenance["narrowed"] = narrowed_text(parameters);
  if (options.pair_safe) {
    provenance["pair_safe"] = "weights of one sign in a pair of adjacent input channels sum to at most " +
                              std::to_string(kPairLimit) + "; pairs beyond it moved to the nearest within";
  }
}

}  // namespace

QuantizationOptions default_options(int bits, int activation_bits) {
  QuantizationOptions options;
  options.bits = bits;
  options.activation_bits = activation_bits == 0 ? bits : activation_bits;
  options.observer = options.activation_bits <= 4 ? "mse" : "minmax";
  options.scale_choice = bits == 16 ? ScaleChoice::largest : ScaleChoice::mse;
  options.correction = bits <= 4 || options.activation_bits <= 4 ? Correction::statistics : Correction::bias;
  return options;
}

void check_options(const QuantizationOptions& options) {
  const auto is_width = [](int bits) { return bits == 16 || bits == 8 || bits == 4 || bits == 2; };
  if (!is_width(options.bits)) {
    throw InputError("weights of " + std::to_string(options.bits) +
                     " bits do not exist; choose --bits 16, 8, 4 or 2");
  }
  if (!is_width(options.activation_bits)) {
    throw InputError("activations of " + std::to_string(options.activation_bits) +
                     " bits do not exist; choose --activation-bits 16, 8, 4 or 2");
  }
  if ((options.bits == 16) != (options.activation_bits == 16)) {
    throw InputError("weights of " + std::to_string(options.bits) + " bits and activations of " +
                     std::to_string(options.activation_bits) +
                     " bits do not go together; 16 bits go with 16 only");
  }
  if (options.pair_safe && options.bits != 8) {
    throw InputError("--pair-safe is about 8-bit weights, not " + std::to_string(options.bits) +
                     " bits; leave it out or choose --bits 8");
  }
  find_observer(options.observer);
  const Method& method = find_method(options.method);
  if (options.learning_steps > 0 && !method.has_steps) {
    throw InputError("the method '" + options.method +
                     "' has no steps; leave out --learning-steps or choose --method blocks");
  }
  if (method.learns) {
    if (options.bits == 16) {
      throw InputError("the method '" + options.method +
                       "' is for 8, 4 and 2 bits, not for 16; choose --method nearest");
    }
    if (options.pair_safe) {
      throw InputError("the method '" + options.method +
                       "' does not keep pairs safe; leave out --pair-safe or choose --method nearest");
    }
  }
}

CalibratedNetwork calibrated(const NetworkDescription& network, const FloatParameters& parameters,
                             std::span<const std::uint8_t> pixels_nhwc) {
  if (pixels_nhwc.empty()) {
    throw InputError("quantization needs calibration images, there are none; give at least one");
  }
  FoldedParameters folded = fold_batch_normalization(network, parameters);
  std::vector<float> raw_first_weight = raw_pixel_weights(folded.convolutions[0].weight);
  Calibration calibration = calibrate(network, folded, pixels_nhwc);
  return {network, pixels_nhwc, std::move(folded), std::move(raw_first_weight), std::move(calibration)};
}

QuantizedNetwork quantize(const CalibratedNetwork& calibrated, const QuantizationOptions& options) {
  check_options(options);
  const QuantizedParameters frame = make_frame(calibrated.network, calibrated.calibration, options);
  const QuantizationTask task{calibrated.network,
                              calibrated.folded,
                              calibrated.raw_first_weight,
                              calibrated.pixels,
                              calibrated.calibration,
                              options,
                              frame};
  QuantizedNetwork quantized{calibrated.network, find_method(options.method).quantize(task)};
  record(task, quantized.parameters);
  return quantized;
}

QuantizedNetwork quantize(const NetworkDescription& network, const FloatParameters& parameters,
                          std::span<const std::uint8_t> pixels_nhwc, const QuantizationOptions& options) {
  check_options(options);
  return quantize(calibrated(network, parameters, pixels_nhwc), options);
}

Quality measure_quality(const FloatParameters& parameters, const QuantizedNetwork& quantized,
                        std::span<const std::uint8_t> pixels_nhwc) {
  const NetworkDescription& network = quantized.network;
  const auto image_values =
      static_cast<std::size_t>(network.image_channels * network.image_size * network.image_size);
  constexpr std::size_t chunk = 50;
  FloatPass pass(network, folded_source(network, parameters, quantized.parameters), chunk);
  Simulation simulation(network, chunk);

  const std::size_t convolutions = network.convolutions.size();
  std::vector<double> power(convolutions + 1);
  std::vector<double> error(convolutions + 1);
  std::vector<int> order;
  std::int64_t agreeing = 0;
  std::int64_t images = 0;
  for (std::size_t first = 0; first < pixels_nhwc.size(); first += chunk * image_values) {
    const auto pixels =
        pixels_nhwc.subspan(first, std::min(chunk * image_values, pixels_nhwc.size() - first));
    std::map<int, std::vector<float>> outputs;
    const std::vector<float> logits = pass.run(pixels, [&](const FloatTap& tap) {
      outputs[tap.convolution].assign(tap.output.begin(), tap.output.end());
    });
    order.clear();
    const std::vector<float> quantized_logits = simulation.run(
        quantized.parameters, pixels, [&](int convolution, const Integers& output, float scale) {
          order.push_back(convolution);
          const auto index = static_cast<std::size_t>(convolution);
          const std::vector<float>& wanted = outputs[convolution];
          for (std::size_t i = 0; i < output.size(); ++i) {
            const double difference = double{wanted[i]} - double{scale} * output[i];
            power[index] += double{wanted[i]} * double{wanted[i]};
            error[index] += difference * difference;
          }
        });
    const auto classes = static_cast<std::size_t>(network.classes);
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double difference = double{logits[i]} - double{quantized_logits[i]};
      power[convolutions] += double{logits[i]} * double{logits[i]};
      error[convolutions] += difference * difference;
    }
    const auto class_of = [&](const std::vector<float>& values, std::size_t image) {
      const auto begin = values.begin() + static_cast<std::ptrdiff_t>(image * classes);
      return std::max_element(begin, begin + static_cast<std::ptrdiff_t>(classes)) - begin;
    };
    for (std::size_t image = 0; image < logits.size() / classes; ++image, ++images) {
      agreeing += class_of(logits, image) == class_of(quantized_logits, image);
    }
  }

  const auto decibels = [&](std::size_t index) {
    return error[index] > 0 ? 10 * std::log10(power[index] / error[index]) : HUGE_VAL;
  };
  Quality quality{{}, static_cast<double>(agreeing) / static_cast<double>(images), images};
  const QuantizedParameters& result = quantized.parameters;
  for (const int convolution : order) {
    const auto index = static_cast<std::size_t>(convolution);
    const auto block = std::find_if(network.blocks.begin(), network.blocks.end(),
                                    [&](const Block& each) { return each.conv1 == convolution; });
    const int bits =
        block == network.blocks.end()
            ? result.residual_bits()
            : result.blocks[static_cast<std::size_t>(block - network.blocks.begin())].middle_bits;
    quality.layers.push_back(
        {network.convolutions[index].name, result.convolutions[index].weight_bits, bits, decibels(index)});
  }
  quality.layers.push_back({"linear", result.linear.weight_bits, 32, decibels(convolutions)});
  return quality;
}

}  // namespace nibble
