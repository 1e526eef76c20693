// The definition of the loops in fake_quantization.h, included by one file for each instruction set behind
// its elementwise_lanes8.h or elementwise_lanes16.h, whose rules hold here too.
#pragma once

#include "graph/onednn/elementwise_loops.h"
#include "graph/onednn/fake_quantization.h"

namespace nibble {
namespace {

inline __attribute__((always_inline)) Lanes spread(float value) {
  return Lanes{} + value;
}
inline __attribute__((always_inline)) Lanes clamp_lanes(const Lanes& value, const Lanes& lowest,
                                                        const Lanes& highest) {
  return smaller(larger(value, lowest), highest);
}
/// Half to even, for magnitudes below 2^22.
inline __attribute__((always_inline)) Lanes round_lanes(const Lanes& value) {
  const Lanes magic = spread(12582912.0F);
  return (value + magic) - magic;
}

template <typename T>
void quantize(const float* y, std::size_t rows, int channels, const float* scale, const float* shift,
              float lowest, float highest, T* q) {
  const Lanes low = spread(lowest);
  const Lanes high = spread(highest);
  for_each<2>(rows, channels, {scale, shift}, [=](std::size_t at, const Lanes* constant) {
    const Lanes v = load(y + at) * constant[0] + constant[1];
    store(round_lanes(clamp_lanes(v, low, high)), q + at);
  });
}

template <typename T>
void add_quantize(const float* y, std::size_t rows, int channels, const float* scale, const float* shift,
                  const T* shortcut, float ratio, float highest, T* q) {
  const Lanes high = spread(highest);
  for_each<2>(rows, channels, {scale, shift}, [=](std::size_t at, const Lanes* constant) {
    const Lanes v = load(y + at) * constant[0] + constant[1] + load(shortcut + at) * ratio;
    store(round_lanes(clamp_lanes(v, Lanes{}, high)), q + at);
  });
}

template <typename T>
void derive(const T* r, std::size_t rows, int channels, float ratio, float highest, T* x) {
  const Lanes high = spread(highest);
  for_each<0>(rows, channels, {}, [=](std::size_t at, const Lanes*) {
    store(round_lanes(clamp_lanes(load(r + at) * ratio, Lanes{}, high)), x + at);
  });
}

/// values: g, g * (y - mean), d * (q - v or q).
inline __attribute__((always_inline)) Lanes quantizer_gradient(const Lanes& d, const Lanes& v,
                                                               const Lanes& low, const Lanes& high,
                                                               const Lanes& centered, Lanes* values) {
  const Mask inside = greater(v, low) & greater(high, v);
  const Lanes q = round_lanes(clamp_lanes(v, low, high));
  const Lanes g = keep(d, inside);
  values[0] = g;
  values[1] = g * centered;
  values[2] = d * (q - keep(v, inside));
  return g;
}

template <typename T>
void quantize_gradient(const T* d, float factor, const float* y, std::size_t rows, int channels,
                       const float* scale, const float* shift, const float* mean, float lowest, float highest,
                       T* g, double* sum, double* product, double* step) {
  const Lanes low = spread(lowest);
  const Lanes high = spread(highest);
  sum_each<3, 3>(
      rows, channels, {scale, shift, mean}, {sum, product, step},
      [=](std::size_t at, const Lanes* constant, Lanes* values) {
        const Lanes output = load(y + at);
        const Lanes v = output * constant[0] + constant[1];
        store(quantizer_gradient(load(d + at) * factor, v, low, high, output - constant[2], values), g + at);
      });
}

template <typename T>
void add_quantize_gradient(const T* d, const float* y, std::size_t rows, int channels, const float* scale,
                           const float* shift, const T* shortcut, float ratio, const float* mean,
                           float highest, T* g, double* sum, double* product, double* step) {
  const Lanes high = spread(highest);
  sum_each<3, 3>(rows, channels, {scale, shift, mean}, {sum, product, step},
                 [=](std::size_t at, const Lanes* constant, Lanes* values) {
                   const Lanes output = load(y + at);
                   const Lanes v = output * constant[0] + constant[1] + load(shortcut + at) * ratio;
                   store(quantizer_gradient(load(d + at), v, Lanes{}, high, output - constant[2], values),
                         g + at);
                 });
}

template <typename T>
void derive_gradient(const T* dx, const T* r, std::size_t rows, int channels, float ratio, float highest,
                     const T* shortcut_gradient, float shortcut_ratio, T* d, double* step) {
  const Lanes high = spread(highest);
  const bool has_shortcut = shortcut_gradient != nullptr;
  sum_each<0, 1>(rows, channels, {}, {step}, [=](std::size_t at, const Lanes*, Lanes* values) {
    const Lanes v = load(r + at) * ratio;
    const Mask inside = greater(high, v);
    const Lanes gradient = load(dx + at);
    const Lanes q = round_lanes(clamp_lanes(v, Lanes{}, high));
    values[0] = gradient * (q - keep(v, inside));
    Lanes result = keep(gradient, inside) * ratio;
    if (has_shortcut) result += load(shortcut_gradient + at) * shortcut_ratio;
    store(result, d + at);
  });
}

template <typename T>
constexpr QuantizationLoops<T> kQuantizationLoops = {
    &quantize<T>,          &add_quantize<T>,          &derive<T>,
    &quantize_gradient<T>, &add_quantize_gradient<T>, &derive_gradient<T>};

}  // namespace
}  // namespace nibble
