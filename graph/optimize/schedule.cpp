#include "graph/optimize/schedule.h"

#include <cmath>
#include <numbers>

namespace nibble {
namespace {

double cosine_between(double from, double to, double fraction) {
  return to + (from - to) / 2 * (1 + std::cos(std::numbers::pi * fraction));
}

double one_cycle(const Schedule& schedule, double position, double all_steps, double steps_per_epoch) {
  // As torch's OneCycleLR: the peak is at step rise * all - 1, the end at step all - 1.
  const double rise = schedule.warmup_epochs > 0 ? schedule.warmup_epochs * steps_per_epoch : 0.3 * all_steps;
  const double initial = schedule.learning_rate / schedule.initial_divisor;
  const double final = initial / schedule.final_divisor;
  const double peak = rise - 1;
  const double end = all_steps - 1;
  if (position <= peak && peak > 0) return cosine_between(initial, schedule.learning_rate, position / peak);
  if (end <= peak) return schedule.learning_rate;
  return cosine_between(schedule.learning_rate, final, (position - peak) / (end - peak));
}

}  // namespace

double learning_rate(const Schedule& schedule, int epoch, std::int64_t step, std::int64_t steps_per_epoch) {
  const double per_epoch = static_cast<double>(steps_per_epoch);
  const double position = epoch * per_epoch + static_cast<double>(step);
  const double all_steps = schedule.epochs * per_epoch;
  if (schedule.shape == ScheduleShape::one_cycle) return one_cycle(schedule, position, all_steps, per_epoch);

  const double warmup_steps = schedule.warmup_epochs * per_epoch;
  if (position < warmup_steps) return schedule.learning_rate * (position + 1) / warmup_steps;
  switch (schedule.shape) {
    case ScheduleShape::multistep: {
      double rate = schedule.learning_rate;
      for (const int milestone : schedule.milestones) rate *= epoch >= milestone ? schedule.gamma : 1;
      return rate;
    }
    case ScheduleShape::cosine:
      return cosine_between(schedule.learning_rate, schedule.learning_rate * schedule.final_fraction,
                            (position - warmup_steps) / (all_steps - warmup_steps));
    default:
      return schedule.learning_rate;
  }
}

}  // namespace nibble
