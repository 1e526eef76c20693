#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "graph/onednn/elementwise.h"

namespace nibble {

// Learned step sizes (LSQ: Esser et al. 2019, arXiv:1902.08153): v = value / scale, q = round(clamp(v)). The
// gradient passes the rounding unchanged where v lies within the clamp and stops where it is clipped; the
// scale's own gradient is d loss / d (scale * q) times q - v within the clamp, times q where it is clipped.

/// Where weights of `bits` bits are clipped, in units of their scale: also the largest integer.
constexpr float weight_clip(int bits) {
  return bits == 2 ? 3.0F : bits == 4 ? 7.0F : 127.0F;
}

/// The integer of a weight, v = weight / scale: nearest of -3, -1, 1, 3 at 2 bits, else nearest, half to
/// even.
inline float quantize_weight(float v, int bits) {
  const float clipped = std::clamp(v, -weight_clip(bits), weight_clip(bits));
  if (bits == 2) return 2 * std::floor(clipped / 2) + 1;
  return std::nearbyint(clipped);
}

/// The quantizers between the convolutions in training, on nhwc rows of `channels` values (a multiple of 16);
/// integers are stored as T, which holds them exactly up to 256, y is FP32. Sums over rows are double.
///
/// Names as in elementwise.h: y = a convolution's output, v = y * scale + shift [+ shortcut * ratio] in units
/// of the quantizer's scale, q = round(clamp(v)), d = d loss / d q, g = d loss / d v = d where lowest < v <
/// highest, else 0. step[c] += d * (q - v) within the clamp, d * q where it is clipped.
template <typename T>
struct QuantizationLoops {
  void (*quantize)(const float* y, std::size_t rows, int channels, const float* scale, const float* shift,
                   float lowest, float highest, T* q);
  /// lowest = 0
  void (*add_quantize)(const float* y, std::size_t rows, int channels, const float* scale, const float* shift,
                       const T* shortcut, float ratio, float highest, T* q);
  /// x = min(round(r * ratio), highest)
  void (*derive)(const T* r, std::size_t rows, int channels, float ratio, float highest, T* x);
  /// d * factor is d loss / d q. sum[c] += g, product[c] += g * (y - mean); g may be d.
  void (*quantize_gradient)(const T* d, float factor, const float* y, std::size_t rows, int channels,
                            const float* scale, const float* shift, const float* mean, float lowest,
                            float highest, T* g, double* sum, double* product, double* step);
  void (*add_quantize_gradient)(const T* d, const float* y, std::size_t rows, int channels,
                                const float* scale, const float* shift, const T* shortcut, float ratio,
                                const float* mean, float highest, T* g, double* sum, double* product,
                                double* step);
  /// d = d loss / d r = dx * ratio where r * ratio < highest, + shortcut_gradient * shortcut_ratio (may be
  /// null); d may be dx
  void (*derive_gradient)(const T* dx, const T* r, std::size_t rows, int channels, float ratio, float highest,
                          const T* shortcut_gradient, float shortcut_ratio, T* d, double* step);
};

/// The loops compiled for this CPU.
template <typename T>
const QuantizationLoops<T>& quantization_loops();
template <>
const QuantizationLoops<float>& quantization_loops<float>();
template <>
const QuantizationLoops<Bfloat16>& quantization_loops<Bfloat16>();

/// Callable only where the CPU has AVX2 and FMA.
const QuantizationLoops<float>& quantization_avx2_fp32();
const QuantizationLoops<Bfloat16>& quantization_avx2_bf16();
/// With AVX-512 F, BW, VL, DQ and BF16.
const QuantizationLoops<float>& quantization_avx512_fp32();
const QuantizationLoops<Bfloat16>& quantization_avx512_bf16();

}  // namespace nibble
