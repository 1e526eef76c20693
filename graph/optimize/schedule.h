#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

enum class ScheduleShape { constant, multistep, cosine, one_cycle };

/// The learning rate as a pure function of (epoch, step): nothing to save, nothing to restore.
struct Schedule {
  ScheduleShape shape = ScheduleShape::multistep;
  double learning_rate = 1e-2;  ///< the base; the peak of one_cycle
  int epochs = 200;
  /// The rate rises linearly over these epochs, from learning_rate / steps to learning_rate.
  /// In one_cycle the rise is part of the shape and takes this long (with 0: three tenths of the epochs).
  double warmup_epochs = 0;
  std::vector<int> milestones = {100,
                                 150};  ///< multistep: multiplied by `gamma` from each of these epochs on
  double gamma = 0.1;
  double final_fraction = 0;    ///< cosine: the rate after the last step, as a fraction of the base
  double initial_divisor = 25;  ///< one_cycle starts at learning_rate / initial_divisor
  double final_divisor = 1e4;   ///< one_cycle ends at learning_rate / initial_divisor / final_divisor
};

/// Learning rate of step `step` (0 .. steps_per_epoch-1) in epoch `epoch` (0 .. schedule.epochs-1).
/// multistep: torch's MultiStepLR; cosine: Loshchilov and Hutter 2016, arXiv:1608.03983, without restarts,
/// every step; one_cycle: torch's OneCycleLR with cosine annealing, the last step having the smallest rate.
double learning_rate(const Schedule& schedule, int epoch, std::int64_t step, std::int64_t steps_per_epoch);

}  // namespace nibble
