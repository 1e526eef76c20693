#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/float_parameters.h"

namespace nibble::reference {

using Values = std::vector<double>;

/// The parameters of a network in double, one tensor for each name a checkpoint has.
struct Tensors {
  std::vector<Values> weight, gamma, beta, running_mean, running_variance;  // [convolution]
  Values linear_weight, linear_bias;
};

Tensors to_double(const FloatParameters& parameters);

/// A network in double precision by the plainest loops, written from the definitions and sharing nothing with
/// graph/onednn: what the float network is compared with, itself checked against finite differences.
class Network {
 public:
  Network(const NetworkDescription& description, const Tensors& parameters);
  virtual ~Network() = default;

  /// Batch statistics when `training`, else running ones. Returns [count][classes].
  Values forward(std::span<const std::uint8_t> pixels, int count, bool training);
  /// Gradients of the last training forward; running statistics' entries stay empty.
  Tensors backward(const Values& logit_gradients);

  Tensors parameters;
  /// Of the last training forward, [convolution][channel]; the variance is the biased one.
  std::vector<Values> batch_mean, batch_variance;
  /// The smallest distance from zero of anything that went into a ReLU in the last forward.
  double relu_margin = 0;

 protected:
  /// What stands between the convolutions of a block: on the way into it, after its first convolution, after
  /// its projection, and behind the addition. The output of block -1 is the first convolution's.
  enum class Place { input, middle, shortcut, output };

  virtual double pixel(std::uint8_t value, std::size_t channel) const;
  virtual Values activation(Place place, int block, Values z);
  /// d loss / d z.
  virtual Values activation_backward(Place place, int block, Values d);

  int count_ = 0;

 private:
  Values relu(Values values);
  Values convolve(int layer, const Values& x) const;
  Values normalize(int layer, const Values& y, bool training);
  /// d loss / d y from d loss / d (normalized y).
  Values normalize_backward(int layer, const Values& d, Tensors& gradients) const;
  Values convolve_backward(int layer, const Values& x, const Values& d, Tensors& gradients) const;
  Values pad_shortcut(const Block& block, const Values& x) const;
  Values pad_shortcut_backward(const Block& block, const Values& d) const;

  NetworkDescription description_;
  std::vector<Values> input_;       // [convolution]
  std::vector<Values> normalized_;  // [convolution], before gamma and beta
  std::vector<Values> inner_;       // [block], after the first ReLU
  std::vector<Values> map_;         // [block + 1], after the other ReLUs
  Values features_;
};

}  // namespace nibble::reference
