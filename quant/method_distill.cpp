#include "quant/learned_methods.h"

namespace nibble {

/// The method `blocks`, then all blocks and the linear layer together learn from the FP32 network's logits
/// and block outputs on the calibration images, without labels (Hinton et al. 2015, arXiv:1503.02531).
QuantizedParameters quantize_distill(const QuantizationTask& task) {
  LearnedNetwork learned(task.network, task.folded, quantize_nearest(task), Rounding::straight_through);
  reconstruct_blocks(task, block_schedule(task.options), learned);
  return distill(task, distillation_schedule(task.options), learned);
}

}  // namespace nibble
