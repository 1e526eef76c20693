#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "graph/network/tensor_file.h"

namespace nibble {

/// Exponential moving average of weights (Polyak averaging): average += (1 - d) * (weights - average), with
/// d = min(decay, (1 + updates) / (10 + updates)), so that the first steps are soon forgotten.
class WeightAverage {
 public:
  /// `tensors` stay where they are; their values now are the average's start.
  WeightAverage(double decay, std::vector<std::span<const float>> tensors);

  void update();

  std::int64_t updates() const { return updates_; }

  /// Writes the averages to `tensors`, which have the sizes of the constructor's.
  void copy_to(std::span<const std::span<float>> tensors) const;

  /// Tensors "optimizer.average" (F32, all elements in order) and "optimizer.average_updates" (I64, [1]).
  void store(TensorFile& file) const;
  /// The reverse. Throws InputError when the file's average is missing or has another size.
  void restore(const TensorFile& file);

 private:
  double decay_;
  std::vector<std::span<const float>> tensors_;
  std::vector<float> average_;
  std::int64_t updates_ = 0;
};

}  // namespace nibble
