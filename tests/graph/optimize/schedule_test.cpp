#include "graph/optimize/schedule.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/graph/optimize/golden.h"

namespace nibble {
namespace {

TEST(Schedule, EqualsPyTorch) {
  const nlohmann::json& schedules = golden().at("schedules");
  const int epochs = schedules.at("epochs");
  const int steps = schedules.at("steps");
  for (const nlohmann::json& row : schedules.at("rows")) {
    const std::string kind = row.at("kind");
    Schedule schedule;
    schedule.shape = kind == "multistep" ? ScheduleShape::multistep
                     : kind == "cosine"  ? ScheduleShape::cosine
                                         : ScheduleShape::one_cycle;
    schedule.learning_rate = 0.1;
    schedule.epochs = epochs;
    schedule.warmup_epochs = row.at("warmup_epochs");
    schedule.milestones = {5, 8};
    const std::vector<double> rates = row.at("rates");
    ASSERT_EQ(std::ssize(rates), epochs * steps);
    for (int i = 0; i < epochs * steps; ++i) {
      EXPECT_NEAR(learning_rate(schedule, i / steps, i % steps, steps), rates[static_cast<std::size_t>(i)],
                  1e-13)
          << kind << " step " << i;
    }
  }
}

TEST(Schedule, WarmUpRisesLinearlyAndThenTheShapeBegins) {
  Schedule schedule;
  schedule.learning_rate = 0.4;
  schedule.epochs = 8;
  schedule.warmup_epochs = 2;
  for (const ScheduleShape shape :
       {ScheduleShape::constant, ScheduleShape::multistep, ScheduleShape::cosine}) {
    schedule.shape = shape;
    schedule.milestones = {6};
    for (int i = 0; i < 10; ++i) {
      EXPECT_NEAR(learning_rate(schedule, i / 5, i % 5, 5), 0.4 * (i + 1) / 10, 1e-15);
    }
    EXPECT_NEAR(learning_rate(schedule, 2, 0, 5), 0.4, 1e-15);
  }
  schedule.shape = ScheduleShape::cosine;
  EXPECT_NEAR(learning_rate(schedule, 5, 0, 5), 0.2, 1e-15);  // the middle of what follows the warm-up
}

TEST(Schedule, OneCycleEndsFarBelowWhereItBegan) {
  Schedule schedule;
  schedule.shape = ScheduleShape::one_cycle;
  schedule.learning_rate = 0.1;
  schedule.epochs = 30;
  EXPECT_NEAR(learning_rate(schedule, 0, 0, 100), 0.004, 1e-15);
  EXPECT_NEAR(learning_rate(schedule, 29, 99, 100), 4e-7, 1e-15);
}

}  // namespace
}  // namespace nibble
