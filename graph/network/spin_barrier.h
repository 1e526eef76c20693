#pragma once

#include <atomic>

namespace nibble {

/// Lets threads that work on one image wait for each other between layers, which take a few microseconds.
/// OpenMP's own barrier enters the kernel each time to wake threads that only spin.
class SpinBarrier {
 public:
  /// Returns when `threads` threads are here, and then all see what any of them wrote before.
  void wait(int threads) {
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      round_.notify_all();
      return;
    }
    // Some tens of microseconds; whoever has not come by then has lost its core.
    constexpr int spins = 1000;
    for (int i = 0; i < spins; ++i) {
      if (round_.load(std::memory_order_acquire) != round) return;
      __builtin_ia32_pause();
    }
    round_.wait(round, std::memory_order_acquire);
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

}  // namespace nibble
