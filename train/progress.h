#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace nibble {

struct ProgressState {
  int epoch = 0;  ///< from 1
  int epochs = 0;
  std::int64_t step = 0;  ///< steps done in the epoch
  std::int64_t steps = 0;
  double loss = 0;      ///< mean over the epoch's images so far
  double accuracy = 0;  ///< the same
  double learning_rate = 0;
  double images_per_second = 0;
  double seconds_left = 0;  ///< of the whole training
};

/// The state as one line of at most `width` characters: with a bar when there is room for it.
std::string progress_line(const ProgressState& state, int width);

/// "1:02:33", "2:33"
std::string clock_time(double seconds);

/// A line on stderr that is rewritten in place, ten times a second at most; nothing when stderr is no
/// terminal.
class ProgressBar {
 public:
  ProgressBar();
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void show(const ProgressState& state);
  /// Removes the line, so that something else can be printed there.
  void clear();

 private:
  bool terminal_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace nibble
