#pragma once

#include <atomic>
#include <exception>

namespace nibble {

/// The first exception of a parallel region, which none may leave.
class FirstFailure {
 public:
  /// Runs `body`, unless one has failed: then threads only pass the region's barriers.
  template <typename Body>
  void guard(const Body& body) {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      body();
    } catch (...) {
      if (!failed_.exchange(true)) failure_ = std::current_exception();
    }
  }

  /// Behind the region.
  void rethrow() const {
    if (failed_) std::rethrow_exception(failure_);
  }

  /// Before the next region.
  void reset() { failed_ = false; }

 private:
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
};

}  // namespace nibble
