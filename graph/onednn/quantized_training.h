#pragma once

#include "graph/network/description.h"
#include "graph/onednn/float_training.h"
#include "graph/onednn/learned_scales.h"
#include "graph/onednn/precision.h"

namespace nibble {

/// A network that learns while it is quantized: the convolutions' inputs and weights are the integers
/// themselves; parameters() are the FP32 values behind them. Sums are exact, in BF16 too (which holds
/// integers up to 256); a residual is multiplied and added apart where kernels/requantize.h fuses it, so that
/// now and then a value lies one step beside the exported network's. Evaluation runs the exported integers.
/// Batch normalization sees s_in * s_w[c] * sum, in real units, so its running statistics fold into an
/// integer network. The first convolution reads pixel - kBorderPixel, whose running mean is therefore of s_w
/// * sum q * (pixel - border). Step sizes are learned with the rest (LSQ: Esser et al. 2019,
/// arXiv:1902.08153, gradients scaled by 1 / sqrt(values * largest integer)); they are groups of kind
/// quantizer_scale.
class QuantizedTraining : public FloatTraining {
 public:
  /// Parameters are zero until set_parameters.
  QuantizedTraining(const NetworkDescription& network, const LearnedScales& scales, int batch_size,
                    Precision precision = Precision::fp32);

  void set_scales(const LearnedScales& scales);
  LearnedScales scales() const;
  /// After a step of the optimizer: raises scales that are not above 0 to a very small one.
  void keep_scales_positive();

 private:
  NetworkDescription network_;
  LearnedScales form_;  // widths and sizes
};

}  // namespace nibble
