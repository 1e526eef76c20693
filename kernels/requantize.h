#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace nibble {

// The one definition of the integers of a quantized network. Scalar reference, kernels, the oneDNN network
// and fake quantization call it or are tested to match it bit for bit. Everything that includes this header
// is compiled with -ffp-contract=off: the multiplication and the addition below are rounded one after the
// other.

/// Largest magnitude of a weight of `bits` bits: symmetric, zero point 0. A 2-bit layer has its own four
/// levels, -b, -a, a, b with 0 < a < b <= 127.
constexpr int weight_limit(int bits) {
  return bits == 16 ? 32767 : bits == 8 ? 127 : bits == 4 ? 7 : 127;
}

/// Largest activation of `bits` bits after ReLU (smallest: 0). 16 bits means u15, since vpmaddwd is signed.
constexpr int activation_limit(int bits) {
  return bits == 16 ? 32767 : (1 << bits) - 1;
}

/// Smallest and largest value that a requantization may give.
struct QuantizedRange {
  int lowest;
  int highest;
};

/// Of an activation after ReLU.
constexpr QuantizedRange activation_range(int bits) {
  return {0, activation_limit(bits)};
}

/// Of a projection shortcut, the only signed tensor: s16 beside a u15 stream, s8 beside a u8 stream.
constexpr QuantizedRange shortcut_range(int residual_bits) {
  return residual_bits == 16 ? QuantizedRange{-32768, 32767} : QuantizedRange{-128, 127};
}

/// What surrounds the raw pixels of an image, red green blue: the rounded mean, so that the first convolution
/// needs neither padding nor a zero point. The image is copied into a buffer of (height + 2) x (width + 2)
/// x 3.
inline constexpr std::uint8_t kBorderPixel[3] = {124, 116, 104};

/// S[c] of a layer: real = accumulator * input_scale * weight_scale, in units of output_scale.
/// input_scale is 1 for the first convolution, output_scale is 1 for logits.
inline float requantize_scale(float input_scale, float weight_scale, float output_scale) {
  return static_cast<float>(static_cast<double>(input_scale) * static_cast<double>(weight_scale) /
                            static_cast<double>(output_scale));
}

/// B[c] of a layer, and the ratio s_r / s_out that a residual is multiplied with.
inline float scale_ratio(float numerator, float output_scale) {
  return static_cast<float>(static_cast<double>(numerator) / static_cast<double>(output_scale));
}

/// One rounding for s32; s64 sums stay below 2^53, so they too are rounded once.
inline float accumulator_to_float(std::int32_t accumulator) {
  return static_cast<float>(accumulator);
}
inline float accumulator_to_float(std::int64_t accumulator) {
  return static_cast<float>(static_cast<double>(accumulator));
}

/// y = float(acc) * S + B, two roundings.
template <typename Accumulator>
inline float scaled(Accumulator accumulator, float scale, float offset) {
  const float product = accumulator_to_float(accumulator) * scale;
  return product + offset;
}

/// Clamp, then round half to even; the limits are integers, so this equals rounding first.
inline int round_to_range(float y, QuantizedRange range) {
  const float clamped =
      std::min(std::max(y, static_cast<float>(range.lowest)), static_cast<float>(range.highest));
  return static_cast<int>(std::nearbyint(clamped));
}

/// q of a layer without residual. ReLU is the range's lowest value 0.
template <typename Accumulator>
inline int requantize(Accumulator accumulator, float scale, float offset, QuantizedRange range) {
  return round_to_range(scaled(accumulator, scale, offset), range);
}

/// q of a layer whose residual is added before the ReLU, by one fused multiply-add.
template <typename Accumulator>
inline int requantize(Accumulator accumulator, float scale, float offset, int residual, float residual_ratio,
                      QuantizedRange range) {
  return round_to_range(
      std::fma(static_cast<float>(residual), residual_ratio, scaled(accumulator, scale, offset)), range);
}

/// x of a block at 4 or 2 bits from the stream r; ratio = scale_ratio(s_stream, s_x). At 8 and 16 bits x is
/// r.
inline int derive_input(int stream, float ratio, int bits) {
  return round_to_range(static_cast<float>(stream) * ratio, activation_range(bits));
}

}  // namespace nibble
