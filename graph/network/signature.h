#pragma once

#include <span>
#include <string>

namespace nibble {

/// XXH64 (seed 0) over the little-endian bits of float32 logits: 16 lower-case hexadecimal digits, equal
/// exactly when all logits are equal bit for bit.
std::string signature(std::span<const float> logits);

}  // namespace nibble
