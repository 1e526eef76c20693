#include "graph/network/memory_plan.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace nibble {
namespace {

TEST(MemoryPlan, SharesBytesOnlyBetweenTensorsThatNeverLiveTogether) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 200; ++i) {
    struct Tensor {
      std::size_t bytes;
      int first;
      int last;
    };
    MemoryPlan plan;
    std::vector<Tensor> tensors;
    std::size_t total = 0;
    for (int k = 0; k < 12; ++k) {
      const int first = static_cast<int>(random() % 10);
      tensors.push_back({64 * (1 + random() % 20), first, first + static_cast<int>(random() % 4)});
      plan.add(tensors.back().bytes, tensors.back().first, tensors.back().last);
      total += tensors.back().bytes;
    }
    plan.place();
    EXPECT_LE(plan.bytes(), total);
    for (std::size_t a = 0; a < tensors.size(); ++a) {
      EXPECT_LE(plan.offset(a) + tensors[a].bytes, plan.bytes());
      EXPECT_EQ(plan.offset(a) % 64, 0U);
      for (std::size_t b = 0; b < a; ++b) {
        const bool together = tensors[a].first <= tensors[b].last && tensors[b].first <= tensors[a].last;
        const bool apart = plan.offset(a) + tensors[a].bytes <= plan.offset(b) ||
                           plan.offset(b) + tensors[b].bytes <= plan.offset(a);
        EXPECT_TRUE(!together || apart);
      }
    }
  }
}

TEST(MemoryPlan, ReusesWhatIsFree) {
  MemoryPlan plan;
  const std::size_t a = plan.add(100, 0, 1);
  const std::size_t b = plan.add(100, 1, 2);
  const std::size_t c = plan.add(100, 2, 3);
  plan.extend(a, 1);
  plan.place();
  EXPECT_EQ(plan.bytes(), 256U);
  EXPECT_EQ(plan.offset(a), plan.offset(c));
  EXPECT_NE(plan.offset(a), plan.offset(b));
}

}  // namespace
}  // namespace nibble
