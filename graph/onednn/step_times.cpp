#include "graph/onednn/step_times.h"

#include <limits>
#include <utility>

namespace nibble {

std::size_t StepTimes::add(const std::string& name, double multiply_accumulates) {
  steps_.push_back({name, 0, multiply_accumulates});
  return steps_.size() - 1;
}

void StepTimes::add_since_mark(Thread& thread, std::size_t step) {
  const Clock::time_point now = Clock::now();
  thread.seconds[step] += std::chrono::duration<double>(now - std::exchange(thread.mark, now)).count();
}

std::vector<LayerTime> StepTimes::profile(int images, int repetitions, int side_by_side,
                                          const std::function<void()>& run) {
  std::vector<double> best;
  double best_total = std::numeric_limits<double>::infinity();
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    for (Thread& thread : threads_) thread.seconds.assign(steps_.size(), 0.0);
    wanted_ = true;
    run();
    wanted_ = false;
    std::vector<double> seconds(steps_.size());
    double total = 0;
    for (const Thread& thread : threads_) {
      for (std::size_t i = 0; i < steps_.size(); ++i) {
        seconds[i] += thread.seconds[i];
        total += thread.seconds[i];
      }
    }
    if (total >= best_total) continue;
    best_total = total;
    best = std::move(seconds);
  }
  std::vector<LayerTime> result;
  for (std::size_t i = 0; i < best.size(); ++i) {
    LayerTime each = steps_[i];
    each.seconds = best[i] / side_by_side;
    each.multiply_accumulates *= images;
    if (each.seconds > 0) result.push_back(each);
  }
  return result;
}

}  // namespace nibble
