#pragma once

// Output stage of the AVX-512 kernels: requantized bytes of up to 12 output channels become the next reader's
// format. Only files compiled for AVX-512 include this; everything has internal linkage, so that no other
// file can end up with these instructions.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels/convolution_kernel.h"

namespace nibble {
namespace {

inline constexpr int kLanes = 64;         ///< one register of bytes; what a kernel has at most
inline constexpr int kBlockChannels = 4;  ///< output channels computed together
/// Output channels whose bytes are collected before they are stored: whole groups of 2, 3 and 4.
inline constexpr int kTileChannels = 12;
inline constexpr int kTilePositions = 6;

/// Keeps a loaded register a register: the compiler would rather load the same bytes again for every use.
inline __m512i loaded_once(__m512i value) {
#if defined(__AVX512F__)  // not where the tests emulate the instructions
  asm("" : "+v"(value));
#endif
  return value;
}

/// What makes these four stays together, before what reads any of them: the CPU chooses the pipe that an
/// instruction waits for in program order, so that order matters.
inline void keep_together([[maybe_unused]] __m512i& a, [[maybe_unused]] __m512i& b,
                          [[maybe_unused]] __m512i& c, [[maybe_unused]] __m512i& d) {
#if defined(__AVX512F__)
  asm volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d));
#endif
}

inline __m512i load(const std::uint8_t* from) {
  return _mm512_loadu_si512(from);
}
inline void store(std::uint8_t* to, __m512i bytes) {
  _mm512_storeu_si512(to, bytes);
}

/// Bytes, one activation each, of consecutive output channels and positions.
struct ByteTile {
  alignas(64) std::uint8_t bytes[kTileChannels][kTilePositions][kLanes];

  /// lanes: 64, or the first 32: a load of more than was stored would have to wait for the cache.
  __m512i at(int channel, int position, int channels, int lanes) const {
    if (channel >= channels) return _mm512_setzero_si512();
    if (lanes == kLanes) return load(bytes[channel][position]);
    return _mm512_castsi256_si512(
        _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes[channel][position])));
  }
};

/// Formats that store_tile knows.
constexpr bool is_tile_format(const ActivationFormat& format) {
  return format == kPlanar8 || format == kIndex2 || format == kIndex3 || format == kQuads8;
}

/// Stores `channels` channels from `first_channel`, a multiple of 12, of positions first_position ...
/// Channels of the last group that do not exist become zero. lanes: 64, or the first 32. before: so many of
/// the first channels, a multiple of 4, belong to another call: what the output has of them is kept (64
/// lanes).
inline void store_tile(const OutputView& view, const ActivationFormat& format, int first_position,
                       int positions, int first_channel, int channels, const ByteTile& tile,
                       int lanes = kLanes, int before = 0) {
  const auto store_lanes = [lanes](std::uint8_t* to, __m512i bytes) {
    if (lanes == kLanes) return store(to, bytes);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(bytes));
  };
  for (int p = 0; p < positions; ++p) {
    for (int c = before - before % format.channels; c < channels; c += format.channels) {
      std::uint8_t* group = view.at(first_position + p, (first_channel + c) / format.channels);
      const auto at = [&](int channel) {
        return channel < before ? _mm512_setzero_si512() : tile.at(channel, p, channels, lanes);
      };
      const __m512i c0 = at(c);
      if (format == kPlanar8) {
        store_lanes(group, c0);
        continue;
      }
      const __m512i c1 = at(c + 1);
      if (format == kIndex2) {
        store_lanes(group, _mm512_or_si512(c0, _mm512_slli_epi16(c1, 2)));
        continue;
      }
      const __m512i c2 = at(c + 2);
      if (format == kIndex3) {
        const __m512i bytes =
            _mm512_or_si512(_mm512_or_si512(c0, _mm512_slli_epi16(c1, 2)), _mm512_slli_epi16(c2, 4));
        store_lanes(group, c < before ? _mm512_or_si512(bytes, load(group)) : bytes);
        continue;
      }
      // kQuads8. The unpacks work in 128-bit blocks: block b of quad[j] is lanes 16 b + 4 j .. 16 b + 4 j
      // + 3.
      const __m512i c3 = at(c + 3);
      const __m512i low01 = _mm512_unpacklo_epi8(c0, c1);
      const __m512i high01 = _mm512_unpackhi_epi8(c0, c1);
      const __m512i low23 = _mm512_unpacklo_epi8(c2, c3);
      const __m512i high23 = _mm512_unpackhi_epi8(c2, c3);
      const __m512i quad[4] = {_mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                               _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
      // A transpose of the 4 x 4 blocks.
      const __m512i even01 = _mm512_shuffle_i32x4(quad[0], quad[1], 0x88);  // 0: b0 b2, 1: b0 b2
      const __m512i even23 = _mm512_shuffle_i32x4(quad[2], quad[3], 0x88);
      const __m512i odd01 = _mm512_shuffle_i32x4(quad[0], quad[1], 0xDD);  // 0: b1 b3, 1: b1 b3
      const __m512i odd23 = _mm512_shuffle_i32x4(quad[2], quad[3], 0xDD);
      store(group, _mm512_shuffle_i32x4(even01, even23, 0x88));
      store(group + 64, _mm512_shuffle_i32x4(odd01, odd23, 0x88));
      if (lanes != kLanes) continue;
      store(group + 128, _mm512_shuffle_i32x4(even01, even23, 0xDD));
      store(group + 192, _mm512_shuffle_i32x4(odd01, odd23, 0xDD));
    }
  }
}

/// The thresholds of a derived input in registers. At 4 bits by the stream's upper half bytes: x is the upper
/// half's base, and one more for each of its cuts that the byte exceeds.
struct DerivedSteps {
  static constexpr int kCuts = 2;        ///< that any upper half may have
  static constexpr int kThresholds = 3;  ///< at 2 bits
  bool usable = false;                   ///< base and cuts
  __m512i thresholds[kThresholds] = {};
  __m512i base = _mm512_setzero_si512();
  __m512i cuts[kCuts] = {};

  explicit DerivedSteps(const OutputStage& stage) {
    if (stage.derived_bits == 2) {
      for (int t = 0; t < kThresholds; ++t) {
        thresholds[t] = _mm512_set1_epi8(static_cast<char>(stage.derived_thresholds[t]));
      }
    }
    if (stage.derived_bits != 4) return;
    constexpr int kHalves = 16;
    alignas(16) std::uint8_t bases[kHalves] = {};
    alignas(16) std::uint8_t limits[kCuts * kHalves];
    std::memset(limits, 255, sizeof limits);  // never exceeded
    int cut[kHalves] = {};
    for (int t = 0; t < 15; ++t) {
      const int half = stage.derived_thresholds[t] / kHalves;
      if (cut[half] >= kCuts) return;
      limits[cut[half]++ * kHalves + half] = stage.derived_thresholds[t];
      for (int above = half + 1; above < kHalves; ++above) ++bases[above];
    }
    const auto in_all_blocks = [](const std::uint8_t* table) {
      return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
    };
    base = in_all_blocks(bases);
    for (int number = 0; number < kCuts; ++number) cuts[number] = in_all_blocks(limits + number * kHalves);
    usable = true;
  }
};

/// 1 for each byte above the threshold's, else 0. Without a comparison, for the reason that
/// int2_avx512_vbmi.cpp gives at IndexTables.
inline __m512i exceeds(__m512i stream, __m512i threshold) {
  return _mm512_min_epu8(_mm512_subs_epu8(stream, threshold), _mm512_set1_epi8(1));
}

/// x at 2 or 4 bits from 64 bytes of the stream: how many thresholds are exceeded. Rarely needed.
[[gnu::noinline, maybe_unused]] __m512i derive(__m512i stream, const OutputStage& stage) {
  __m512i x = _mm512_setzero_si512();
  const int thresholds = (1 << stage.derived_bits) - 1;
  for (int t = 0; t < thresholds; ++t) {
    const __m512i threshold = _mm512_set1_epi8(static_cast<char>(stage.derived_thresholds[t]));
    x = _mm512_add_epi8(x, exceeds(stream, threshold));
  }
  return x;
}
/// The same by usable steps.
inline __m512i derive(__m512i stream, const DerivedSteps& steps) {
  const __m512i one = _mm512_set1_epi8(1);
  const __m512i half_byte = _mm512_set1_epi8(15);
  const __m512i upper = _mm512_and_si512(_mm512_srli_epi16(stream, 4), half_byte);
  __m512i x = _mm512_shuffle_epi8(steps.base, upper);
  for (const __m512i& cut : steps.cuts) {
    x = _mm512_mask_add_epi8(x, _mm512_cmpgt_epu8_mask(stream, _mm512_shuffle_epi8(cut, upper)), x, one);
  }
  return x;
}
inline __m512i derive(__m512i stream, const OutputStage& stage, const DerivedSteps& steps) {
  if (steps.usable) return derive(stream, steps);
  if (stage.derived_bits != 2) return derive(stream, stage);
  __m512i x = _mm512_setzero_si512();
  for (const __m512i& threshold : steps.thresholds) x = _mm512_add_epi8(x, exceeds(stream, threshold));
  return x;
}

/// Formats and ranges that the vector paths know; everything else goes through write_plainly().
inline bool is_common(const OutputStage& stage, const ActivationFormat& residual_format) {
  const bool range = (stage.range.lowest == 0 && stage.range.highest <= 255) ||
                     (stage.range.lowest == -128 && stage.range.highest == 127);
  return range && is_tile_format(stage.format) &&
         (!stage.has_residual() || stage.residual_format == residual_format) &&
         (stage.derived_bits == 0 || is_tile_format(stage.derived_format));
}

/// Requantizes one position of `channels` output channels, value by value, for any format: sums[k][lane].
inline void write_plainly(const OutputStage& stage, const ConvolutionCall& call, int position, int channel,
                          int channels, const std::int32_t (&sums)[kBlockChannels][kLanes],
                          int lanes = kLanes) {
  for (int lane = 0; lane < lanes; ++lane) {
    int q[kBlockChannels] = {};
    for (int k = 0; k < channels; ++k) {
      const float scale = stage.scale[channel + k];
      const float offset = stage.offset[channel + k];
      if (!stage.has_residual()) {
        q[k] = requantize(sums[k][lane], scale, offset, stage.range);
        continue;
      }
      int residual = load_activation(call.residual, stage.residual_format, position, channel + k, lane);
      if (stage.residual_signed) {
        const int sign = 1 << (stage.residual_format.bits - 1);
        residual = (residual ^ sign) - sign;
      }
      q[k] = requantize(sums[k][lane], scale, offset, residual, stage.residual_ratio, stage.range);
    }
    // Only now, since the output may lie where the residual was. Channels that do not exist become zero with
    // the first of their group.
    for (int k = 0; k < channels; ++k) {
      store_activation(call.output, stage.format, position, channel + k, lane, q[k]);
      if (stage.derived_bits != 0) {
        store_activation(call.derived, stage.derived_format, position, channel + k, lane,
                         derive_input(q[k], stage.derived_ratio, stage.derived_bits));
      }
    }
  }
}

}  // namespace
}  // namespace nibble
