#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace nibble {

/// Lets threads that work on one image wait for each other between layers, which take a few microseconds.
/// Each thread writes one counter and reads the others', so no line travels twice. OpenMP's own barrier
/// enters the kernel each time to wake threads that only spin.
class Turns {
 public:
  explicit Turns(int threads)
      : threads_(threads), counters_(new Counter[static_cast<std::size_t>(threads)]) {}

  /// As if nobody had taken a turn; for a team that may have other threads than the last one. By one thread,
  /// while the others do nothing.
  void reset() {
    for (int thread = 0; thread < threads_; ++thread) {
      counters_[thread].turn.store(0, std::memory_order_relaxed);
    }
  }

  /// How many turns `thread` has finished, modulo 2^32.
  std::uint32_t finished(int thread) const { return counters_[thread].turn.load(std::memory_order_relaxed); }

  /// Whoever waits for `thread` sees what it wrote before.
  void finish(int thread) {
    counters_[thread].turn.store(finished(thread) + 1, std::memory_order_release);
    counters_[thread].turn.notify_all();
  }

  /// Until threads 0 to `team` - 1 have finished as many turns as `thread`.
  void wait(int thread, int team) const {
    const std::uint32_t turn = finished(thread);
    for (int other = 0; other < team; ++other) wait_for(counters_[other].turn, turn);
  }

 private:
  static constexpr std::size_t kApart = 128;  ///< bytes; cores fetch lines in pairs
  struct alignas(kApart) Counter {
    std::atomic<std::uint32_t> turn{0};  ///< 32 bits are what the kernel can wait for
  };

  static void wait_for(const std::atomic<std::uint32_t>& other, std::uint32_t turn) {
    const auto is_behind = [turn](std::uint32_t seen) { return static_cast<std::int32_t>(seen - turn) < 0; };
    // About 100 us, several layers: whoever is later than that has lost its core.
    constexpr int spins = 4000;
    for (int i = 0; i < spins; ++i) {
      if (!is_behind(other.load(std::memory_order_acquire))) return;
      __builtin_ia32_pause();
    }
    for (std::uint32_t seen; is_behind(seen = other.load(std::memory_order_acquire));) other.wait(seen);
  }

  int threads_;
  std::unique_ptr<Counter[]> counters_;
};

}  // namespace nibble
