#pragma once

// What the AVX-512 VNNI kernels share: quads8 activations, vpdpbusd, and the requantization of sums of four
// channels. Only files compiled for AVX-512 VNNI include this; internal linkage.

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/output_avx512.h"

namespace nibble {
namespace {

inline constexpr int kParts = 2;  ///< registers of 16 lanes in a register block
inline constexpr int kPartLanes = 16;
inline constexpr int kKernelLanes = kParts * kPartLanes;  ///< tiles of 32 images fit the second-level cache
inline constexpr int kQuad = 4;                           ///< input channels of a step
inline constexpr int kPartBytes = kPartLanes * kQuad;
inline constexpr int kStepBytes = kBlockChannels * kQuad;

inline __m512i broadcast_quad(const std::uint8_t* weights) {
  std::int32_t quad = 0;
  std::memcpy(&quad, weights, sizeof quad);
  return loaded_once(_mm512_set1_epi32(quad));
}

/// any_quads: signed or not, as the stage says; one more instruction, and half of the code.
enum class Residual { none, unsigned_quads, signed_quads, any_quads, unsigned_planar, signed_planar };

constexpr bool is_quads(Residual residual) {
  return residual == Residual::unsigned_quads || residual == Residual::signed_quads ||
         residual == Residual::any_quads;
}

constexpr bool is_signed(Residual residual) {
  return residual == Residual::signed_quads || residual == Residual::signed_planar;
}

/// Where the residual of 16 lanes begins, part `part` of a position; nullptr without one. Planar: of channel
/// `channel`, the next ones follow after call.residual.group_stride bytes.
template <Residual residual>
inline const std::uint8_t* residual_of(const ConvolutionCall& call, int position, int part, int channel) {
  if constexpr (residual == Residual::none) return nullptr;
  if constexpr (is_quads(residual)) {
    return call.residual.at(position, channel / kQuad) + kPartBytes * part;
  }
  return call.residual.at(position, channel) + kPartLanes * part;
}

/// 16 lanes of channel K of a residual that begins at `from`, s32. quads: those of the block's four channels.
template <Residual residual, int K>
inline __m512i residual_lanes(const std::uint8_t* from, std::ptrdiff_t stride, __m512i quads) {
  if constexpr (residual == Residual::unsigned_quads || residual == Residual::any_quads) {
    // Byte K of each lane; an index of 0x80 gives zero.
    constexpr int kFirst = static_cast<int>(0x80808000U) + K;
    return _mm512_shuffle_epi8(quads, _mm512_set4_epi32(kFirst + 12, kFirst + 8, kFirst + 4, kFirst));
  } else if constexpr (residual == Residual::signed_quads) {
    return _mm512_srai_epi32(_mm512_slli_epi32(quads, 24 - 8 * K), 24);
  } else {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + K * stride));
    return is_signed(residual) ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes);
  }
}

/// The numbers of a block's four channels, in memory.
struct Requantization {
  const float* scale;
  const float* offset;
  float ratio;
  std::uint8_t highest;
  std::int8_t residual_bias;  ///< what any_quads adds to make a residual unsigned, and subtracts then

  Requantization(const OutputStage& stage, int channel)
      : scale(stage.scale + channel),
        offset(stage.offset + channel),
        ratio(stage.residual_ratio),
        highest(static_cast<std::uint8_t>(stage.range.highest)),
        residual_bias(stage.residual_signed ? std::numeric_limits<std::int8_t>::min() : std::int8_t{0}) {}

  /// Of four channels `channels` behind these.
  Requantization behind(int channels) const {
    Requantization moved = *this;
    moved.scale += channels;
    moved.offset += channels;
    return moved;
  }
};

/// Four channels of 16 lanes in bytes; in 128-bit block b the lanes 4 b .. 4 b + 3 of channel 0, of 1, 2, 3.
/// sum(k): 16 lanes of channel k, s32; residual_from: what residual_of() gives, `channels` channels of it.
template <Residual residual, bool is_signed_output, typename Sum>
inline __attribute__((always_inline)) __m512i requantized(const Requantization& to,
                                                          const std::uint8_t* residual_from,
                                                          std::ptrdiff_t residual_stride, int channels,
                                                          const Sum& sum) {
  __m512i quads = _mm512_setzero_si512();
  if constexpr (is_quads(residual)) quads = loaded_once(load(residual_from));
  // -128 as a byte changes the sign bit, which adds 128.
  if constexpr (residual == Residual::any_quads) {
    quads = _mm512_xor_si512(quads, _mm512_set1_epi8(to.residual_bias));
  }
  const auto quantized = [&]<int K>(std::integral_constant<int, K>) __attribute__((always_inline)) {
    __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum(K)), _mm512_set1_ps(to.scale[K]));
    y = _mm512_add_ps(y, _mm512_set1_ps(to.offset[K]));
    if constexpr (residual != Residual::none) {
      const bool planar = residual == Residual::unsigned_planar || residual == Residual::signed_planar;
      if (!planar || K < channels) {
        __m512i r = residual_lanes<residual, K>(residual_from, residual_stride, quads);
        if constexpr (residual == Residual::any_quads) {
          r = _mm512_add_epi32(r, _mm512_set1_epi32(to.residual_bias));
        }
        y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(r), _mm512_set1_ps(to.ratio), y);
      }
    }
    return _mm512_cvtps_epi32(y);  // the packs clamp
  };
  const __m512i words01 = _mm512_packs_epi32(quantized(std::integral_constant<int, 0>{}),
                                             quantized(std::integral_constant<int, 1>{}));
  const __m512i words23 = _mm512_packs_epi32(quantized(std::integral_constant<int, 2>{}),
                                             quantized(std::integral_constant<int, 3>{}));
  if constexpr (is_signed_output) {
    return _mm512_packs_epi16(words01, words23);
  } else {
    return _mm512_min_epu8(_mm512_packus_epi16(words01, words23),
                           _mm512_set1_epi8(static_cast<char>(to.highest)));
  }
}

/// What requantized() gives, as quads8.
inline __m512i to_quads(__m512i bytes) {
  return _mm512_shuffle_epi8(bytes, _mm512_set4_epi32(0x0F0B0703, 0x0E0A0602, 0x0D090501, 0x0C080400));
}

/// Stores what requantized() gives as `channels` planes `stride` bytes apart.
[[gnu::noinline, maybe_unused]] void store_planes(__m512i bytes, std::uint8_t* to, std::ptrdiff_t stride,
                                                  int channels) {
  // 128-bit block k: the lanes of channel k.
  alignas(64) std::uint8_t planes[kBlockChannels][kPartLanes];
  store(planes[0], _mm512_permutexvar_epi32(
                       _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes));
  for (int k = 0; k < channels; ++k) std::memcpy(to + k * stride, planes[k], kPartLanes);
}

/// Stores what requantized() gives as quads8 or, where `planar`, as `channels` planes `stride` bytes apart.
/// Returns the quads.
inline __m512i store_part(__m512i bytes, bool planar, std::uint8_t* to, std::ptrdiff_t stride, int channels) {
  const __m512i quads = to_quads(bytes);
  if (planar) {
    store_planes(bytes, to, stride, channels);
  } else {
    store(to, quads);
  }
  return quads;
}

/// choice.operator()<residual, is_signed_output, derives>() for what the output of this stage needs;
/// nullptr where it does not know the formats.
template <typename Write, typename Choice>
Write choose_by_stage(const OutputStage& stage, const Choice& choice) {
  const bool derives = stage.derived_bits != 0;
  if (stage.format != kQuads8 && stage.format != kPlanar8) return nullptr;
  if (!is_common(stage, kQuads8) || (derives && stage.derived_format != kQuads8)) return nullptr;
  if (stage.range.lowest < 0) {
    if (derives || stage.has_residual()) return nullptr;
    return choice.template operator()<Residual::none, true, false>();
  }
  if (!stage.has_residual()) {
    return derives ? choice.template operator()<Residual::none, false, true>()
                   : choice.template operator()<Residual::none, false, false>();
  }
  if (stage.residual_signed) {
    return derives ? choice.template operator()<Residual::signed_quads, false, true>()
                   : choice.template operator()<Residual::signed_quads, false, false>();
  }
  return derives ? choice.template operator()<Residual::unsigned_quads, false, true>()
                 : choice.template operator()<Residual::unsigned_quads, false, false>();
}

}  // namespace
}  // namespace nibble
