#include "train/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace nibble {
namespace {

int terminal_width() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string clock_time(double seconds) {
  const std::int64_t whole = std::llround(std::clamp(seconds, 0.0, 1e9));
  const std::int64_t hours = whole / 3600;
  const std::int64_t minutes = whole / 60 % 60;
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, whole % 60);
  return fmt::format("{}:{:02}", minutes, whole % 60);
}

std::string progress_line(const ProgressState& state, int width) {
  const std::string head = fmt::format("epoch {}/{}", state.epoch, state.epochs);
  const std::string tail = fmt::format(
      " {}/{} loss {:.4f} {:.2f} % lr {:.3g} {:.0f} images/s {} left", state.step, state.steps, state.loss,
      100 * state.accuracy, state.learning_rate, state.images_per_second, clock_time(state.seconds_left));
  const int room = width - static_cast<int>(head.size() + tail.size()) - 3;
  std::string bar;
  if (room >= 8) {
    const int length = std::min(room, 30);
    const double done =
        state.steps > 0 ? static_cast<double>(state.step) / static_cast<double>(state.steps) : 0;
    const int filled = static_cast<int>(done * length);
    bar = " [" + std::string(static_cast<std::size_t>(filled), '=') +
          std::string(static_cast<std::size_t>(length - filled), ' ') + "]";
  }
  std::string line = head + bar + tail;
  if (std::ssize(line) > width) line.resize(static_cast<std::size_t>(std::max(width, 0)));
  return line;
}

ProgressBar::ProgressBar() : terminal_(::isatty(STDERR_FILENO) == 1) {}

void ProgressBar::show(const ProgressState& state) {
  if (!terminal_) return;
  const auto now = std::chrono::steady_clock::now();
  if (shown_ && now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  shown_ = true;
  // One column stays free: some terminals wrap when the last one is written.
  fmt::print(stderr, "\r\x1b[K{}", progress_line(state, terminal_width() - 1));
  std::fflush(stderr);
}

void ProgressBar::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  shown_ = false;
}

}  // namespace nibble
