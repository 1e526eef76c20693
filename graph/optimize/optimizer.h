#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "graph/network/tensor_file.h"

namespace nibble {

/// One tensor that an optimizer changes. The memory belongs to the network and stays where it is.
struct OptimizedTensor {
  std::string name;
  std::span<float> values;
  std::span<const float> gradients;
  bool decay = true;               ///< weight decay applies
  double learning_rate_scale = 1;  ///< multiplies the learning rate of each step
};

enum class OptimizerKind { adamw, sgd };

struct OptimizerSettings {
  OptimizerKind kind = OptimizerKind::adamw;
  double weight_decay = 1e-2;
  double beta1 = 0.9;  ///< AdamW
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double momentum = 0.9;  ///< SGD
  bool nesterov = true;
};

/// Changes tensors by their gradients, one step at a time. The state is one contiguous buffer for each
/// moment, the tensors one after the other; steps are elementwise, so results do not depend on the number of
/// threads.
class Optimizer {
 public:
  virtual ~Optimizer() = default;

  virtual void step(double learning_rate) = 0;

  std::int64_t steps() const { return steps_; }

  /// Tensors "optimizer.<moment>" (F32, all elements in order) and "optimizer.steps" (I64, [1]).
  void store(TensorFile& file) const;
  /// The reverse. Throws InputError when the file's state is missing or is of another optimizer or network.
  void restore(const TensorFile& file);

 protected:
  struct Moment {
    std::string name;
    std::vector<float> values;
  };
  Optimizer(std::vector<OptimizedTensor> tensors, const std::vector<std::string>& moments);

  std::vector<OptimizedTensor> tensors_;
  std::vector<Moment> moments_;
  std::int64_t steps_ = 0;
};

/// AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101) and SGD with (Nesterov) momentum, both in the form of
/// torch.optim: decoupled decay and bias correction in AdamW; decay added to the gradient and no dampening in
/// SGD.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerSettings& settings,
                                          std::vector<OptimizedTensor> tensors);

}  // namespace nibble
