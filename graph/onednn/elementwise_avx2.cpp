// Compiled with -mavx2 -mfma; called only on CPUs that have both.
#include "graph/onednn/elementwise_lanes8.h"
#include "graph/onednn/elementwise_loops.h"
#include "graph/onednn/elementwise_tables.h"

namespace nibble {

const ElementwiseLoops<float>& elementwise_avx2_fp32() {
  return kLoops<float>;
}
const ElementwiseLoops<Bfloat16>& elementwise_avx2_bf16() {
  return kLoops<Bfloat16>;
}

}  // namespace nibble
