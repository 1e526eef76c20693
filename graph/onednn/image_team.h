#pragma once

#include <omp.h>

#include <algorithm>

#include "graph/network/first_failure.h"
#include "graph/network/turns.h"

namespace nibble {

inline constexpr int kMostImageThreads = 16;  ///< that share the rows of an image: of a map of 32 rows
inline constexpr int kLeastRows = 2;          ///< of a thread that works on part of an image

/// part(first row, row behind the last) for each thread's part of an output of `rows` rows. Returns how many
/// parts there are.
template <typename Part>
int divide_rows(int rows, int threads, const Part& part) {
  const int parts = std::clamp(rows / kLeastRows, 1, std::min(threads, kMostImageThreads));
  for (int i = 0; i < parts; ++i) part(i * rows / parts, (i + 1) * rows / parts);
  return parts;
}

/// The threads of one image. None passes a step before all have finished it.
class ImageTeam {
 public:
  /// Before the parallel region. `turns`: of at least kMostImageThreads.
  explicit ImageTeam(Turns& turns) : turns_(turns) { turns_.reset(); }

  /// work(part) for the parts of the calling thread: the team may be smaller than asked for.
  template <typename Parts, typename Work>
  void step(const Parts& parts, const Work& work) {
    const auto thread = static_cast<std::size_t>(omp_get_thread_num());
    const auto threads = static_cast<std::size_t>(omp_get_num_threads());
    failure_.guard([&] {
      for (std::size_t part = thread; part < parts.size(); part += threads) work(parts[part]);
    });
    turns_.finish(omp_get_thread_num());
    turns_.wait(omp_get_thread_num(), omp_get_num_threads());
  }

  /// Behind the parallel region.
  void rethrow() const { failure_.rethrow(); }

 private:
  Turns& turns_;
  FirstFailure failure_;
};

}  // namespace nibble
