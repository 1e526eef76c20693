#include "graph/network/signature.h"

#include <bit>
#include <cstdint>

#define XXH_INLINE_ALL
#include <xxhash.h>

static_assert(std::endian::native == std::endian::little, "logits are hashed as they lie in memory");

namespace nibble {

std::string signature(std::span<const float> logits) {
  const std::uint64_t hash = XXH64(logits.data(), logits.size_bytes(), 0);
  std::string text(16, '0');
  for (std::size_t i = 0; i < text.size(); ++i) text[15 - i] = "0123456789abcdef"[(hash >> (4 * i)) & 15U];
  return text;
}

}  // namespace nibble
