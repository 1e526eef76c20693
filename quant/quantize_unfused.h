#pragma once

#include <cstdint>
#include <span>

#include "graph/network/float_parameters.h"
#include "graph/onednn/int8_unfused_parameters.h"
#include "quant/method.h"

namespace nibble {

/// Calibrates on `pixels_nhwc` ([images][32][32][3]) and quantizes to 8 bits without folding: weights as they
/// are, an s8 scale for the output of each convolution, batch normalization and addition. Of the options the
/// observer and the choice of weight scales count.
UnfusedNetwork quantize_unfused(const NetworkDescription& network, const FloatParameters& parameters,
                                std::span<const std::uint8_t> pixels_nhwc,
                                const QuantizationOptions& options);

}  // namespace nibble
