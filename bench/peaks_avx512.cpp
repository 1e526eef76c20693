#include <immintrin.h>

#include "bench/peak_loop.h"
#include "bench/peak_runs.h"

namespace nibble {

void run_fp32_avx512(std::int64_t steps) {
  const __m512 a = _mm512_set1_ps(0.5F);
  const __m512 b = _mm512_set1_ps(0.25F);
  probe_loop(
      steps, _mm512_set1_ps(1.0F), [&](__m512 & sum) __attribute__((always_inline)) {
        asm volatile("vfmadd231ps %[b], %[a], %[sum]" : [sum] "+v"(sum) : [a] "v"(a), [b] "v"(b));
      });
}

}  // namespace nibble
