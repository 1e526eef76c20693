#include "graph/data/random.h"

#include <numeric>
#include <utility>

namespace nibble {

std::vector<std::uint32_t> shuffled_order(int count, std::uint64_t seed, std::uint64_t epoch) {
  std::vector<std::uint32_t> order;
  shuffle_order(order, count, seed, epoch);
  return order;
}

void shuffle_order(std::vector<std::uint32_t>& order, int count, std::uint64_t seed, std::uint64_t epoch) {
  order.resize(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0U);
  SplitMix64 random(mix_seed(seed, epoch));
  for (std::uint32_t remaining = static_cast<std::uint32_t>(count); remaining > 1; --remaining) {
    std::swap(order[remaining - 1], order[random.below(remaining)]);
  }
}

}  // namespace nibble
