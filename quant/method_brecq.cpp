#include "quant/learned_methods.h"

namespace nibble {

/// Block reconstruction (BRECQ, Li et al. 2021, arXiv:2102.05426): after nearest rounding each residual block
/// learns, with the quantized network before it as its input, whether each weight goes up or down (AdaRound,
/// Nagel et al. 2020, arXiv:2004.10568), and its scales and biases. A block's error is a plain mean of
/// squares, without the paper's weighting by the Fisher information.
QuantizedParameters quantize_brecq(const QuantizationTask& task) {
  LearnedNetwork learned(task.network, task.folded, quantize_nearest(task), Rounding::adaptive);
  return reconstruct_blocks(task, adaptive_schedule(task.options), learned);
}

}  // namespace nibble
