#include "graph/network/thread_team.h"

#include <thread>

namespace nibble {
namespace {

/// About 100 us: several layers. Whoever is later than that does not run at the moment.
constexpr int kSpins = 4000;

}  // namespace

ThreadTeam::ThreadTeam(int threads, std::size_t message_bytes)
    : threads_(threads),
      message_bytes_((message_bytes + kApart - 1) / kApart * kApart),
      members_(std::make_unique<Member[]>(static_cast<std::size_t>(threads))),
      messages_(2 * static_cast<std::size_t>(threads) * message_bytes_) {}

void ThreadTeam::publish(int thread) {
  members_[thread].turn.store(members_[thread].turn.load(std::memory_order_relaxed) + 1,
                              std::memory_order_release);
}

void ThreadTeam::wait(int thread) const {
  const std::uint64_t turn = members_[thread].turn.load(std::memory_order_relaxed);
  for (int other = 0; other < threads_; ++other) {
    for (int spins = 0; members_[other].turn.load(std::memory_order_acquire) < turn; ++spins) {
      if (spins < kSpins) {
        __builtin_ia32_pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
}

}  // namespace nibble
