#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

/// SplitMix64 (Steele, Lea, Flood, 2014): 64 bits of state, every seed is a good one, the same everywhere.
class SplitMix64 {
 public:
  explicit constexpr SplitMix64(std::uint64_t state) : state_(state) {}

  constexpr std::uint64_t next() {
    state_ += 0x9e3779b97f4a7c15U;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }

  /// Uniform in 0..bound-1 without bias (Lemire, 2019: multiply, reject the short lower part). bound > 0.
  constexpr std::uint32_t below(std::uint32_t bound) {
    const std::uint32_t threshold = (0U - bound) % bound;
    for (;;) {
      const std::uint64_t product = (next() >> 32) * bound;
      if (static_cast<std::uint32_t>(product) >= threshold) return static_cast<std::uint32_t>(product >> 32);
    }
  }

  /// Uniform in [0, 1), a multiple of 2^-53.
  constexpr double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  std::uint64_t state_;
};

/// A seed for one purpose (an epoch, an image of an epoch) from several numbers: each step is SplitMix64's
/// finalizer, so neighbours have unrelated streams.
template <typename... Numbers>
constexpr std::uint64_t mix_seed(std::uint64_t seed, Numbers... numbers) {
  ((seed = SplitMix64(seed ^ SplitMix64(static_cast<std::uint64_t>(numbers)).next()).next()), ...);
  return seed;
}

/// A permutation of 0..count-1 that depends on nothing but its arguments: Fisher and Yates' shuffle from the
/// last place down, driven by SplitMix64(mix_seed(seed, epoch)).below.
std::vector<std::uint32_t> shuffled_order(int count, std::uint64_t seed, std::uint64_t epoch);

/// The same into memory that is there already.
void shuffle_order(std::vector<std::uint32_t>& order, int count, std::uint64_t seed, std::uint64_t epoch);

}  // namespace nibble
