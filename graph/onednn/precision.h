#pragma once

namespace nibble {

/// What a float network stores its activations in and multiplies. Parameters, statistics, sums and logits
/// are FP32 in both.
enum class Precision {
  fp32,
  bf16  ///< needs a CPU with AVX512_BF16 (oneDNN's avx512_core_bf16)
};

/// Throws InputError "this CPU has no BF16 instructions ..." when `precision` is bf16 and oneDNN's effective
/// instruction set (the CPU's, or ONEDNN_MAX_CPU_ISA) has none.
void require_precision(Precision precision);

}  // namespace nibble
