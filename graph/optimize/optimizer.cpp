#include "graph/optimize/optimizer.h"

#include <cmath>
#include <utility>

#include "graph/network/error.h"

namespace nibble {
namespace {

std::size_t count_elements(const std::vector<OptimizedTensor>& tensors) {
  std::size_t count = 0;
  for (const OptimizedTensor& tensor : tensors) count += tensor.values.size();
  return count;
}

class AdamW final : public Optimizer {
 public:
  AdamW(const OptimizerSettings& settings, std::vector<OptimizedTensor> tensors)
      : Optimizer(std::move(tensors), {"first_moment", "second_moment"}), settings_(settings) {}

  void step(double learning_rate) override {
    ++steps_;
    const double power = static_cast<double>(steps_);
    const double correction1 = 1 - std::pow(settings_.beta1, power);
    const double correction2 = std::sqrt(1 - std::pow(settings_.beta2, power));
    // Scalars are made in double and rounded once, as torch does.
    const float keep1 = static_cast<float>(1 - settings_.beta1);
    const float beta2 = static_cast<float>(settings_.beta2);
    const float keep2 = static_cast<float>(1 - settings_.beta2);
    const float deviation_divisor = static_cast<float>(correction2);
    const float epsilon = static_cast<float>(settings_.epsilon);
    std::size_t offset = 0;
    for (const OptimizedTensor& tensor : tensors_) {
      const double rate = learning_rate * tensor.learning_rate_scale;
      const float shrink = tensor.decay ? static_cast<float>(1 - rate * settings_.weight_decay) : 1.0F;
      const float step_size = static_cast<float>(rate / correction1);
      float* const value = tensor.values.data();
      const float* const gradient = tensor.gradients.data();
      float* const first = moments_[0].values.data() + offset;
      float* const second = moments_[1].values.data() + offset;
      const std::ptrdiff_t count = std::ssize(tensor.values);
#pragma omp parallel for simd schedule(static) if (count > 8192)
      for (std::ptrdiff_t i = 0; i < count; ++i) {
        const float g = gradient[i];
        first[i] += keep1 * (g - first[i]);
        second[i] = second[i] * beta2 + keep2 * g * g;
        const float denominator = std::sqrt(second[i]) / deviation_divisor + epsilon;
        value[i] = value[i] * shrink - step_size * (first[i] / denominator);
      }
      offset += tensor.values.size();
    }
  }

 private:
  OptimizerSettings settings_;
};

class Sgd final : public Optimizer {
 public:
  Sgd(const OptimizerSettings& settings, std::vector<OptimizedTensor> tensors)
      : Optimizer(std::move(tensors), {"momentum"}), settings_(settings) {}

  void step(double learning_rate) override {
    ++steps_;
    const float momentum = static_cast<float>(settings_.momentum);
    // The step is along gradient + momentum * velocity with Nesterov, else along the velocity itself.
    const float along_gradient = settings_.nesterov ? 1.0F : 0.0F;
    const float along_velocity = settings_.nesterov ? momentum : 1.0F;
    std::size_t offset = 0;
    for (const OptimizedTensor& tensor : tensors_) {
      const float rate = static_cast<float>(learning_rate * tensor.learning_rate_scale);
      const float decay = tensor.decay ? static_cast<float>(settings_.weight_decay) : 0.0F;
      float* const value = tensor.values.data();
      const float* const gradient = tensor.gradients.data();
      float* const velocity = moments_[0].values.data() + offset;
      const std::ptrdiff_t count = std::ssize(tensor.values);
#pragma omp parallel for simd schedule(static) if (count > 8192)
      for (std::ptrdiff_t i = 0; i < count; ++i) {
        const float g = gradient[i] + decay * value[i];
        velocity[i] = momentum * velocity[i] + g;
        value[i] -= rate * (along_gradient * g + along_velocity * velocity[i]);
      }
      offset += tensor.values.size();
    }
  }

 private:
  OptimizerSettings settings_;
};

}  // namespace

Optimizer::Optimizer(std::vector<OptimizedTensor> tensors, const std::vector<std::string>& moments)
    : tensors_(std::move(tensors)) {
  for (const OptimizedTensor& tensor : tensors_) {
    if (tensor.values.size() != tensor.gradients.size()) {
      throw InputError("optimizer: " + tensor.name + " has " + std::to_string(tensor.values.size()) +
                       " values but " + std::to_string(tensor.gradients.size()) + " gradients");
    }
  }
  const std::size_t count = count_elements(tensors_);
  for (const std::string& name : moments) moments_.push_back({name, std::vector<float>(count, 0.0F)});
}

void Optimizer::store(TensorFile& file) const {
  for (const Moment& moment : moments_) {
    const std::int64_t shape[] = {std::ssize(moment.values)};
    file.set<float>("optimizer." + moment.name, shape, moment.values);
  }
  const std::int64_t one[] = {1};
  file.set<std::int64_t>("optimizer.steps", one, std::span(&steps_, 1));
}

void Optimizer::restore(const TensorFile& file) {
  // Everything is read before anything is changed, so a refused file leaves the optimizer as it was.
  const std::int64_t one[] = {1};
  const std::int64_t steps = file.values<std::int64_t>("optimizer.steps", one).front();
  if (steps < 0) {
    throw InputError(file.file.string() + ": optimizer.steps is " + std::to_string(steps) +
                     ", expected 0 or more");
  }
  std::vector<std::vector<float>> values;
  for (const Moment& moment : moments_) {
    const std::int64_t shape[] = {std::ssize(moment.values)};
    values.push_back(file.values<float>("optimizer." + moment.name, shape));
  }
  for (std::size_t i = 0; i < moments_.size(); ++i) moments_[i].values = std::move(values[i]);
  steps_ = steps;
}

std::unique_ptr<Optimizer> make_optimizer(const OptimizerSettings& settings,
                                          std::vector<OptimizedTensor> tensors) {
  if (settings.kind == OptimizerKind::sgd) return std::make_unique<Sgd>(settings, std::move(tensors));
  return std::make_unique<AdamW>(settings, std::move(tensors));
}

}  // namespace nibble
