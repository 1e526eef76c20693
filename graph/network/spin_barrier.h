#pragma once

#include <atomic>
#include <vector>

namespace nibble {

/// Lets threads that work on one image wait for each other between layers, which take a few microseconds.
/// OpenMP's own barrier enters the kernel each time to wake threads that only spin.
class SpinBarrier {
 public:
  /// For teams of at most `threads`.
  explicit SpinBarrier(int threads) : rounds_(static_cast<std::size_t>(threads)) {}

  /// Before a team begins, by one thread.
  void reset() {
    for (Round& each : rounds_) each.value.store(0, std::memory_order_relaxed);
  }

  /// Returns when threads 0 to `team` - 1 are here, and then all see what any of them wrote before.
  void wait(int thread, int team) {
    // Every thread writes one cache line and reads the others': no line travels twice.
    std::atomic<int>& own = rounds_[static_cast<std::size_t>(thread)].value;
    const int round = own.load(std::memory_order_relaxed) + 1;
    own.store(round, std::memory_order_release);
    own.notify_all();
    for (int other = 0; other < team; ++other)
      wait_for(rounds_[static_cast<std::size_t>(other)].value, round);
  }

 private:
  struct Round {
    alignas(64) std::atomic<int> value{0};
  };

  static void wait_for(const std::atomic<int>& other, int round) {
    // Some tens of microseconds; whoever has not come by then has lost its core.
    constexpr int spins = 1000;
    for (int i = 0; i < spins; ++i) {
      if (other.load(std::memory_order_acquire) >= round) return;
      __builtin_ia32_pause();
    }
    for (int seen; (seen = other.load(std::memory_order_acquire)) < round;) other.wait(seen);
  }

  std::vector<Round> rounds_;  // the last one that a thread has begun to wait in
};

}  // namespace nibble
