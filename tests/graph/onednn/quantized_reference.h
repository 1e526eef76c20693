#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "graph/network/description.h"
#include "graph/onednn/learned_scales.h"
#include "tests/graph/onednn/reference_network.h"

namespace nibble::reference {

/// A network in trained quantization, in double and in real units: weights and activations are scale *
/// integer, and every gradient is the formula of LSQ (Esser et al. 2019, arXiv:1902.08153, equations 1 to 5),
/// value by value. What QuantizedTraining, which works in integers, is compared with.
class QuantizedNetwork final : public Network {
 public:
  QuantizedNetwork(const NetworkDescription& description, const Tensors& master, const LearnedScales& scales);

  Values forward(std::span<const std::uint8_t> pixels, int count);
  Tensors backward(const Values& logit_gradients);

  struct BlockScales {
    double input = 0, middle = 0, shortcut = 0, output = 0;
  };
  /// Of the scales, after backward().
  double first_output_gradient = 0;
  std::vector<BlockScales> block_gradients;
  std::vector<Values> weight_scale_gradients;  // [convolution][channel]
  Values linear_scale_gradients;
  /// The root of the sum of the squares of the terms that they are sums of. Batch normalization makes the sum
  /// of d * integer zero, so little is left of the terms.
  std::vector<Values> weight_scale_terms;
  Values linear_scale_terms;

 private:
  /// One quantizer in one step.
  struct Quantizer {
    double scale = 1, lowest = 0, highest = 0;
    double count = 1;  // values that share the scale, as the gradient's scale counts them
    Values v;
    Values forward(const Values& z);
    /// d loss / d z from d loss / d (scale * integer); adds to the scale's gradient.
    Values backward(const Values& d, double& gradient) const;
  };

  double pixel(std::uint8_t value, std::size_t channel) const override;
  Values activation(Place place, int block, Values z) override;
  Values activation_backward(Place place, int block, Values d) override;
  Values quantized_weights(const Values& master, const std::vector<float>& scales, int bits, bool is_first);
  void weight_backward(const Values& master, const std::vector<float>& scales, int bits, bool is_first,
                       Values& gradient, Values& scale_gradient, Values& terms) const;

  Tensors master_;
  LearnedScales scales_;
  Quantizer first_;
  struct BlockQuantizers {
    Quantizer input, middle, shortcut, output;
  };
  std::vector<BlockQuantizers> blocks_;
};

}  // namespace nibble::reference
