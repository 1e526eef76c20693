#include "graph/optimize/weight_average.h"

#include <algorithm>
#include <utility>

#include "graph/network/error.h"

namespace nibble {

WeightAverage::WeightAverage(double decay, std::vector<std::span<const float>> tensors)
    : decay_(decay), tensors_(std::move(tensors)) {
  for (const std::span<const float> tensor : tensors_) {
    average_.insert(average_.end(), tensor.begin(), tensor.end());
  }
}

void WeightAverage::update() {
  const double updates = static_cast<double>(updates_);
  const float keep = static_cast<float>(1 - std::min(decay_, (1 + updates) / (10 + updates)));
  float* average = average_.data();
  for (const std::span<const float> tensor : tensors_) {
    for (std::size_t i = 0; i < tensor.size(); ++i) average[i] += keep * (tensor[i] - average[i]);
    average += tensor.size();
  }
  ++updates_;
}

void WeightAverage::copy_to(std::span<const std::span<float>> tensors) const {
  if (tensors.size() != tensors_.size()) throw InputError("weight average: another number of tensors");
  std::size_t offset = 0;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    if (tensors[t].size() != tensors_[t].size()) throw InputError("weight average: a tensor of another size");
    std::copy_n(average_.data() + offset, tensors[t].size(), tensors[t].data());
    offset += tensors[t].size();
  }
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
