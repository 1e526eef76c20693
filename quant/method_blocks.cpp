#include "quant/learned_methods.h"

namespace nibble {

/// Block reconstruction as in BRECQ (Li et al. 2021, arXiv:2102.05426), but a weight may move to any level:
/// it is learned through the rounding like the step sizes (Esser et al. 2019, arXiv:1902.08153).
QuantizedParameters quantize_blocks(const QuantizationTask& task) {
  LearnedNetwork learned(task.network, task.folded, quantize_nearest(task), Rounding::straight_through);
  return reconstruct_blocks(task, block_schedule(task.options), learned);
}

}  // namespace nibble
