#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "graph/network/layer_time.h"

namespace nibble {

/// A clock around each step of a network, on each thread; stopped unless profile() runs.
class StepTimes {
 public:
  /// `threads`: the largest number of a thread, plus 1.
  explicit StepTimes(int threads) : threads_(static_cast<std::size_t>(threads)) {}

  /// `multiply_accumulates`: of one image. Returns the step's number.
  std::size_t add(const std::string& name, double multiply_accumulates);

  /// A thread begins its part.
  void begin(int thread) {
    if (wanted_) threads_[static_cast<std::size_t>(thread)].mark = Clock::now();
  }
  /// What the thread did since begin() or its last mark() was `step`.
  void mark(int thread, std::size_t step) {
    if (wanted_) add_since_mark(threads_[static_cast<std::size_t>(thread)], step);
  }

  /// Calls run(), a batch of `images`, `repetitions` times. Of the quickest run the steps that took time: the
  /// seconds of all threads together, divided by the `side_by_side` that work at once.
  std::vector<LayerTime> profile(int images, int repetitions, int side_by_side,
                                 const std::function<void()>& run);

 private:
  using Clock = std::chrono::steady_clock;
  struct alignas(64) Thread {
    Clock::time_point mark;
    std::vector<double> seconds;  // of each step
  };
  static void add_since_mark(Thread& thread, std::size_t step);

  std::vector<LayerTime> steps_;
  std::vector<Thread> threads_;
  bool wanted_ = false;
};

}  // namespace nibble
