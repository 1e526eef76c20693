#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/convolution_kernel.h"

namespace nibble {

/// Threads that work on one image, each in memory of its own: what others need of its results goes through
/// messages, so that no cache line but theirs is written by one core and read by another.
///
/// All threads of a team take the same turns: fill outgoing(), publish(), work on, wait(), read incoming().
class ThreadTeam {
 public:
  ThreadTeam(int threads, std::size_t message_bytes);

  int threads() const { return threads_; }
  /// What `thread` will publish next. Its last turn must be over: wait() has returned.
  std::uint8_t* outgoing(int thread) { return message(thread, members_[thread].turn.load() + 1); }
  void publish(int thread);
  /// Until all have published what `thread` published last, of their own.
  void wait(int thread) const;
  /// What `from` published in the last turn of `thread`; valid until `thread` publishes again.
  const std::uint8_t* incoming(int thread, int from) { return message(from, members_[thread].turn.load()); }

 private:
  static constexpr std::size_t kApart = 128;  ///< bytes; cores fetch lines in pairs
  struct alignas(kApart) Member {
    std::atomic<std::uint64_t> turn{0};  ///< how often this thread has published; only it writes
  };
  /// Two messages of each thread take turns: it writes the one of turn n + 2 when all have published turn n +
  /// 1, and they do that after they have read the one of turn n.
  std::uint8_t* message(int thread, std::uint64_t turn) {
    return messages_.data() + (2 * static_cast<std::size_t>(thread) + turn % 2) * message_bytes_;
  }

  int threads_;
  std::size_t message_bytes_;
  std::unique_ptr<Member[]> members_;
  AlignedVector<std::uint8_t> messages_;
};

}  // namespace nibble
