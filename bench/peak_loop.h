#pragma once

#include <cstdint>

namespace nibble {

/// Independent accumulators of a probe: more than latency times rate of any instruction here (4 x 2).
inline constexpr int kProbeAccumulators = 12;

/// Runs `step(accumulator)` about `steps` times, on each accumulator in turn; the registers hold everything.
template <typename Vector, typename Step>
inline __attribute__((always_inline)) void probe_loop(std::int64_t steps, Vector start, Step step) {
  Vector accumulators[kProbeAccumulators];
#pragma GCC unroll 12
  for (int k = 0; k < kProbeAccumulators; ++k) accumulators[k] = start;
  for (std::int64_t i = 0; i < steps; i += kProbeAccumulators) {
#pragma GCC unroll 12
    for (int k = 0; k < kProbeAccumulators; ++k) step(accumulators[k]);
  }
#pragma GCC unroll 12
  for (int k = 0; k < kProbeAccumulators; ++k) asm volatile("" : : "v"(accumulators[k]));
}

}  // namespace nibble
