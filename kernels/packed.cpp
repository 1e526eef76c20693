#include "kernels/packed.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels/requantize.h"

namespace nibble {
namespace {

/// The bit pattern of `value`, in the lowest `bits` bits.
unsigned encode(int value, int bits, const Levels& levels) {
  if (bits == 2) {
    return static_cast<unsigned>(std::find(levels.begin(), levels.end(), value) - levels.begin());
  }
  return static_cast<unsigned>(value) & ((1U << bits) - 1U);
}

std::int16_t decode(unsigned code, int bits, const Levels& levels) {
  if (bits == 2) return levels[code];
  const int sign = 1 << (bits - 1);
  return static_cast<std::int16_t>((static_cast<int>(code) ^ sign) - sign);
}

}  // namespace

bool representable(int value, int bits, const Levels& levels) {
  if (bits == 2) return std::find(levels.begin(), levels.end(), value) != levels.end();
  return std::abs(value) <= weight_limit(bits);
}

PackedValues pack(std::span<const std::int16_t> values, int bits, const Levels& levels) {
  PackedValues packed{bits, values.size(), bits == 2 ? levels : Levels{},
                      std::vector<std::uint8_t>(packed_size(values.size(), bits))};
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!representable(values[i], bits, levels)) {
      throw std::invalid_argument("the value " + std::to_string(values[i]) + " at " + std::to_string(i) +
                                  " is no " + std::to_string(bits) + "-bit weight");
    }
    const unsigned code = encode(values[i], bits, levels);
    const std::size_t first_bit = i * static_cast<std::size_t>(bits);
    packed.bytes[first_bit / 8] |= static_cast<std::uint8_t>((code << (first_bit % 8)) & 0xFFU);
    if (bits == 16) packed.bytes[first_bit / 8 + 1] = static_cast<std::uint8_t>(code >> 8);
  }
  return packed;
}

std::vector<std::int16_t> unpack(const PackedValues& packed) {
  std::vector<std::int16_t> values(packed.count);
  const unsigned mask = (1U << packed.bits) - 1U;
  for (std::size_t i = 0; i < packed.count; ++i) {
    const std::size_t first_bit = i * static_cast<std::size_t>(packed.bits);
    unsigned code = packed.bytes[first_bit / 8];
    if (packed.bits == 16) code |= static_cast<unsigned>(packed.bytes[first_bit / 8 + 1]) << 8;
    values[i] = decode((code >> (first_bit % 8)) & mask, packed.bits, packed.levels);
  }
  return values;
}

}  // namespace nibble
