#pragma once

// What the AVX2 kernels with register blocks share. Only files compiled for AVX2 include this.

#include <immintrin.h>

#include "kernels/steps.h"

namespace nibble {
namespace {

/// Keeps a loaded register a register: the compiler would rather load the same bytes twice, and these loops
/// are bound by loads.
inline __m256i loaded_once(__m256i value) {
  asm("" : "+x"(value));
  return value;
}

}  // namespace
}  // namespace nibble
