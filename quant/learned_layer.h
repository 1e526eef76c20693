#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "graph/network/quantized_parameters.h"

namespace nibble {

/// How an integer weight depends on what is learned.
enum class Rounding {
  /// Each weight lies between its two neighbouring levels and a rectified sigmoid says where (AdaRound, Nagel
  /// et al. 2020, arXiv:2004.10568); it ends at one of the two.
  adaptive,
  /// The nearest level of a weight that itself is learned, its gradient passed through the rounding
  /// (Bengio et al. 2013, arXiv:1308.3432).
  straight_through
};

/// Integers with scales and biases of a convolution or the linear layer, as parameters with gradients.
struct LearnedLayer {
  using Values = std::vector<float>;

  QuantizedLayer start;
  std::size_t channels, taps;
  Values position, log_scale, bias;  ///< the parameters
  Values position_gradient, scale_gradient, bias_gradient;
  Values integers;           ///< what the convolution computes with
  Values slope;              ///< d integers / d position
  Values weight_scale;       ///< exp(log_scale)
  Values scale, offset;      ///< S and B
  std::vector<bool> frozen;  ///< channels without weights: only their bias is learned
  Values low, high;          ///< adaptive: the two levels of each weight
  Rounding rounding;

  /// `weights`: the FP32 ones, of which integers * scale are an approximation.
  LearnedLayer(const QuantizedLayer& layer, std::span<const float> weights, Rounding how);

  /// Makes integers, slopes, S and B from the parameters. Not `round`: learned weights are not rounded.
  void refresh(bool round, float input_scale, float output_scale);

  /// What has been learned so far, as integers.
  QuantizedLayer result() const;

  /// AdaRound's h of position v, 0 .. 1, and its derivative.
  static double rectified(double v, double& derivative);

 private:
  float adaptive_start(float real);
  void clamp();
};

}  // namespace nibble
