#pragma once

#include <cstddef>

namespace nibble {

/// One requantization (kernels/requantize.h) on integers held in float32, and its gradient.
///
///   y = acc * scale[c] + offset[c] (+ residual * ratio, fused)     q = clamp(round half to even(y))
struct LoopRequantization {
  int channels;
  const float* scale;
  const float* offset;
  float ratio = 0;  ///< of the residual
  float lowest = 0;
  float highest = 0;
  /// Off: q = clamp(y), whose derivatives are exact. For tests.
  bool round = true;
};

/// `count` values, [pixels][channels]; `residual` may be null.
void requantize_forward(const LoopRequantization& map, const float* acc, const float* residual,
                        std::size_t count, float* q);

/// The straight-through gradient of the step size (Esser et al. 2019, arXiv:1902.08153): d = dL/dq.
///
///   g = d where lowest < y < highest, else 0         what passes to y; may be d itself
///   d_acc = g * scale[c]
///   offset_sum[c] += g       scale_sum[c] += g * acc * scale[c]
///   step_sum[c] += d * (q - y) inside, d * q outside     sums to dL / d log(step size of q)
void requantize_backward(const LoopRequantization& map, const float* acc, const float* residual,
                         const float* d, std::size_t count, float* g, float* d_acc, float* offset_sum,
                         float* scale_sum, float* step_sum);

/// x = clamp(round(r * ratio), 0, highest)
void derive_forward(const float* r, std::size_t count, float ratio, float highest, bool round, float* x);

/// dr = d * ratio where r * ratio < highest, else 0. Returns dL / d log(step size of x).
double derive_backward(const float* r, const float* d, std::size_t count, float ratio, float highest,
                       bool round, float* dr);

}  // namespace nibble
