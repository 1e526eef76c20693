#include <immintrin.h>

#include "bench/peak_loop.h"
#include "bench/peak_runs.h"

namespace nibble {

void run_fp32_avx2(std::int64_t steps) {
  const __m256 a = _mm256_set1_ps(0.5F);
  const __m256 b = _mm256_set1_ps(0.25F);
  probe_loop(
      steps, _mm256_set1_ps(1.0F), [&](__m256 & sum) __attribute__((always_inline)) {
        asm volatile("vfmadd231ps %[b], %[a], %[sum]" : [sum] "+v"(sum) : [a] "v"(a), [b] "v"(b));
      });
}

void run_int16_avx2(std::int64_t steps) {
  const __m256i a = _mm256_set1_epi16(3);
  const __m256i b = _mm256_set1_epi16(5);
  probe_loop(
      steps, _mm256_setzero_si256(), [&](__m256i & product) __attribute__((always_inline)) {
        asm volatile("vpmaddwd %[b], %[a], %[product]" : [product] "=&v"(product) : [a] "v"(a), [b] "v"(b));
      });
}

void run_int8_avx2(std::int64_t steps) {
  const __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(5);
  const __m256i ones = _mm256_set1_epi16(1);
  probe_loop(
      steps, _mm256_setzero_si256(), [&](__m256i & product) __attribute__((always_inline)) {
        asm volatile("vpmaddubsw %[b], %[a], %[product]\n\tvpmaddwd %[ones], %[product], %[product]"
                     : [product] "=&v"(product)
                     : [a] "v"(a), [b] "v"(b), [ones] "v"(ones));
      });
}

void run_int4_avx2(std::int64_t steps) {
  const __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(5);
  probe_loop(
      steps, _mm256_setzero_si256(), [&](__m256i & product) __attribute__((always_inline)) {
        asm volatile("vpmaddubsw %[b], %[a], %[product]" : [product] "=&v"(product) : [a] "v"(a), [b] "v"(b));
      });
}

void run_int2_avx2(std::int64_t steps) {
  const __m256i table = _mm256_set1_epi8(5);
  const __m256i index = _mm256_set1_epi8(3);
  probe_loop(
      steps, _mm256_setzero_si256(), [&](__m256i & product) __attribute__((always_inline)) {
        asm volatile("vpshufb %[index], %[table], %[product]"
                     : [product] "=&v"(product)
                     : [table] "v"(table), [index] "v"(index));
      });
}

void run_int16_add_avx2(std::int64_t steps) {
  const __m256i a = _mm256_set1_epi16(3);
  const __m256i b = _mm256_set1_epi16(5);
  probe_loop(
      steps, _mm256_setzero_si256(), [&](__m256i & sum) __attribute__((always_inline)) {
        __m256i t;
        asm volatile("vpmaddwd %[b], %[a], %[t]\n\tvpaddd %[t], %[sum], %[sum]"
                     : [sum] "+v"(sum), [t] "=&v"(t)
                     : [a] "v"(a), [b] "v"(b));
      });
}

void run_int8_add_avx2(std::int64_t steps) {
  const __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(5);
  const __m256i ones = _mm256_set1_epi16(1);
  probe_loop(
      steps, _mm256_setzero_si256(), [&](__m256i & sum) __attribute__((always_inline)) {
        __m256i t;
        asm volatile(
            "vpmaddubsw %[b], %[a], %[t]\n\tvpmaddwd %[ones], %[t], %[t]\n\tvpaddd %[t], %[sum], %[sum]"
            : [sum] "+v"(sum), [t] "=&v"(t)
            : [a] "v"(a), [b] "v"(b), [ones] "v"(ones));
      });
}

void run_int4_add_avx2(std::int64_t steps) {
  const __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(5);
  probe_loop(
      steps, _mm256_setzero_si256(), [&](__m256i & sum) __attribute__((always_inline)) {
        __m256i t;
        asm volatile("vpmaddubsw %[b], %[a], %[t]\n\tvpaddw %[t], %[sum], %[sum]"
                     : [sum] "+v"(sum), [t] "=&v"(t)
                     : [a] "v"(a), [b] "v"(b));
      });
}

void run_int2_add_avx2(std::int64_t steps) {
  const __m256i table = _mm256_set1_epi8(5);
  const __m256i index = _mm256_set1_epi8(3);
  probe_loop(
      steps, _mm256_setzero_si256(), [&](__m256i & sum) __attribute__((always_inline)) {
        __m256i t;
        asm volatile("vpshufb %[index], %[table], %[t]\n\tvpaddusb %[t], %[sum], %[sum]"
                     : [sum] "+v"(sum), [t] "=&v"(t)
                     : [table] "v"(table), [index] "v"(index));
      });
}

}  // namespace nibble
