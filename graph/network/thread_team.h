#pragma once

#include <cstddef>
#include <cstdint>

#include "graph/network/turns.h"
#include "kernels/convolution_kernel.h"

namespace nibble {

/// Threads that work on one image, each in memory of its own: what others need of its results goes through
/// messages, so that no cache line but theirs is written by one core and read by another.
///
/// All threads of a team take the same turns: fill outgoing(), publish(), work on, wait(), read incoming().
class ThreadTeam {
 public:
  ThreadTeam(int threads, std::size_t message_bytes)
      : threads_(threads),
        message_bytes_((message_bytes + kApart - 1) / kApart * kApart),
        turns_(threads),
        messages_(2 * static_cast<std::size_t>(threads) * message_bytes_) {}

  int threads() const { return threads_; }
  /// What `thread` will publish next. Its last turn must be over: wait() has returned.
  std::uint8_t* outgoing(int thread) { return message(thread, turns_.finished(thread) + 1); }
  void publish(int thread) { turns_.finish(thread); }
  /// Until all have published what `thread` published last, of their own.
  void wait(int thread) const { turns_.wait(thread, threads_); }
  /// What `from` published in the last turn of `thread`; valid until `thread` publishes again.
  const std::uint8_t* incoming(int thread, int from) { return message(from, turns_.finished(thread)); }

 private:
  static constexpr std::size_t kApart = 128;  ///< bytes; cores fetch lines in pairs
  /// Two messages of each thread take turns: it writes the one of turn n + 2 when all have published turn n +
  /// 1, and they do that after they have read the one of turn n.
  std::uint8_t* message(int thread, std::uint32_t turn) {
    return messages_.data() + (2 * static_cast<std::size_t>(thread) + turn % 2) * message_bytes_;
  }

  int threads_;
  std::size_t message_bytes_;
  Turns turns_;
  AlignedVector<std::uint8_t> messages_;
};

}  // namespace nibble
