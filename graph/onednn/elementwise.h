#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble {

/// Half the bits of a float: its sign, exponent and 7 bits of its fraction.
struct Bfloat16 {
  std::uint16_t bits;
};

/// The work between the convolutions in training, on nhwc rows of `channels` values (a multiple of 16). T is
/// the type that activations and gradients are stored in (float or Bfloat16); arithmetic is FP32, sums over
/// rows are double. Every loop is called on a few images at a time, while they are in the core's own cache.
///
/// Names: y = a convolution's output, z = relu(y * scale + shift [+ shortcut]), d = d loss / d z,
/// g = d masked by z > 0, all [rows][channels]; scale, shift, mean, a, b, c: [channels].
template <typename T>
struct ElementwiseLoops {
  /// sum[c] += y - center, square[c] += (y - center)^2
  void (*statistics)(const T* y, std::size_t rows, int channels, const float* center, double* sum,
                     double* square);
  /// z = relu(y * scale + shift)
  void (*normalize_relu)(const T* y, std::size_t rows, int channels, const float* scale, const float* shift,
                         T* z);
  /// z = relu(y * scale + shift + shortcut)
  void (*normalize_add_relu)(const T* y, std::size_t rows, int channels, const float* scale,
                             const float* shift, const T* shortcut, T* z);
  /// z = relu(y * scale + shift + projected * projected_scale), the projection's shift being in `shift`
  void (*normalize_project_relu)(const T* y, std::size_t rows, int channels, const float* scale,
                                 const float* shift, const T* projected, const float* projected_scale, T* z);
  /// g = d where y * scale + shift > 0, else 0 (may be d itself); sum[c] += g, product[c] += g * (y - mean)
  void (*mask_by_output)(const T* d, const T* y, std::size_t rows, int channels, const float* scale,
                         const float* shift, const float* mean, T* g, double* sum, double* product);
  /// g = d + shortcut where z > 0, else 0 (may be d or shortcut); sum[c] += g, product[c] += g * (y - mean).
  /// `shortcut` may be null.
  void (*mask_by_sign)(const T* d, const T* shortcut, const T* z, const T* y, std::size_t rows, int channels,
                       const float* mean, T* g, double* sum, double* product);
  /// product[c] += g * (y - mean)
  void (*gradient_product)(const T* g, const T* y, std::size_t rows, int channels, const float* mean,
                           double* product);
  /// dy = a * g + (b * y + c); dy may be g
  void (*input_gradient)(const T* g, const T* y, std::size_t rows, int channels, const float* a,
                         const float* b, const float* c, T* dy);
  /// The same of sums that are kept in FP32.
  void (*input_gradient_of_sums)(const T* g, const float* y, std::size_t rows, int channels, const float* a,
                                 const float* b, const float* c, T* dy);
};

/// The loops compiled for this CPU.
template <typename T>
const ElementwiseLoops<T>& elementwise_loops();
template <>
const ElementwiseLoops<float>& elementwise_loops<float>();
template <>
const ElementwiseLoops<Bfloat16>& elementwise_loops<Bfloat16>();

inline float to_float(float value) {
  return value;
}
inline float to_float(Bfloat16 value) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(value.bits) << 16);
}
inline void store_value(float value, float* to) {
  *to = value;
}
/// Rounds to nearest even; NaN does not occur in a healthy network and would stay one or become Inf.
inline void store_value(float value, Bfloat16* to) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  to->bits = static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace nibble
