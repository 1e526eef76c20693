#include "graph/onednn/fake_quantization.h"

#include "graph/onednn/elementwise_lanes8.h"
#include "graph/onednn/fake_quantization_loops.h"
#include "kernels/cpu.h"

namespace nibble {

template <>
const QuantizationLoops<float>& quantization_loops<float>() {
  if (has_avx512_bf16()) return quantization_avx512_fp32();
  return has_avx2() ? quantization_avx2_fp32() : kQuantizationLoops<float>;
}

template <>
const QuantizationLoops<Bfloat16>& quantization_loops<Bfloat16>() {
  if (has_avx512_bf16()) return quantization_avx512_bf16();
  return has_avx2() ? quantization_avx2_bf16() : kQuantizationLoops<Bfloat16>;
}

}  // namespace nibble
