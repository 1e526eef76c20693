#include "graph/optimize/weight_average.h"

#include <algorithm>
#include <string>

#include "graph/network/error.h"

namespace nibble {

WeightAverage::WeightAverage(double decay, std::span<const float> weights)
    : decay_(decay), average_(weights.begin(), weights.end()) {}

void WeightAverage::update(std::span<const float> weights) {
  if (weights.size() != average_.size()) {
    throw InputError("weight average: " + std::to_string(weights.size()) + " weights, expected " +
                     std::to_string(average_.size()));
  }
  const double updates = static_cast<double>(updates_);
  const float keep = static_cast<float>(1 - std::min(decay_, (1 + updates) / (10 + updates)));
  for (std::size_t i = 0; i < average_.size(); ++i) average_[i] += keep * (weights[i] - average_[i]);
  ++updates_;
}

void WeightAverage::store(TensorFile& file) const {
  const std::int64_t shape[] = {std::ssize(average_)};
  const std::int64_t one[] = {1};
  file.set<float>("optimizer.average", shape, average_);
  file.set<std::int64_t>("optimizer.average_updates", one, std::span(&updates_, 1));
}

void WeightAverage::restore(const TensorFile& file) {
  const std::int64_t shape[] = {std::ssize(average_)};
  const std::int64_t one[] = {1};
  const std::int64_t updates = file.values<std::int64_t>("optimizer.average_updates", one).front();
  if (updates < 0) {
    throw InputError(file.file.string() + ": optimizer.average_updates is " + std::to_string(updates) +
                     ", expected 0 or more");
  }
  average_ = file.values<float>("optimizer.average", shape);
  updates_ = updates;
}

}  // namespace nibble
