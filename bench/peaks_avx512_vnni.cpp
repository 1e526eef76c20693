#include <immintrin.h>

#include "bench/peak_loop.h"
#include "bench/peak_runs.h"

namespace nibble {

void run_int8_avx512_vnni(std::int64_t steps) {
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(5);
  probe_loop(
      steps, _mm512_setzero_si512(), [&](__m512i & sum) __attribute__((always_inline)) {
        asm volatile("vpdpbusd %[b], %[a], %[sum]" : [sum] "+v"(sum) : [a] "v"(a), [b] "v"(b));
      });
}

}  // namespace nibble
