// Compiled with AVX-512 F, BW, VL, DQ and BF16; called only on CPUs that have all of them.
#include "graph/onednn/elementwise_lanes16.h"
#include "graph/onednn/fake_quantization_loops.h"

namespace nibble {

const QuantizationLoops<float>& quantization_avx512_fp32() {
  return kQuantizationLoops<float>;
}
const QuantizationLoops<Bfloat16>& quantization_avx512_bf16() {
  return kQuantizationLoops<Bfloat16>;
}

}  // namespace nibble
