// 16 floats at a time, with AVX-512 F, BW, VL, DQ and BF16; the rest as in elementwise_lanes8.h.
#pragma once

#include <immintrin.h>

#include "graph/onednn/elementwise.h"

namespace nibble {
namespace {

constexpr int kLanes = 16;

using Lanes = float __attribute__((vector_size(64)));
using Mask = __mmask16;

inline __attribute__((always_inline)) Lanes load(const float* from) {
  return _mm512_loadu_ps(from);
}
inline __attribute__((always_inline)) Lanes load(const Bfloat16* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline __attribute__((always_inline)) void store(const Lanes& value, float* to) {
  _mm512_storeu_ps(to, value);
}
/// Denormals become 0.
inline __attribute__((always_inline)) void store(const Lanes& value, Bfloat16* to) {
  const __m256bh half = _mm512_cvtneps_pbh(value);
  __builtin_memcpy(to, &half, sizeof half);
}
inline __attribute__((always_inline)) Mask greater(const Lanes& left, const Lanes& right) {
  return _mm512_cmp_ps_mask(left, right, _CMP_GT_OQ);
}
inline __attribute__((always_inline)) Lanes keep(const Lanes& value, Mask mask) {
  return _mm512_maskz_mov_ps(mask, value);
}
inline __attribute__((always_inline)) Lanes larger(const Lanes& left, const Lanes& right) {
  return _mm512_max_ps(left, right);
}
inline __attribute__((always_inline)) Lanes smaller(const Lanes& left, const Lanes& right) {
  return _mm512_min_ps(left, right);
}

}  // namespace
}  // namespace nibble
