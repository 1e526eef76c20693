#include "graph/onednn/fake_quantization.h"

#include "graph/onednn/fake_quantization_loops.h"

namespace nibble {
namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace

template <>
const QuantizationLoops<float>& quantization_loops<float>() {
  return has_avx2() ? quantization_avx2_fp32() : kQuantizationLoops<float>;
}

template <>
const QuantizationLoops<Bfloat16>& quantization_loops<Bfloat16>() {
  return has_avx2() ? quantization_avx2_bf16() : kQuantizationLoops<Bfloat16>;
}

}  // namespace nibble
