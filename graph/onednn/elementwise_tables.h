#pragma once

#include "graph/onednn/elementwise.h"

namespace nibble {

/// The loops compiled with AVX2; callable only where the CPU has it.
const ElementwiseLoops<float>& elementwise_avx2_fp32();
const ElementwiseLoops<Bfloat16>& elementwise_avx2_bf16();

}  // namespace nibble
