// 8 floats at a time, in GCC's vector types: for any CPU and for AVX2. One file for each instruction set
// includes this or elementwise_lanes16.h, then the loops. Everything is in an unnamed namespace and nothing
// of the standard library is instantiated here, so that no function compiled for a newer CPU can be linked
// into the rest.
#pragma once

#include <cstdint>

#include "graph/onednn/elementwise.h"

namespace nibble {
namespace {

constexpr int kLanes = 8;

using Lanes = float __attribute__((vector_size(32)));
using WideBits = std::uint32_t __attribute__((vector_size(32)));
using HalfBits = std::uint16_t __attribute__((vector_size(16)));
using Mask = std::int32_t __attribute__((vector_size(32)));

inline __attribute__((always_inline)) Lanes load(const float* from) {
  Lanes value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
inline __attribute__((always_inline)) Lanes load(const Bfloat16* from) {
  HalfBits half;
  __builtin_memcpy(&half, from, sizeof half);
  const WideBits wide = __builtin_convertvector(half, WideBits) << 16;
  Lanes value;
  __builtin_memcpy(&value, &wide, sizeof value);
  return value;
}
inline __attribute__((always_inline)) void store(const Lanes& value, float* to) {
  __builtin_memcpy(to, &value, sizeof value);
}
inline __attribute__((always_inline)) void store(const Lanes& value, Bfloat16* to) {
  WideBits wide;
  __builtin_memcpy(&wide, &value, sizeof wide);
  wide = (wide + 0x7FFFU + ((wide >> 16) & 1U)) >> 16;
  const HalfBits half = __builtin_convertvector(wide, HalfBits);
  __builtin_memcpy(to, &half, sizeof half);
}
inline __attribute__((always_inline)) Mask greater(const Lanes& left, const Lanes& right) {
  return left > right;
}
/// `value` where the mask is set, else 0.
inline __attribute__((always_inline)) Lanes keep(const Lanes& value, const Mask& mask) {
  Mask bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  bits &= mask;
  Lanes kept;
  __builtin_memcpy(&kept, &bits, sizeof kept);
  return kept;
}
/// The larger one; `right` where `left` is no number.
inline __attribute__((always_inline)) Lanes larger(const Lanes& left, const Lanes& right) {
  return left > right ? left : right;
}
inline __attribute__((always_inline)) Lanes smaller(const Lanes& left, const Lanes& right) {
  return left < right ? left : right;
}

}  // namespace
}  // namespace nibble
