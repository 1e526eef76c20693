#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/float_parameters.h"
#include "graph/onednn/precision.h"

namespace nibble {

enum class ParameterKind {
  convolution_weight,
  batch_norm_scale,
  batch_norm_shift,
  linear_weight,
  linear_bias,
  quantizer_scale  ///< of QuantizedTraining
};

/// A run of values in FloatTraining::trainable() and, at the same place, in gradients().
struct ParameterGroup {
  std::string name;  ///< as in the checkpoint: "blocks.0.conv1.weight", "conv1.gamma", "linear.bias"
  ParameterKind kind;
  std::size_t offset;
  std::size_t count;
};

struct TrainingImplementation;  // one for each precision

/// A float network that learns: forward in training mode (batch statistics) and backward.
///
/// Primitives, activations and the threads' scratchpads are made once, for tiles of images; a step allocates
/// nothing. Equal calls with equal thread counts give equal bits. Not
/// thread-safe; call from the thread that made it.
class FloatTraining {
 public:
  /// `batch_size` is the largest number of images in a step. All parameters are zero until set_parameters.
  /// Throws InputError when the CPU lacks `precision`, RunError when oneDNN has no implementation or memory.
  FloatTraining(const NetworkDescription& network, int batch_size, Precision precision = Precision::fp32);
  FloatTraining(FloatTraining&&) noexcept;
  FloatTraining& operator=(FloatTraining&&) noexcept;
  virtual ~FloatTraining();  // a Learner holds QuantizedTraining by this

  void set_parameters(const FloatParameters& parameters);
  /// The trained values and the running statistics, ready for store_parameters or FloatNetwork.
  FloatParameters parameters() const;

  /// The FP32 master copy of every trained value, one contiguous buffer, for the optimizer to change. The
  /// address stays the same as long as the object lives.
  std::span<float> trainable();
  std::span<const float> trainable() const;
  /// Filled by backward(), laid out as trainable().
  std::span<const float> gradients() const;
  /// In the order of their offsets; together they cover trainable() without gaps.
  const std::vector<ParameterGroup>& groups() const;

  /// `pixels_nhwc`: [count][32][32][3]; 1 <= count <= batch_size. Normalizes, runs with batch statistics and
  /// moves the running statistics (momentum 0.1, unbiased variance, as PyTorch). Returns [count][classes],
  /// valid until the next call.
  std::span<const float> forward(std::span<const std::uint8_t> pixels_nhwc, int count);
  /// `logit_gradients`: [count][classes], d loss / d logits of the last forward().
  void backward(std::span<const float> logit_gradients);

 protected:
  explicit FloatTraining(std::unique_ptr<TrainingImplementation> implementation);
  TrainingImplementation& implementation() { return *implementation_; }
  const TrainingImplementation& implementation() const { return *implementation_; }

 private:
  std::unique_ptr<TrainingImplementation> implementation_;
};

}  // namespace nibble
