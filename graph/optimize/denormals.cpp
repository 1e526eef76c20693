#include "graph/optimize/denormals.h"

#include <pmmintrin.h>
#include <xmmintrin.h>

namespace nibble {

void flush_denormals() {
  // MXCSR belongs to a thread, so each thread of the pool sets its own.
#pragma omp parallel
  {
    _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);
    _MM_SET_DENORMALS_ZERO_MODE(_MM_DENORMALS_ZERO_ON);
  }
}

}  // namespace nibble
