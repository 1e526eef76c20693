#pragma once

#include <cstdint>
#include <vector>

#include "graph/network/quantized_parameters.h"

namespace nibble {

/// A quantized network with random weights of full range and scales that keep its activations alive: neither
/// all zero nor all at the limit. `activation_bits` may differ from `weight_bits`.
QuantizedNetwork random_network(const NetworkDescription& network, int weight_bits, int activation_bits,
                                std::uint64_t seed);

/// Random pixels of `count` images.
std::vector<std::uint8_t> random_pixels(std::int64_t count, std::uint64_t seed);

}  // namespace nibble
