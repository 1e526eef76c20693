#include "train/progress.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

ProgressState state() {
  return {.epoch = 12,
          .epochs = 200,
          .step = 391,
          .steps = 782,
          .loss = 0.34567,
          .accuracy = 0.8812,
          .learning_rate = 0.01,
          .images_per_second = 684.4,
          .seconds_left = 3753};
}

TEST(Progress, SaysEverythingOnALineOfATerminal) {
  EXPECT_EQ(progress_line(state(), 79),
            "epoch 12/200 391/782 loss 0.3457 88.12 % lr 0.01 684 images/s 1:02:33 left");
  EXPECT_EQ(progress_line(state(), 85),
            "epoch 12/200 [====    ] 391/782 loss 0.3457 88.12 % lr 0.01 684 images/s 1:02:33 left");
}

TEST(Progress, NeverPassesTheWidth) {
  for (int width = 0; width < 200; ++width) EXPECT_LE(std::ssize(progress_line(state(), width)), width);
}

TEST(Progress, WritesTimesAsAClock) {
  EXPECT_EQ(clock_time(0), "0:00");
  EXPECT_EQ(clock_time(59.6), "1:00");
  EXPECT_EQ(clock_time(3599), "59:59");
  EXPECT_EQ(clock_time(36000), "10:00:00");
}

}  // namespace
}  // namespace nibble
