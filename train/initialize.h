#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/float_parameters.h"

namespace nibble {

/// Parameters to begin with, as PyTorch's layers begin: weights and the linear layer's bias uniform in
/// +-1 / sqrt(inputs of one output), gamma 1, beta 0. A pure function of network and seed.
FloatParameters initial_parameters(const NetworkDescription& network, std::uint64_t seed);

/// All values of `parameters`, running statistics included, one after the other, and back.
void flatten(const FloatParameters& parameters, std::vector<float>& values);
void unflatten(std::span<const float> values, FloatParameters& parameters);

}  // namespace nibble
