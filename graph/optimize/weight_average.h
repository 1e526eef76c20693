#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "graph/network/tensor_file.h"

namespace nibble {

/// Exponential moving average of weights (Polyak averaging): average += (1 - d) * (weights - average), with
/// d = min(decay, (1 + updates) / (10 + updates)), so that the first steps are soon forgotten.
class WeightAverage {
 public:
  /// The average starts as `weights`.
  WeightAverage(double decay, std::span<const float> weights);

  /// `weights` has the size of the constructor's; throws InputError otherwise.
  void update(std::span<const float> weights);

  std::span<const float> values() const { return average_; }
  std::int64_t updates() const { return updates_; }

  /// Tensors "optimizer.average" (F32, all elements in order) and "optimizer.average_updates" (I64, [1]).
  void store(TensorFile& file) const;
  /// The reverse. Throws InputError when the file's average is missing or has another size.
  void restore(const TensorFile& file);

 private:
  double decay_;
  std::vector<float> average_;
  std::int64_t updates_ = 0;
};

}  // namespace nibble
