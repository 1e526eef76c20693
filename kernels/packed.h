#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

/// The four values that the codes 0, 1, 2, 3 of a 2-bit layer stand for, ascending and symmetric: -b, -a, a,
/// b.
using Levels = std::array<std::int16_t, 4>;

inline constexpr Levels kDefaultLevels = {-3, -1, 1, 3};

/// Integers packed to their own width in canonical order (output channel, row, column, input channel), lowest
/// bits first, without gaps between rows:
///
///   2 bits:  byte 0 = code0 | code1 << 2 | code2 << 4 | code3 << 6     (codes index `levels`)
///   4 bits:  byte 0 = value0 & 15 | value1 << 4                        (two's complement)
///   8, 16 bits: two's complement, little-endian
///
/// Unused bits of the last byte are zero.
struct PackedValues {
  int bits = 8;           ///< 16, 8, 4 or 2
  std::size_t count = 0;  ///< values, not bytes
  Levels levels{};        ///< only at 2 bits
  std::vector<std::uint8_t> bytes;
};

/// Bytes that `count` values of `bits` bits take.
constexpr std::size_t packed_size(std::size_t count, int bits) {
  return (count * static_cast<std::size_t>(bits) + 7) / 8;
}

/// Whether `value` may be a weight of this width; `levels` matters at 2 bits only.
bool representable(int value, int bits, const Levels& levels);

/// Throws std::invalid_argument when a value is not representable: callers check their data beforehand.
PackedValues pack(std::span<const std::int16_t> values, int bits, const Levels& levels = kDefaultLevels);

/// The values of `packed`. bytes.size() must be packed_size(count, bits). A file's 4-bit -8, 8-bit -128 or
/// 16-bit -32768 comes back as it is, although it is not representable.
std::vector<std::int16_t> unpack(const PackedValues& packed);

}  // namespace nibble
