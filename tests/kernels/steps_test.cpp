#include "kernels/steps.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

ConvolutionShape shape_of(int size) {
  return {64, 64, 3, 1, 1, size, size};
}

TEST(Steps, FitWhileOffsetsDo) {
  constexpr int kGroups = 22;
  EXPECT_TRUE(steps_fit(shape_of(32), kGroups, 9));
  // 768 bytes for each position and group: 356 squared positions stay below 2^31, 357 squared do not.
  EXPECT_TRUE(steps_fit(shape_of(356), kGroups, 9));
  EXPECT_FALSE(steps_fit(shape_of(357), kGroups, 9));
  EXPECT_FALSE(steps_fit(shape_of(2'000'000'000), kGroups, 9));
}

TEST(Steps, FitWhileTheyAndTheirRunsAreFew) {
  EXPECT_TRUE(steps_fit(shape_of(8), kMaximumSteps / 9, 1024));
  EXPECT_FALSE(steps_fit(shape_of(8), kMaximumSteps / 9 + 1, 1024));
  EXPECT_TRUE(steps_fit(shape_of(8), 22, 3));
  EXPECT_FALSE(steps_fit(shape_of(8), 22, 1));
  EXPECT_FALSE(steps_fit(shape_of(8), 22, 0));
}

}  // namespace
}  // namespace nibble
