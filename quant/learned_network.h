#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/fold.h"
#include "graph/network/quantized_parameters.h"
#include "graph/optimize/optimizer.h"
#include "quant/float_blocks.h"
#include "quant/image_groups.h"
#include "quant/learned_layer.h"
#include "quant/simulation.h"

namespace nibble {

/// What a step compares with the FP32 network. All losses are means over images.
struct LearnedLoss {
  int first_block = 0;
  int last_block = 0;  ///< one past the last
  /// Of each block of the network: weight of the mean squared error of its output, real units; 0: not
  /// compared.
  std::vector<double> block_weights;
  /// Of temperature^2 * KL(FP32 || quantized); needs last_block to be the last of the network.
  double logits_weight = 0;
  double temperature = 4;
};

/// Learning rates of the three kinds of parameters as multiples of the step's rate.
struct LearnedRates {
  double weights = 1;   ///< in units of integers
  double scales = 0.1;  ///< of the weights, relative
  double biases = 0.1;
  double steps = 0.1;  ///< of the activations, relative
};

/// The residual blocks and the linear layer of a quantized network of at most 8 bits with everything that may
/// be learned after training: rounding, weight scales, biases and activation scales (as logarithms). Forward
/// it computes the integers of kernels/requantize.h; backward it passes gradients through each rounding. The
/// first convolution stays as it is.
///
/// Images go through all layers in groups of kGroupImages, one group a thread; gradients are added in the
/// order of the groups, so the number of threads does not matter.
class LearnedNetwork {
 public:
  LearnedNetwork(const NetworkDescription& network, const FoldedParameters& folded,
                 const QuantizedParameters& start, Rounding rounding);
  ~LearnedNetwork();

  /// Parameters of blocks first .. last - 1, and of the linear layer where `linear`; for make_optimizer.
  std::vector<OptimizedTensor> tensors(int first, int last, bool linear, const LearnedRates& rates);

  /// Makes the integers and factors from the parameters: after each change of them.
  void refresh(int first, int last);

  /// Loss and gradients for a multiple of kGroupImages images whose integer stream before block first_block
  /// is `stream`.
  double step(const LearnedLoss& loss, std::span<const std::int16_t> stream, const LearnedTargets& targets);

  /// AdaRound's regularizer weight * sum(1 - |2 h - 1|^beta), added to the gradients of a step. Returns it.
  double add_rounding_pressure(int first, int last, double weight, double beta);

  Rounding rounding() const;

  /// Off: activations are clamped but not rounded, and weights are what is learned. For tests.
  void set_rounding(bool on);

  /// What has been learned so far, as integers.
  QuantizedParameters result() const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
