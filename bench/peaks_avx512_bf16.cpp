#include <immintrin.h>

#include "bench/peak_loop.h"
#include "bench/peak_runs.h"

namespace nibble {

void run_bf16_avx512_bf16(std::int64_t steps) {
  const __m512 a = _mm512_castsi512_ps(_mm512_set1_epi16(0x3f00));  // pairs of 0.5
  const __m512 b = _mm512_castsi512_ps(_mm512_set1_epi16(0x3e80));  // pairs of 0.25
  probe_loop(
      steps, _mm512_set1_ps(1.0F), [&](__m512 & sum) __attribute__((always_inline)) {
        asm volatile("vdpbf16ps %[b], %[a], %[sum]" : [sum] "+v"(sum) : [a] "v"(a), [b] "v"(b));
      });
}

}  // namespace nibble
