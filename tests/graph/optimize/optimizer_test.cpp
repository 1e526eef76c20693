#include "graph/optimize/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "graph/network/error.h"
#include "graph/optimize/weight_average.h"
#include "tests/graph/optimize/golden.h"

namespace nibble {
namespace {

OptimizerSettings settings_of(const std::string& kind) {
  OptimizerSettings settings;
  settings.kind = kind == "adamw" ? OptimizerKind::adamw : OptimizerKind::sgd;
  settings.weight_decay = kind == "adamw" ? 1e-2 : 5e-4;
  settings.nesterov = kind != "sgd";
  return settings;
}

/// The two tensors of golden.json, the second one without weight decay.
struct Tensors {
  std::vector<std::vector<float>> values =
      golden().at("optimizers").at("start").get<std::vector<std::vector<float>>>();
  std::vector<std::vector<float>> gradients = values;

  std::vector<OptimizedTensor> optimized() {
    return {{.name = "a", .values = values[0], .gradients = gradients[0]},
            {.name = "b", .values = values[1], .gradients = gradients[1], .decay = false}};
  }
  void take_gradients(std::size_t step) {
    const auto given = golden().at("optimizers").at("gradients")[step].get<std::vector<std::vector<float>>>();
    for (std::size_t t = 0; t < given.size(); ++t)
      std::copy(given[t].begin(), given[t].end(), gradients[t].begin());
  }
};

double rate(std::size_t step) {
  return golden().at("optimizers").at("rates")[step].get<double>();
}

TEST(Optimizer, EqualsPyTorch) {
  for (const nlohmann::json& row : golden().at("optimizers").at("rows")) {
    const std::string kind = row.at("kind");
    Tensors tensors;
    const std::unique_ptr<Optimizer> optimizer = make_optimizer(settings_of(kind), tensors.optimized());
    const std::size_t steps = row.at("after").size();
    ASSERT_EQ(steps, 10U);
    for (std::size_t step = 0; step < steps; ++step) {
      tensors.take_gradients(step);
      optimizer->step(rate(step));
      for (std::size_t t = 0; t < 2; ++t) {
        const std::vector<float> expected = row.at("after")[step][t].get<std::vector<float>>();
        ASSERT_EQ(expected.size(), tensors.values[t].size());
        for (std::size_t i = 0; i < expected.size(); ++i) {
          // Both sides are float32 and may round in another order: a few units in the last place of numbers
          // <= 2.
          EXPECT_NEAR(tensors.values[t][i], expected[i], 5e-7)
              << kind << " step " << step << " " << t << "," << i;
        }
      }
    }
  }
}

TEST(Optimizer, StateRestoredGoesOnWithTheSameBits) {
  for (const char* kind : {"adamw", "sgd_nesterov"}) {
    Tensors straight;
    const std::unique_ptr<Optimizer> uninterrupted = make_optimizer(settings_of(kind), straight.optimized());
    Tensors stopped;
    TensorFile file;
    {
      const std::unique_ptr<Optimizer> first = make_optimizer(settings_of(kind), stopped.optimized());
      for (std::size_t step = 0; step < 4; ++step) {
        stopped.take_gradients(step);
        first->step(rate(step));
      }
      first->store(file);
    }
    const std::unique_ptr<Optimizer> second = make_optimizer(settings_of(kind), stopped.optimized());
    second->restore(file);
    EXPECT_EQ(second->steps(), 4);
    for (std::size_t step = 0; step < 10; ++step) {
      straight.take_gradients(step);
      uninterrupted->step(rate(step));
      if (step < 4) continue;
      stopped.take_gradients(step);
      second->step(rate(step));
    }
    EXPECT_EQ(straight.values, stopped.values) << kind;
  }
}

TEST(Optimizer, RefusesTheStateOfAnotherOne) {
  Tensors tensors;
  TensorFile file;
  make_optimizer(settings_of("sgd"), tensors.optimized())->store(file);
  const std::unique_ptr<Optimizer> adamw = make_optimizer(settings_of("adamw"), tensors.optimized());
  EXPECT_THROW(adamw->restore(file), InputError);
  EXPECT_EQ(adamw->steps(), 0);
}

TEST(Optimizer, ScalesTheLearningRateOfATensor) {
  std::vector<float> a = {1};
  std::vector<float> b = {1};
  const std::vector<float> gradient = {1};
  OptimizerSettings settings = settings_of("sgd");
  settings.weight_decay = 0;
  settings.momentum = 0;
  make_optimizer(settings, {{.name = "a", .values = a, .gradients = gradient},
                            {.name = "b", .values = b, .gradients = gradient, .learning_rate_scale = 4}})
      ->step(0.125);
  EXPECT_EQ(a[0], 0.875F);
  EXPECT_EQ(b[0], 0.5F);
}

TEST(WeightAverage, FollowsItsFormulaAndIsRestored) {
  std::vector<float> weights = {1, -2};
  WeightAverage average(0.9, weights);
  double expected = 1;
  for (int update = 0; update < 100; ++update) {
    weights[0] = static_cast<float>(update);
    average.update(weights);
    const double decay = std::min(0.9, (1.0 + update) / (10.0 + update));
    expected = decay * expected + (1 - decay) * update;
    EXPECT_NEAR(average.values()[0], expected, 1e-5 * std::abs(expected) + 1e-6);
    EXPECT_EQ(average.values()[1], -2);
  }
  TensorFile file;
  average.store(file);
  WeightAverage restored(0.9, std::vector<float>(2));
  restored.restore(file);
  EXPECT_EQ(restored.updates(), 100);
  average.update(weights);
  restored.update(weights);
  EXPECT_EQ(average.values()[0], restored.values()[0]);
  EXPECT_THROW(average.update(std::vector<float>(3)), InputError);
  EXPECT_THROW(WeightAverage(0.9, std::vector<float>(3)).restore(file), InputError);
}

}  // namespace
}  // namespace nibble
