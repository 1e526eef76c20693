#pragma once

#include <functional>

#include "quant/method.h"
#include "quant/simulation.h"

namespace nibble {

/// Gets a convolution that is rounded to nearest and what the integer network before it gives on the
/// calibration images; may change integers, within the layer's width, and scales.
using ImproveRounding = std::function<void(int convolution, const Integers& inputs, QuantizedLayer& layer)>;

/// Rounds the weights of one layer after the other to nearest, lets `improve` (may be empty) change all but
/// the first convolution and the linear layer, and makes the correction of the options (data-free bias
/// correction: Nagel et al. 2019, arXiv:1906.04721, here measured on images).
QuantizedParameters quantize_layer_by_layer(const QuantizationTask& task, const ImproveRounding& improve);

}  // namespace nibble
