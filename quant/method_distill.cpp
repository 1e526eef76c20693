#include "quant/learned_methods.h"

namespace nibble {

/// The method `blocks`, then all blocks and the linear layer together learn from the FP32 network's logits
/// and block outputs on the calibration images, without labels (Hinton et al. 2015, arXiv:1503.02531).
QuantizedParameters quantize_distill(const QuantizationTask& task) {
  const QuantizedParameters blocks = quantize_blocks(task);
  return distill(task, blocks, distillation_schedule(task.options));
}

}  // namespace nibble
