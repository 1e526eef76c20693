#pragma once

// Output stage of the AVX2 kernels: sums of four output channels and 32 lanes become the next reader's bytes.
// Included only by files that are compiled for AVX2 and FMA; everything has internal linkage, so that no
// other file can end up with these instructions.

#include <immintrin.h>

#include "kernels/convolution_kernel.h"

namespace nibble {
namespace {

inline constexpr int kLanes = 32;       ///< of a block: one register of bytes
inline constexpr int kOutputBlock = 4;  ///< output channels written together

/// Four registers of eight s32 each, lanes in order, narrowed with unsigned (or signed) saturation.
inline __m256i pack_bytes(const __m256i (&q)[4], bool is_signed) {
  const __m256i low = _mm256_packs_epi32(q[0], q[1]);
  const __m256i high = _mm256_packs_epi32(q[2], q[3]);
  const __m256i bytes = is_signed ? _mm256_packs_epi16(low, high) : _mm256_packus_epi16(low, high);
  // The packs work in 128-bit halves: undo that.
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
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
  } else if (stage.residual_format == kPairs8) {
    const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(group + 16 * part));
    value = _mm256_sll_epi32(_mm256_cvtepu16_epi32(pairs), _mm_cvtsi32_si128(24 - 8 * (channel % 2)));
    value = stage.residual_signed ? _mm256_srai_epi32(value, 24) : _mm256_srli_epi32(value, 24);
  } else {  // kPlanar8
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(group + 8 * part));
    value = stage.residual_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
  }
  return _mm256_cvtepi32_ps(value);
}

/// Stores 32 bytes a channel for the channels `channel` .. channel + 3 in any format that AVX2 kernels read.
/// `channels` of them exist; absent channels' bytes are zero.
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
  if (format == kPairs8) {
    store(group, _mm256_permute2x128_si256(low01, high01, 0x20));
    store(group + 32, _mm256_permute2x128_si256(low01, high01, 0x31));
    if (channels > 2) {
      group += view.group_stride;
      store(group, _mm256_permute2x128_si256(low23, high23, 0x20));
      store(group + 32, _mm256_permute2x128_si256(low23, high23, 0x31));
    }
    return;
  }
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

/// write_outputs() where output and residual (if any) are quads8 and nothing is derived: four channels of a
/// lane meet in one 32-bit lane without crossing the register's halves. The stream of an 8-bit network.
template <bool has_residual>
inline void write_quads(const OutputStage& stage, const ConvolutionCall& call, std::ptrdiff_t position,
                        int channel, int channels, const __m256i (&sums)[kOutputBlock][4]) {
  // The packs leave, in each half, four lanes of channel 0, four of channel 1, ...
  const __m256i transpose = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                             0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m256 lowest = _mm256_set1_ps(static_cast<float>(stage.range.lowest));
  const __m256 highest = _mm256_set1_ps(static_cast<float>(stage.range.highest));
  const __m256 ratio = _mm256_set1_ps(stage.residual_ratio);
  const bool is_signed = stage.range.lowest < 0;
  // Scales and offsets are padded; channels that do not exist are masked away.
  const __m256i exist = _mm256_set1_epi32(static_cast<int>(0xFFFFFFFFU >> (8 * (kOutputBlock - channels))));
  std::uint8_t* output = call.output.at(position, channel / 4);
  for (int part = 0; part < 4; ++part) {
    __m256i residuals = _mm256_setzero_si256();
    if constexpr (has_residual) {
      const std::uint8_t* group = call.residual.at(position, channel / 4);
      residuals = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + 32 * part));
    }
    __m256i q[kOutputBlock];
    for (int k = 0; k < kOutputBlock; ++k) {
      __m256 y =
          _mm256_mul_ps(_mm256_cvtepi32_ps(sums[k][part]), _mm256_broadcast_ss(stage.scale + channel + k));
      y = _mm256_add_ps(y, _mm256_broadcast_ss(stage.offset + channel + k));
      if constexpr (has_residual) {
        const __m256i top = _mm256_slli_epi32(residuals, 24 - 8 * k);
        const __m256i r = stage.residual_signed ? _mm256_srai_epi32(top, 24) : _mm256_srli_epi32(top, 24);
        y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(r), ratio, y);
      }
      q[k] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(y, lowest), highest));
    }
    const __m256i low = _mm256_packs_epi32(q[0], q[1]);
    const __m256i high = _mm256_packs_epi32(q[2], q[3]);
    const __m256i bytes = is_signed ? _mm256_packs_epi16(low, high) : _mm256_packus_epi16(low, high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(output + 32 * part),
                        _mm256_and_si256(_mm256_shuffle_epi8(bytes, transpose), exist));
  }
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

/// The same for sums that are proved to fit 16 bits, lanes 16 * half .. 16 * half + 15, by integer
/// thresholds: stage.thresholds is set.
inline void write_outputs_by_thresholds(const OutputStage& stage, const ConvolutionCall& call,
                                        std::ptrdiff_t position, int channel,
                                        const __m256i (&sums)[kOutputBlock][2]) {
  const int channels =
      call.last_channel - channel < kOutputBlock ? call.last_channel - channel : kOutputBlock;
  __m256i bytes[kOutputBlock];
  for (int k = 0; k < kOutputBlock; ++k) {
    bytes[k] = _mm256_setzero_si256();
    if (k >= channels) continue;
    const __m256i t1 = _mm256_set1_epi16(stage.thresholds[channel + k]);
    const __m256i t2 = _mm256_set1_epi16(stage.thresholds[stage.padded_channels + channel + k]);
    const __m256i t3 = _mm256_set1_epi16(stage.thresholds[2 * stage.padded_channels + channel + k]);
    __m256i q[2];
    for (int half = 0; half < 2; ++half) {
      const __m256i sum = sums[k][half];
      q[half] = _mm256_add_epi16(_mm256_add_epi16(_mm256_cmpgt_epi16(sum, t1), _mm256_cmpgt_epi16(sum, t2)),
                                 _mm256_cmpgt_epi16(sum, t3));
    }
    const __m256i negative = _mm256_permute4x64_epi64(_mm256_packs_epi16(q[0], q[1]), 0xD8);
    bytes[k] = _mm256_sub_epi8(_mm256_setzero_si256(), negative);
  }
  store_block(call.output, stage.format, position, channel, channels, bytes);
}

}  // namespace
}  // namespace nibble
