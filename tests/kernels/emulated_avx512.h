#pragma once

// Force-included before the AVX-512 kernels' files where the tests compile them for a CPU without AVX-512:
// SIMDe's functions take the places of the intrinsics, and those that SIMDe 0.7.4 lacks are here, each from
// its definition on values in memory. Slow, but bit for bit.

#define SIMDE_ENABLE_NATIVE_ALIASES
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>
#pragma GCC diagnostic pop

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace nibble::emulated {

template <typename To, typename From>
To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

using Floats = std::array<float, 16>;
using Words = std::array<std::int16_t, 32>;
using Integers = std::array<std::int32_t, 16>;

inline simde__m512 convert_to_floats(simde__m512i integers) {
  Floats result;
  const auto values = as<Integers>(integers);
  for (std::size_t i = 0; i < 16; ++i) result[i] = static_cast<float>(values[i]);
  return as<simde__m512>(result);
}

/// Nearest, ties to even; what does not fit becomes the smallest integer.
inline simde__m512i convert_to_integers(simde__m512 floats) {
  Integers result;
  const auto values = as<Floats>(floats);
  for (std::size_t i = 0; i < 16; ++i) {
    const float rounded = std::nearbyint(values[i]);
    result[i] =
        rounded >= -2147483648.0F && rounded < 2147483648.0F ? static_cast<std::int32_t>(rounded) : INT32_MIN;
  }
  return as<simde__m512i>(result);
}

template <typename Byte>
simde__m512i widen_bytes(simde__m128i bytes) {
  Integers result;
  const auto values = as<std::array<Byte, 16>>(bytes);
  for (std::size_t i = 0; i < 16; ++i) result[i] = values[i];
  return as<simde__m512i>(result);
}

inline simde__m128i low_bytes(simde__m512i integers) {
  std::array<std::uint8_t, 16> result;
  const auto values = as<Integers>(integers);
  for (std::size_t i = 0; i < 16; ++i) result[i] = static_cast<std::uint8_t>(values[i]);
  return as<simde__m128i>(result);
}

inline std::uint32_t greater_words(simde__m512i a, simde__m512i b) {
  std::uint32_t mask = 0;
  const auto left = as<Words>(a);
  const auto right = as<Words>(b);
  for (std::size_t i = 0; i < 32; ++i) mask |= static_cast<std::uint32_t>(left[i] > right[i]) << i;
  return mask;
}

inline simde__m512i shift_right_arithmetic(simde__m512i integers, int count) {
  auto values = as<Integers>(integers);
  for (std::int32_t& value : values) value >>= count;
  return as<simde__m512i>(values);
}

}  // namespace nibble::emulated

#define _mm512_cvtepi32_ps(a) ::nibble::emulated::convert_to_floats(a)
#define _mm512_cvtps_epi32(a) ::nibble::emulated::convert_to_integers(a)
#define _mm512_cvtepi8_epi32(a) ::nibble::emulated::widen_bytes<std::int8_t>(a)
#define _mm512_cvtepu8_epi32(a) ::nibble::emulated::widen_bytes<std::uint8_t>(a)
#define _mm512_cvtepi32_epi8(a) ::nibble::emulated::low_bytes(a)
#define _mm512_cmpgt_epi16_mask(a, b) ::nibble::emulated::greater_words(a, b)
#define _mm512_srai_epi32(a, count) ::nibble::emulated::shift_right_arithmetic(a, count)
