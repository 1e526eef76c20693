#include "graph/network/thread_team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace nibble {
namespace {

/// Threads that are slow at random read what the others said in this very turn, although those go on.
TEST(ThreadTeam, BringsEveryMessageOfATurnToEveryThread) {
  constexpr int kThreads = 5;  // more than there are cores, most likely
  constexpr std::uint64_t kTurns = 3000;
  constexpr std::size_t kBytes = 200;
  ThreadTeam team(kThreads, kBytes);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::minstd_rand random(static_cast<unsigned>(thread) + 1);
      const auto byte_of = [](std::uint64_t turn, int of) { return static_cast<int>((turn * 7 + of) % 251); };
      for (std::uint64_t turn = 0; turn < kTurns; ++turn) {
        std::memset(team.outgoing(thread), byte_of(turn, thread), kBytes);
        team.publish(thread);
        if (random() % 64 == 0) std::this_thread::yield();
        team.wait(thread);
        if (random() % 64 == 0) std::this_thread::yield();
        for (int from = 0; from < kThreads; ++from) {
          const std::uint8_t* message = team.incoming(thread, from);
          for (std::size_t i = 0; i < kBytes; ++i) wrong += message[i] != byte_of(turn, from);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace nibble
