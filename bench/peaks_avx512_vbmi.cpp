#include <immintrin.h>

#include "bench/peak_loop.h"
#include "bench/peak_runs.h"

namespace nibble {

void run_int2_avx512_vbmi(std::int64_t steps) {
  const __m512i table = _mm512_set1_epi8(5);
  const __m512i index = _mm512_set1_epi8(3);
  probe_loop(
      steps, _mm512_setzero_si512(), [&](__m512i & product) __attribute__((always_inline)) {
        asm volatile("vpermb %[table], %[index], %[product]"
                     : [product] "=&v"(product)
                     : [table] "v"(table), [index] "v"(index));
      });
}

void run_int2_add_avx512_vbmi(std::int64_t steps) {
  const __m512i table = _mm512_set1_epi8(5);
  const __m512i index = _mm512_set1_epi8(3);
  probe_loop(
      steps, _mm512_setzero_si512(), [&](__m512i & sum) __attribute__((always_inline)) {
        __m512i t;
        asm volatile("vpermb %[table], %[index], %[t]\n\tvpaddusb %[t], %[sum], %[sum]"
                     : [sum] "+v"(sum), [t] "=&v"(t)
                     : [table] "v"(table), [index] "v"(index));
      });
}

// vpermt2b overwrites its first table, vpermi2b the index: whichever is used, a kernel keeps one copy, here
// by a move that register renaming does for nothing.
void run_table128_avx512_vbmi(std::int64_t steps) {
  const __m512i low = _mm512_set1_epi8(5);
  const __m512i high = _mm512_set1_epi8(7);
  const __m512i index = _mm512_set1_epi8(3);
  probe_loop(
      steps, _mm512_setzero_si512(), [&](__m512i & product) __attribute__((always_inline)) {
        asm volatile("vmovdqa64 %[index], %[product]\n\tvpermi2b %[high], %[low], %[product]"
                     : [product] "=&v"(product)
                     : [low] "v"(low), [high] "v"(high), [index] "v"(index));
      });
}

void run_table128_add_avx512_vbmi(std::int64_t steps) {
  const __m512i low = _mm512_set1_epi8(5);
  const __m512i high = _mm512_set1_epi8(7);
  const __m512i index = _mm512_set1_epi8(3);
  probe_loop(
      steps, _mm512_setzero_si512(), [&](__m512i & sum) __attribute__((always_inline)) {
        __m512i t;
        asm volatile(
            "vmovdqa64 %[index], %[t]\n\tvpermi2b %[high], %[low], %[t]\n\tvpaddusb %[t], %[sum], %[sum]"
            : [sum] "+v"(sum), [t] "=&v"(t)
            : [low] "v"(low), [high] "v"(high), [index] "v"(index));
      });
}

}  // namespace nibble
