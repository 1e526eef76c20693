#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/fold.h"
#include "graph/network/quantized_parameters.h"
#include "quant/calibration.h"
#include "quant/weight_quantization.h"

namespace nibble {

/// What is put right after the weights of a layer are rounded, channel by channel, on the calibration images.
/// Only weight_scale and bias change, never the integers.
enum class Correction {
  none,
  bias,       ///< the mean of the layer's sums becomes the FP32 network's
  statistics  ///< mean and variance do: batch normalization's statistics recalculated
};

struct QuantizationOptions {
  int bits = 8;
  int activation_bits = 8;
  /// Weights and activations of each block at a width of its own, 8, 4 or 2; `bits` and `activation_bits` are
  /// the widest. Empty: all blocks alike.
  std::vector<int> block_bits;
  bool pair_safe = false;
  std::string observer;  ///< one of observers()
  std::string method = "nearest";
  std::uint64_t seed = 1;
  int learning_steps = 0;  ///< of each stage of a method that learns; 0: the method's own number
  // Chosen by width unless set; the defaults were measured.
  ScaleChoice scale_choice = ScaleChoice::mse;
  Correction correction = Correction::statistics;
  Levels levels = kDefaultLevels;
  /// Told now and then how far a method that takes minutes has come; may be empty.
  std::function<void(const std::string&)> progress;
};

/// Everything a method may look at. Weights of the first convolution are for raw pixels.
struct QuantizationTask {
  const NetworkDescription& network;
  const FoldedParameters& folded;           ///< of the FP32 network, normalized pixels
  std::span<const float> raw_first_weight;  ///< first convolution's weights / (255 * deviation)
  std::span<const std::uint8_t> pixels;     ///< calibration images, NHWC
  const Calibration& calibration;
  const QuantizationOptions& options;
  /// Widths and activation scales are set; layers are still empty.
  const QuantizedParameters& frame;
};

/// Width of the weights, and of the activations, of the convolutions in block `block`.
int weight_bits_of(const QuantizationOptions& options, std::size_t block);
int activation_bits_of(const QuantizationOptions& options, std::size_t block);

/// A method turns FP32 weights into integers, scales and biases. A new one is one file and one line in
/// methods.cpp.
struct Method {
  const char* name;  ///< of --method
  bool learns;       ///< from the calibration images: 8, 4 and 2 bits, without pair_safe
  bool has_steps;    ///< takes QuantizationOptions::learning_steps, and kGroupImages images or more
  QuantizedParameters (*quantize)(const QuantizationTask& task);
};

QuantizedParameters quantize_nearest(const QuantizationTask& task);
QuantizedParameters quantize_equalize(const QuantizationTask& task);
QuantizedParameters quantize_adaround(const QuantizationTask& task);
QuantizedParameters quantize_brecq(const QuantizationTask& task);
QuantizedParameters quantize_blocks(const QuantizationTask& task);
QuantizedParameters quantize_distill(const QuantizationTask& task);

std::span<const Method> methods();

/// The method that `auto` stands for.
const char* automatic_method(int bits, int activation_bits, bool pair_safe);

/// Throws InputError that lists the names.
const Method& find_method(const std::string& name);

/// Widths, and activation scales by the options' observer; the layers are left empty.
QuantizedParameters make_frame(const NetworkDescription& network, const Calibration& calibration,
                               const QuantizationOptions& options);

/// The rule that the weights of convolution `index` keep to; `index` == number of convolutions: linear layer.
WeightRule weight_rule(const QuantizationTask& task, std::size_t index);

/// Bias of the first layer for raw pixels: bias - weight_scale * sum of 255 * mean * weights, from the
/// quantized weights.
void fold_pixel_mean(std::span<const float> bias, QuantizedLayer& layer);

}  // namespace nibble
