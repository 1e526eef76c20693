#pragma once

#include "graph/network/description.h"
#include "graph/network/fold.h"
#include "graph/network/quantized_parameters.h"

namespace nibble {

/// The name of the method that equalizes, in --method and in a file's metadata.
inline constexpr const char* kEqualizeMethod = "equalize";

/// Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1): in each block, output channel
/// i of conv1 is divided by s and input channel i of conv2 multiplied by it, s = sqrt(r1 / r2), so that the
/// largest weights r1 and r2 of both become the same. ReLU between them commutes with s > 0: but for
/// rounding, the network computes what it did. Channels whose s is not within 1/16 to 16 stay as they are.
FoldedParameters equalized(const NetworkDescription& network, FoldedParameters folded);

/// Whether the integers come from an equalized network: its middle tensors have other scales than the FP32
/// network's, channel by channel.
bool is_equalized(const QuantizedParameters& parameters);

/// The FP32 network that was rounded: folded and, where it was, equalized.
FoldedParameters folded_source(const NetworkDescription& network, const FloatParameters& parameters,
                               const QuantizedParameters& quantized);

}  // namespace nibble
