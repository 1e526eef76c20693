#pragma once

// What the AVX2 kernels with register blocks share. Only files compiled for AVX2 include this.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/steps.h"

namespace nibble {
namespace {

/// Keeps a loaded register a register: the compiler would rather load the same bytes twice, and these loops
/// are bound by loads.
inline __m256i loaded_once(__m256i value) {
  asm("" : "+x"(value));
  return value;
}

// Register blocks of activations in dwords, a lane's channels of one group: 3 positions x 16 lanes x 2 output
// channels. 12 sums, 2 weights, 2 temporaries are the 16 registers, and 16 lanes are a whole cache line.
inline constexpr int kPositions = 3;
inline constexpr int kPair = 2;        ///< output channels
inline constexpr int kParts = 2;       ///< registers of 8 lanes
inline constexpr int kPartBytes = 32;  ///< of a register
inline constexpr int kBlockBytes = kParts * kPartBytes;
inline constexpr int kStepBytes = kPair * 4;  ///< weights of a step: one dword an output channel

inline __m256i broadcast_dword(const std::uint8_t* weights) {
  std::int32_t dword = 0;
  std::memcpy(&dword, weights, sizeof dword);
  return _mm256_set1_epi32(dword);
}

/// Adds up the runs of one register block. B: positions * kParts registers of one output channel; register b
/// is part b % kParts of position b / kParts. Arithmetic: loaded(activations),
/// multiply(activations, weights) and add_to(sum, product). finish(run, register, sum): registers of the
/// second output channel follow those of the first.
template <typename Arithmetic, std::size_t... B, typename Finish>
inline __attribute__((always_inline)) void accumulate_block(std::index_sequence<B...>,
                                                            const std::uint8_t* input, std::ptrdiff_t stride,
                                                            const Steps& steps, const std::uint8_t* weights,
                                                            Finish finish) {
  constexpr std::size_t kCount = sizeof...(B);
  const std::uint8_t* const position[kPositions] = {input, input + stride, input + 2 * stride};
  int number = 0;
  for (const Run& run : steps) {
    const std::uint8_t* of_step = weights + kStepBytes * run.weights;
    const std::int32_t* step = run.first;
    __m256i sums0[kCount];
    __m256i sums1[kCount];
    __m256i weights0 = broadcast_dword(of_step);
    __m256i weights1 = broadcast_dword(of_step + 4);
    const auto activations = [&](std::size_t b) __attribute__((always_inline)) {
      return Arithmetic::loaded(_mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(position[b / kParts] + *step + kPartBytes * (b % kParts))));
    };
    const auto begin = [&](std::size_t b) __attribute__((always_inline)) {
      const __m256i a = activations(b);
      sums0[b] = Arithmetic::multiply(a, weights0);
      sums1[b] = Arithmetic::multiply(a, weights1);
    };
    const auto add = [&](std::size_t b) __attribute__((always_inline)) {
      const __m256i a = activations(b);
      const __m256i product0 = Arithmetic::multiply(a, weights0);
      const __m256i product1 = Arithmetic::multiply(a, weights1);
      Arithmetic::add_to(sums0[b], product0);
      Arithmetic::add_to(sums1[b], product1);
    };
    const auto finish_all = [&]() __attribute__((always_inline)) {
      (finish(number, B, sums0[B]), ...);
      (finish(number, kCount + B, sums1[B]), ...);
    };
    (begin(B), ...);
    if (++step == run.last) {
      finish_all();  // apart from the others: where two ways meet, the compiler would copy all sums
    } else {
      do {
        of_step += kStepBytes;
        weights0 = broadcast_dword(of_step);
        weights1 = broadcast_dword(of_step + 4);
        (add(B), ...);
      } while (++step != run.last);
      finish_all();
    }
    ++number;
  }
}

}  // namespace
}  // namespace nibble
