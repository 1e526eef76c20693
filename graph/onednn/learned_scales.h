#pragma once

#include <cstddef>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/float_parameters.h"
#include "graph/network/tensor_file.h"

namespace nibble {

/// The scales of one block's activations, as in QuantizedBlock.
struct LearnedBlockScales {
  float input = 1;  ///< of x; unused at 8-bit activations, where x is the stream itself
  float middle = 1;
  float shortcut = 1;  ///< unused where there is no projection
  float output = 1;
};

/// What trained quantization learns beside FloatParameters: the step size of every quantizer.
struct LearnedScales {
  int weight_bits = 0;      ///< 8, 4 or 2
  int activation_bits = 0;  ///< 8, 4 or 2
  /// [convolution][output channel]; the first convolution's are of weights * kMeanDeviation / deviation of
  /// their input channel, which pixels * 1 / (255 * kMeanDeviation) are multiplied with.
  std::vector<std::vector<float>> weights;
  std::vector<float> linear;  ///< [class]
  float first_output = 1;     ///< of the stream that leaves the first convolution
  std::vector<LearnedBlockScales> blocks;
};

/// Keeps the first convolution's scales near the others' although its inputs are 0..255.
inline constexpr float kMeanDeviation = 0.226F;

/// What the first convolution's weights are multiplied with before they are divided by their scale, in
/// training as in the exported integers.
inline float first_weight_factor(std::size_t input_channel) {
  return kMeanDeviation / kPixelDeviation[input_channel];
}

/// Width of the weights of convolution `index`: the first one has 8 bits always, as the linear layer.
int trained_weight_bits(const LearnedScales& scales, std::size_t index);

/// P of a trained quantization has its own format, so that nobody takes it for a float network:
/// FloatParameters' tensors and "quantizer.scales" (F32: first output; input, middle, shortcut, output of
/// each block; each convolution's channels; the linear layer's).
inline constexpr const char* kTrainedFormat = "nibble-trained-1";

/// Changes the format of `file`, which has the parameters already.
void store_scales(const LearnedScales& scales, TensorFile& file);

/// Throws InputError for scales that are not above 0, sizes and widths that do not fit.
LearnedScales stored_scales(const NetworkDescription& network, const TensorFile& file);

}  // namespace nibble
