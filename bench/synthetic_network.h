#pragma once

#include "graph/network/float_parameters.h"
#include "graph/network/quantized_parameters.h"

namespace nibble {

// Networks with made-up values, for measuring speed without a checkpoint: speed does not depend on values,
// but for denormal numbers, which do not occur here.

FloatParameters synthetic_parameters(const NetworkDescription& network);

/// `bits`: 16, 8, 4 or 2, of weights and activations.
QuantizedNetwork synthetic_quantized(const NetworkDescription& network, int bits);

}  // namespace nibble
