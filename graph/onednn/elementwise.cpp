#include "graph/onednn/elementwise.h"

#include "graph/onednn/elementwise_loops.h"
#include "graph/onednn/elementwise_tables.h"

namespace nibble {

template <>
const ElementwiseLoops<float>& elementwise_loops<float>() {
  return __builtin_cpu_supports("avx2") ? elementwise_avx2_fp32() : kLoops<float>;
}

template <>
const ElementwiseLoops<Bfloat16>& elementwise_loops<Bfloat16>() {
  return __builtin_cpu_supports("avx2") ? elementwise_avx2_bf16() : kLoops<Bfloat16>;
}

}  // namespace nibble
