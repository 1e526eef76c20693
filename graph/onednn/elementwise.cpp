#include "graph/onednn/elementwise.h"

#include "graph/onednn/elementwise_lanes8.h"
#include "graph/onednn/elementwise_loops.h"
#include "graph/onednn/elementwise_tables.h"
#include "kernels/cpu.h"

namespace nibble {

template <>
const ElementwiseLoops<float>& elementwise_baseline<float>() {
  return kLoops<float>;
}

template <>
const ElementwiseLoops<Bfloat16>& elementwise_baseline<Bfloat16>() {
  return kLoops<Bfloat16>;
}

template <>
const ElementwiseLoops<float>& elementwise_loops<float>() {
  if (has_avx512_bf16()) return elementwise_avx512_fp32();
  return has_avx2() ? elementwise_avx2_fp32() : kLoops<float>;
}

template <>
const ElementwiseLoops<Bfloat16>& elementwise_loops<Bfloat16>() {
  if (has_avx512_bf16()) return elementwise_avx512_bf16();
  return has_avx2() ? elementwise_avx2_bf16() : kLoops<Bfloat16>;
}

}  // namespace nibble
