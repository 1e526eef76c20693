// Compiled with -mavx2 -mfma; called only on CPUs that have both.
#include "graph/onednn/elementwise_lanes8.h"
#include "graph/onednn/fake_quantization_loops.h"

namespace nibble {

const QuantizationLoops<float>& quantization_avx2_fp32() {
  return kQuantizationLoops<float>;
}
const QuantizationLoops<Bfloat16>& quantization_avx2_bf16() {
  return kQuantizationLoops<Bfloat16>;
}

}  // namespace nibble
