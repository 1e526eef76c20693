#include "quant/learned_loops.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu.h"

namespace nibble {
namespace {

/// Half to even, for magnitudes below 2^22: adding 1.5 * 2^23 leaves no bit for a fraction.
[[gnu::always_inline]] inline float round_small(float value) {
  constexpr float magic = 12582912.0F;
  return (value + magic) - magic;
}

[[gnu::always_inline]] inline float limited(float y, float lowest, float highest, bool round) {
  const float clamped = std::min(std::max(y, lowest), highest);
  return round ? round_small(clamped) : clamped;
}

[[gnu::always_inline]] inline void forward_any(const LoopRequantization& map, const float* __restrict acc,
                                               const float* __restrict residual, std::size_t count,
                                               float* __restrict q) {
  const auto channels = static_cast<std::size_t>(map.channels);
  const float* __restrict scale = map.scale;
  const float* __restrict offset = map.offset;
  for (std::size_t pixel = 0; pixel < count; pixel += channels) {
    for (std::size_t c = 0; c < channels; ++c) {
      const float product = acc[pixel + c] * scale[c];
      float y = product + offset[c];
      if (residual != nullptr) y = std::fma(residual[pixel + c], map.ratio, y);
      q[pixel + c] = limited(y, map.lowest, map.highest, map.round);
    }
  }
}

[[gnu::always_inline]] inline void backward_any(const LoopRequantization& map, const float* __restrict acc,
                                                const float* __restrict residual, const float* d,
                                                std::size_t count, float* g, float* __restrict d_acc,
                                                float* __restrict offset_sum, float* __restrict scale_sum,
                                                float* __restrict step_sum) {
  const auto channels = static_cast<std::size_t>(map.channels);
  const float* __restrict scale = map.scale;
  const float* __restrict offset = map.offset;
  for (std::size_t pixel = 0; pixel < count; pixel += channels) {
#pragma GCC ivdep
    for (std::size_t c = 0; c < channels; ++c) {
      const float product = acc[pixel + c] * scale[c];
      float y = product + offset[c];
      if (residual != nullptr) y = std::fma(residual[pixel + c], map.ratio, y);
      const float q = limited(y, map.lowest, map.highest, map.round);
      const float upstream = d[pixel + c];
      const bool inside = (y > map.lowest) & (y < map.highest);
      const float passed = inside ? upstream : 0.0F;
      g[pixel + c] = passed;
      d_acc[pixel + c] = passed * scale[c];
      offset_sum[c] += passed;
      scale_sum[c] += passed * product;
      step_sum[c] += upstream * (inside ? q - y : q);
    }
  }
}

[[gnu::target("avx2,fma")]] void forward_avx2(const LoopRequantization& map, const float* acc,
                                              const float* residual, std::size_t count, float* q) {
  if (residual == nullptr) {
    forward_any(map, acc, nullptr, count, q);
  } else {
    forward_any(map, acc, residual, count, q);
  }
}

[[gnu::target("avx2,fma")]] void backward_avx2(const LoopRequantization& map, const float* acc,
                                               const float* residual, const float* d, std::size_t count,
                                               float* g, float* d_acc, float* offset_sum, float* scale_sum,
                                               float* step_sum) {
  if (residual == nullptr) {
    backward_any(map, acc, nullptr, d, count, g, d_acc, offset_sum, scale_sum, step_sum);
  } else {
    backward_any(map, acc, residual, d, count, g, d_acc, offset_sum, scale_sum, step_sum);
  }
}

}  // namespace

void requantize_forward(const LoopRequantization& map, const float* acc, const float* residual,
                        std::size_t count, float* q) {
  if (has_avx2()) {
    forward_avx2(map, acc, residual, count, q);
  } else {
    forward_any(map, acc, residual, count, q);
  }
}

void requantize_backward(const LoopRequantization& map, const float* acc, const float* residual,
                         const float* d, std::size_t count, float* g, float* d_acc, float* offset_sum,
                         float* scale_sum, float* step_sum) {
  if (has_avx2()) {
    backward_avx2(map, acc, residual, d, count, g, d_acc, offset_sum, scale_sum, step_sum);
  } else {
    backward_any(map, acc, residual, d, count, g, d_acc, offset_sum, scale_sum, step_sum);
  }
}

void derive_forward(const float* r, std::size_t count, float ratio, float highest, bool round, float* x) {
  for (std::size_t i = 0; i < count; ++i) x[i] = limited(r[i] * ratio, 0, highest, round);
}

double derive_backward(const float* r, const float* d, std::size_t count, float ratio, float highest,
                       bool round, float* dr) {
  constexpr std::size_t lanes = 16;  // maps are multiples of 16; fixed lanes keep the sum's order
  float sums[lanes] = {};
  const auto one = [&](std::size_t i, float& sum) {
    const float y = r[i] * ratio;
    const float x = limited(y, 0, highest, round);
    const bool inside = y < highest;
    dr[i] = inside ? d[i] * ratio : 0.0F;
    sum += d[i] * (inside ? x - y : x);
  };
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) one(i + lane, sums[lane]);
  }
  for (; i < count; ++i) one(i, sums[0]);
  double total = 0;
  for (const float sum : sums) total += double{sum};
  return total;
}

}  // namespace nibble
