#pragma once

// Output stage of the AVX2 kernels: sums of four output channels and 32 lanes become the next reader's bytes.
// Included only by files that are compiled for AVX2 and FMA; everything has internal linkage, so that no
// other file can end up with these instructions.

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/convolution_kernel.h"
#include "kernels/steps.h"

namespace nibble {
namespace {

inline constexpr int kLanes = 32;       ///< of a block: one register of bytes
inline constexpr int kOutputBlock = 4;  ///< output channels written together

/// Packs work in the 128-bit halves of a register: this undoes two of them, dword by dword.
inline __m256i join_halves(__m256i packed) {
  return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/// Four registers of eight s32 each, lanes in order, narrowed with unsigned (or signed) saturation.
inline __m256i pack_bytes(const __m256i (&q)[4], bool is_signed) {
  const __m256i low = _mm256_packs_epi32(q[0], q[1]);
  const __m256i high = _mm256_packs_epi32(q[2], q[3]);
  const __m256i bytes = is_signed ? _mm256_packs_epi16(low, high) : _mm256_packus_epi16(low, high);
  return join_halves(bytes);
}

/// Residuals of one channel, lanes 8 * part .. 8 * part + 7, as float.
inline __m256 load_residual(const OutputStage& stage, const InputView& view, std::ptrdiff_t position,
                            int channel, int part) {
  const std::uint8_t* group = view.at(position, channel / stage.residual_format.channels);
  __m256i value;
  if (stage.residual_format == kQuads8) {
    value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + 32 * part));
    const int byte = channel % 4;
    value = _mm256_sll_epi32(value, _mm_cvtsi32_si128(24 - 8 * byte));
    value = stage.residual_signed ? _mm256_srai_epi32(value, 24) : _mm256_srli_epi32(value, 24);
  } else {  // kPlanar8
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(group + 8 * part));
    value = stage.residual_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
  }
  return _mm256_cvtepi32_ps(value);
}

/// Stores 32 bytes a channel for the channels `channel` .. channel + 3 in a format that AVX2 kernels read,
/// which ConvolutionKernel::writes() promises. `channels` of them exist; absent channels' bytes are zero.
inline void store_block(const OutputView& view, const ActivationFormat& format, std::ptrdiff_t position,
                        int channel, int channels, const __m256i (&bytes)[kOutputBlock]) {
  std::uint8_t* group = view.at(position, channel / format.channels);
  const auto store = [](std::uint8_t* to, __m256i value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
  };
  if (format == kPlanar8) {
    for (int k = 0; k < channels; ++k) store(group + k * view.group_stride, bytes[k]);
    return;
  }
  if (format == kIndex2) {
    store(group, _mm256_or_si256(bytes[0], _mm256_slli_epi16(bytes[1], 2)));
    if (channels > 2) {
      store(group + view.group_stride, _mm256_or_si256(bytes[2], _mm256_slli_epi16(bytes[3], 2)));
    }
    return;
  }
  // Interleaved within 128-bit halves: L0 c0 c1, L1 c0 c1, ... of lanes 0-7 | 16-23 and 8-15 | 24-31.
  const __m256i low01 = _mm256_unpacklo_epi8(bytes[0], bytes[1]);
  const __m256i high01 = _mm256_unpackhi_epi8(bytes[0], bytes[1]);
  const __m256i low23 = _mm256_unpacklo_epi8(bytes[2], bytes[3]);
  const __m256i high23 = _mm256_unpackhi_epi8(bytes[2], bytes[3]);
  // kQuads8: lanes 0-3 | 16-19, 4-7 | 20-23, 8-11 | 24-27, 12-15 | 28-31.
  const __m256i lanes0 = _mm256_unpacklo_epi16(low01, low23);
  const __m256i lanes4 = _mm256_unpackhi_epi16(low01, low23);
  const __m256i lanes8 = _mm256_unpacklo_epi16(high01, high23);
  const __m256i lanes12 = _mm256_unpackhi_epi16(high01, high23);
  store(group, _mm256_permute2x128_si256(lanes0, lanes4, 0x20));
  store(group + 32, _mm256_permute2x128_si256(lanes8, lanes12, 0x20));
  store(group + 64, _mm256_permute2x128_si256(lanes0, lanes4, 0x31));
  store(group + 96, _mm256_permute2x128_si256(lanes8, lanes12, 0x31));
}

/// x at 2 bits from 32 bytes of the stream: 3 minus how many thresholds are not exceeded.
inline __m256i derive_two_bits(__m256i stream, const std::uint8_t* thresholds) {
  __m256i x = _mm256_set1_epi8(3);
  for (int k = 0; k < 3; ++k) {
    const __m256i threshold = _mm256_set1_epi8(static_cast<char>(thresholds[k]));
    x = _mm256_add_epi8(x, _mm256_cmpeq_epi8(_mm256_max_epu8(stream, threshold), threshold));
  }
  return x;
}

/// Requantizes and stores sums[k][part]: output channel `channel` + k, lanes 8 * part .. 8 * part + 7. The
/// rounding mode must be nearest, the default. Channels from call.last_channel on are stored as zero.
inline void write_outputs(const OutputStage& stage, const ConvolutionCall& call, std::ptrdiff_t position,
                          int channel, const __m256i (&sums)[kOutputBlock][4]) {
  const int channels =
      call.last_channel - channel < kOutputBlock ? call.last_channel - channel : kOutputBlock;
  const __m256 lowest = _mm256_set1_ps(static_cast<float>(stage.range.lowest));
  const __m256 highest = _mm256_set1_ps(static_cast<float>(stage.range.highest));
  __m256i bytes[kOutputBlock];
  __m256i derived[kOutputBlock];
  for (int k = 0; k < kOutputBlock; ++k) {
    bytes[k] = _mm256_setzero_si256();
    derived[k] = _mm256_setzero_si256();
    if (k >= channels) continue;
    const __m256 scale = _mm256_broadcast_ss(stage.scale + channel + k);
    const __m256 offset = _mm256_broadcast_ss(stage.offset + channel + k);
    __m256i q[4];
    for (int part = 0; part < 4; ++part) {
      __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[k][part]), scale);
      y = _mm256_add_ps(y, offset);
      if (stage.has_residual()) {
        y = _mm256_fmadd_ps(load_residual(stage, call.residual, position, channel + k, part),
                            _mm256_set1_ps(stage.residual_ratio), y);
      }
      q[part] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(y, lowest), highest));
    }
    bytes[k] = pack_bytes(q, stage.range.lowest < 0);
    if (stage.derived_bits == 4) {
      const __m256 ratio = _mm256_set1_ps(stage.derived_ratio);
      const __m256 limit = _mm256_set1_ps(15.0F);
      for (__m256i& value : q) {
        value = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(value), ratio), limit));
      }
      derived[k] = pack_bytes(q, false);
    } else if (stage.derived_bits == 2) {
      derived[k] = derive_two_bits(bytes[k], stage.derived_thresholds);
    }
  }
  store_block(call.output, stage.format, position, channel, channels, bytes);
  if (stage.derived_bits != 0) {
    store_block(call.derived, stage.derived_format, position, channel, channels, derived);
  }
}

/// The next block's input as a function of 32 bytes of the stream.
class DerivedInput {
 public:
  explicit DerivedInput(const OutputStage& stage) : bits_(stage.derived_bits) {
    if (bits_ == 4) {
      alignas(32) std::uint8_t flipped[4][16] = {};  // comparisons are signed
      for (int k = 0; k < 15; ++k) {
        flipped[0][k] = static_cast<std::uint8_t>(stage.derived_thresholds[k] ^ 0x80);
      }
      for (int k = 0; k < 14; ++k) flipped[1][k] = flipped[0][k + 1];
      for (int k = 0; k < 12; ++k) flipped[2][k] = flipped[0][k + 3];
      for (int level = 0; level < 3; ++level) {
        table_[level] =
            _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(flipped[level])));
      }
      middle_ = _mm256_set1_epi8(static_cast<char>(flipped[0][7]));
    } else if (bits_ == 2) {
      for (int k = 0; k < 3; ++k) {
        table_[k] = _mm256_set1_epi8(static_cast<char>(stage.derived_thresholds[k] ^ 0x80));
      }
    }
  }

  int bits() const { return bits_; }  ///< 0: none

  /// How many of 15 ascending thresholds are exceeded, by bisection with table look-ups.
  __m256i four_bits(__m256i stream) const {
    const __m256i value = _mm256_xor_si256(stream, _mm256_set1_epi8(-128));
    // x is known but for its lowest 3, 2, 1, 0 bits; table_[level][x] is the threshold of the next bit.
    __m256i x = _mm256_and_si256(_mm256_cmpgt_epi8(value, middle_), _mm256_set1_epi8(8));
    x = _mm256_or_si256(x, _mm256_and_si256(_mm256_cmpgt_epi8(value, _mm256_shuffle_epi8(table_[2], x)),
                                            _mm256_set1_epi8(4)));
    x = _mm256_or_si256(x, _mm256_and_si256(_mm256_cmpgt_epi8(value, _mm256_shuffle_epi8(table_[1], x)),
                                            _mm256_set1_epi8(2)));
    return _mm256_sub_epi8(x, _mm256_cmpgt_epi8(value, _mm256_shuffle_epi8(table_[0], x)));
  }

  /// How many of three thresholds are exceeded.
  __m256i two_bits(__m256i stream) const {
    const __m256i value = _mm256_xor_si256(stream, _mm256_set1_epi8(-128));
    const __m256i minus_x = _mm256_add_epi8(
        _mm256_add_epi8(_mm256_cmpgt_epi8(value, table_[0]), _mm256_cmpgt_epi8(value, table_[1])),
        _mm256_cmpgt_epi8(value, table_[2]));
    return _mm256_sub_epi8(_mm256_setzero_si256(), minus_x);
  }

 private:
  int bits_;
  __m256i table_[3];  ///< 4 bits: [level][x], threshold number x + 2^level - 1; 2 bits: the thresholds
  __m256i middle_;
};

enum class Residual { none, unsigned8, signed8 };

/// Of the output and the residual.
enum class Layout { quads, planar, planar_beside_quads };

/// Whether ByteWriter can write what the stage wants of sums up to `largest_sum` in magnitude.
inline bool has_byte_form(const OutputStage& stage, const ConvolutionCall& call, float largest_sum) {
  return stays_convertible(stage, call, largest_sum) &&
         (stage.range.lowest >= 0 ||
          (stage.range.lowest == -128 && stage.range.highest == 127 && !stage.has_residual())) &&
         stage.range.highest <= 255 && (stage.format == kQuads8 || stage.format == kPlanar8) &&
         (!stage.has_residual() || stage.residual_format == kQuads8 ||
          stage.residual_format == stage.format) &&
         (stage.derived_bits == 0 || (stage.derived_bits == 4 && stage.derived_format == kQuads8) ||
          (stage.derived_bits == 2 && stage.derived_format == kIndex2));
}

/// Writes bytes of four output channels, eight lanes at a time, with or without a residual and the next
/// block's 4-bit (quads8) or 2-bit (index2) x. Everything that the stores could change, as far as the
/// compiler knows, is copied first.
template <Layout layout, Residual residual, bool is_signed>
class ByteWriter {
  static constexpr bool kQuadOutput = layout == Layout::quads;
  static constexpr bool kQuadResidual = layout != Layout::planar;

 public:
  /// Sums are `times` what they should be, a power of two. `derived` must outlive this.
  ByteWriter(const OutputStage& stage, const ConvolutionCall& call, int channel, std::ptrdiff_t position,
             const DerivedInput& derived, float times = 1.0F)
      : derived_(derived),
        highest_(_mm256_set1_epi8(static_cast<char>(stage.range.highest))),
        channels_(std::min(kOutputBlock, call.last_channel - channel)),
        output_stride_(call.output.position_stride),
        residual_stride_(call.residual.position_stride),
        derived_stride_(call.derived.position_stride),
        derived_group_(channels_ > 2 ? call.derived.group_stride : 0) {
    for (int k = 0; k < kOutputBlock; ++k) {
      scale_[k] = _mm256_set1_ps(stage.scale[channel + k] / times);
      offset_[k] = _mm256_broadcast_ss(stage.offset + channel + k);
      // Channels that do not exist have scale, offset and ratio 0 and read another's residual.
      ratio_[k] = _mm256_set1_ps(k < channels_ ? stage.residual_ratio * kResidualUnit : 0.0F);
      const int existing = channel + (k < channels_ ? k : 0);
      output_[k] = call.output.at(position, kQuadOutput ? channel / 4 : existing);
      if constexpr (residual != Residual::none) {
        residual_[k] = call.residual.at(position, kQuadResidual ? channel / 4 : existing);
      }
    }
    if (derived.bits() != 0) derived_to_ = call.derived.at(position, channel / stage.derived_format.channels);
  }

  /// sum(k): s32 of output channel `channel` + k, lanes 8 * part .. 8 * part + 7, `position` positions after
  /// the first.
  template <typename Sum>
  __attribute__((always_inline)) void write(std::ptrdiff_t position, int part, Sum sum) const {
    // The packs leave, in each half, four lanes of channel 0, four of channel 1, ...
    const __m256i transpose = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                               0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const std::ptrdiff_t lanes = kQuadOutput ? 32 * part : 8 * part;
    const std::ptrdiff_t residual_at = position * residual_stride_ + (kQuadResidual ? 32 * part : 8 * part);
    __m256i residuals = _mm256_setzero_si256();
    if constexpr (residual != Residual::none && kQuadResidual) {
      residuals = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(residual_[0] + residual_at));
    }
    const auto residual_of = [&](int k) __attribute__((always_inline)) {
      if constexpr (kQuadResidual) {
        // Unsigned bytes move to the lowest byte of their dwords, signed ones to the highest.
        return _mm256_shuffle_epi8(residuals, residual_bytes(k));
      } else {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(residual_[k] + residual_at));
        return residual == Residual::signed8 ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
      }
    };
    const auto quantized = [&](int k) __attribute__((always_inline)) {
      __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(sum(k)), scale_[k]);
      y = _mm256_add_ps(y, offset_[k]);
      if constexpr (residual != Residual::none) {
        y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(residual_of(k)), ratio_[k], y);
      }
      return _mm256_cvtps_epi32(y);  // the packs clamp
    };
    const __m256i low = _mm256_packs_epi32(quantized(0), quantized(1));
    const __m256i high = _mm256_packs_epi32(quantized(2), quantized(3));
    const __m256i packed =
        is_signed ? _mm256_packs_epi16(low, high) : _mm256_min_epu8(_mm256_packus_epi16(low, high), highest_);
    if constexpr (kQuadOutput) {
      store(output_[0] + position * output_stride_ + lanes, _mm256_shuffle_epi8(packed, transpose));
    } else {
      const __m256i planes = join_halves(packed);
      const __m128i low_planes = _mm256_castsi256_si128(planes);
      const __m128i high_planes = _mm256_extracti128_si256(planes, 1);
      const auto store_plane = [&](int k, __m128i plane) __attribute__((always_inline)) {
        if (k < channels_) store_half(output_[k] + position * output_stride_ + lanes, plane);
      };
      store_plane(0, low_planes);
      store_plane(1, _mm_unpackhi_epi64(low_planes, low_planes));
      store_plane(2, high_planes);
      store_plane(3, _mm_unpackhi_epi64(high_planes, high_planes));
    }
    if (derived_.bits() == 4) {
      store(derived_to_ + position * derived_stride_ + 32 * part,
            _mm256_shuffle_epi8(derived_.four_bits(packed), transpose));
    } else if (derived_.bits() == 2) {
      // The dwords 0 and 2 of each half become c0 | c1 << 2 and c2 | c3 << 2 of four lanes.
      const __m256i x = derived_.two_bits(packed);
      const __m256i index = join_halves(_mm256_or_si256(x, _mm256_srli_epi64(x, 30)));
      std::uint8_t* to = derived_to_ + position * derived_stride_ + 8 * part;
      store_half(to, _mm256_castsi256_si128(index));
      if (channels_ > 2) store_half(to + derived_group_, _mm256_extracti128_si256(index, 1));
    }
  }

 private:
  /// What a residual is multiplied with beside the ratio, exactly: signed bytes of quads are converted from
  /// the top of their dwords.
  static constexpr float kResidualUnit =
      kQuadResidual && residual == Residual::signed8 ? 1.0F / (1 << 24) : 1.0F;

  /// Moves byte k of each dword to the bottom, or signed ones to the top; the others become zero.
  static __m256i residual_bytes(int k) {
    const auto mask = [&](int dword) {
      const int byte = 4 * dword + k;
      return residual == Residual::signed8 ? byte << 24 | 0x808080 : static_cast<int>(0x80808000U) | byte;
    };
    const int masks[4] = {mask(0), mask(1), mask(2), mask(3)};
    return _mm256_setr_epi32(masks[0], masks[1], masks[2], masks[3], masks[0], masks[1], masks[2], masks[3]);
  }

  static void store(std::uint8_t* to, __m256i value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
  }
  static void store_half(std::uint8_t* to, __m128i value) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), value);
  }

  const DerivedInput& derived_;
  __m256i highest_;
  __m256 scale_[kOutputBlock];
  __m256 offset_[kOutputBlock];
  __m256 ratio_[kOutputBlock];
  const std::uint8_t* residual_[kOutputBlock] = {};
  std::uint8_t* output_[kOutputBlock];
  std::uint8_t* derived_to_ = nullptr;
  int channels_;
  std::ptrdiff_t output_stride_;
  std::ptrdiff_t residual_stride_;
  std::ptrdiff_t derived_stride_;
  std::ptrdiff_t derived_group_;
};

/// choose(a null pointer to the stage's ByteWriter); has_byte_form() said so.
template <Layout layout, typename Choose>
auto choose_byte_writer(const OutputStage& stage, Choose choose) {
  if (stage.range.lowest < 0) {
    return choose(static_cast<ByteWriter<layout, Residual::none, true>*>(nullptr));
  }
  if (!stage.has_residual()) return choose(static_cast<ByteWriter<layout, Residual::none, false>*>(nullptr));
  return stage.residual_signed
             ? choose(static_cast<ByteWriter<layout, Residual::signed8, false>*>(nullptr))
             : choose(static_cast<ByteWriter<layout, Residual::unsigned8, false>*>(nullptr));
}

template <typename Choose>
auto choose_byte_writer(const OutputStage& stage, Choose choose) {
  if (stage.format == kQuads8) return choose_byte_writer<Layout::quads>(stage, choose);
  return stage.residual_format == kQuads8 ? choose_byte_writer<Layout::planar_beside_quads>(stage, choose)
                                          : choose_byte_writer<Layout::planar>(stage, choose);
}

}  // namespace
}  // namespace nibble
