#pragma once

#include "quant/learned_network.h"
#include "quant/method.h"

namespace nibble {

/// How long and how fast one stage learns; see the functions below.
struct LearnedSchedule {
  int steps = 400;
  int batch = 32;      ///< images of a step, a multiple of kGroupImages
  double rate = 0.01;  ///< of the weights, in units of integers; a cosine, Rounding::adaptive's is constant
  double rate_at_two_bits = 0.01;  ///< the same for a block of 2-bit weights
  LearnedRates rates;
  double temperature = 4;  ///< of the distillation
  double logits_weight = 1;
  double block_weight = 1;        ///< of each block's squared error relative to the FP32 output's power
  double rounding_weight = 1e-4;  ///< of AdaRound's regularizer
  bool augment = true;            ///< images are mirrored and moved by up to 4 pixels, as in training
};

/// The schedules of a width, chosen on training images that calibration mostly had not seen
/// (docs/quantization.md).
LearnedSchedule block_schedule(const QuantizationOptions& options);
LearnedSchedule adaptive_schedule(const QuantizationOptions& options);
LearnedSchedule distillation_schedule(const QuantizationOptions& options);

/// Learns one block after the other: inputs from the quantized network before it, targets from the FP32
/// network (BRECQ, Li et al. 2021, arXiv:2102.05426, without its weighting by the Fisher information). Of the
/// calibration images up to three are left out of the learning, which takes whole groups of kGroupImages.
QuantizedParameters reconstruct_blocks(const QuantizationTask& task, const LearnedSchedule& schedule,
                                       LearnedNetwork& learned);

/// Goes on with all blocks and the linear layer together, from the FP32 network's logits and block outputs,
/// without labels (Hinton et al. 2015, arXiv:1503.02531).
QuantizedParameters distill(const QuantizationTask& task, const LearnedSchedule& schedule,
                            LearnedNetwork& learned);

}  // namespace nibble
