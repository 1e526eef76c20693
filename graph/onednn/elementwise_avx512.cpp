// Compiled with AVX-512 F, BW, VL, DQ and BF16; called only on CPUs that have all of them.
#include "graph/onednn/elementwise_lanes16.h"
#include "graph/onednn/elementwise_loops.h"
#include "graph/onednn/elementwise_tables.h"

namespace nibble {

const ElementwiseLoops<float>& elementwise_avx512_fp32() {
  return kLoops<float>;
}
const ElementwiseLoops<Bfloat16>& elementwise_avx512_bf16() {
  return kLoops<Bfloat16>;
}

}  // namespace nibble
