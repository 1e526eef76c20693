#pragma once

#include "graph/onednn/elementwise.h"

namespace nibble {

/// The loops compiled for any CPU of the architecture.
template <typename T>
const ElementwiseLoops<T>& elementwise_baseline();

/// The loops compiled with AVX2; callable only where the CPU has it and FMA.
const ElementwiseLoops<float>& elementwise_avx2_fp32();
const ElementwiseLoops<Bfloat16>& elementwise_avx2_bf16();
/// With AVX-512 F, BW, VL, DQ and BF16.
const ElementwiseLoops<float>& elementwise_avx512_fp32();
const ElementwiseLoops<Bfloat16>& elementwise_avx512_bf16();

}  // namespace nibble
