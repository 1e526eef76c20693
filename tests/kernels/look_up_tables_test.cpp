#include "kernels/look_up_tables.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

namespace nibble {
namespace {

ConvolutionShape shape_of(int channels, int kernel) {
  return {channels, 16, kernel, 1, kernel / 2, 8, 8};
}

/// Every weight belongs to one step, whatever is left over; taps and shared steps lie where they say.
TEST(StepOrder, HasEveryWeightOnce) {
  for (const ActivationFormat& format : {kIndex2, kIndex3}) {
    for (const int kernel : {1, 3}) {
      for (int channels = 1; channels <= 67; ++channels) {
        for (const bool shares : {false, true}) {
          const StepOrder order(shape_of(channels, kernel), format, shares);
          std::set<std::pair<int, int>> found;
          for (int step = 0; step < order.count(); ++step) {
            for (int i = 0; i < format.channels; ++i) {
              const auto [tap, channel] = order.place(step, i);
              ASSERT_TRUE(found.emplace(tap, channel).second) << channels << " channels, step " << step;
            }
          }
          for (int tap = 0; tap < kernel * kernel; ++tap) {
            for (int channel = 0; channel < channels; ++channel) {
              ASSERT_EQ(found.count({tap, channel}), 1U) << channels << " channels, tap " << tap;
            }
            if (order.groups() == 0) continue;
            const int first = order.tap_step(tap / kernel, tap % kernel);
            ASSERT_EQ(order.place(first, 0).tap, tap);
            ASSERT_EQ(order.place(first, 0).channel, 0);
            ASSERT_EQ(order.minima_row_of(first), tap);
          }
          for (int row = 0; row < kernel && order.shared() != 0; ++row) {
            ASSERT_EQ(order.place(order.shared_step(row), 0).tap, row * kernel);
            ASSERT_EQ(order.place(order.shared_step(row), 0).channel, channels - order.shared());
            ASSERT_EQ(order.minima_row_of(order.shared_step(row)), order.shared_minima_row(row));
          }
        }
      }
    }
  }
}

/// 16 channels in groups of three: 48 steps of 9 taps, not 54; nothing is spared where nothing is left over.
TEST(StepOrder, SharesWhatIsLeftOver) {
  EXPECT_EQ(StepOrder(shape_of(16, 3), kIndex3, true).count(), 48);
  EXPECT_EQ(StepOrder(shape_of(32, 3), kIndex3, true).count(), 96);
  EXPECT_EQ(StepOrder(shape_of(64, 3), kIndex3, true).count(), 192);
  EXPECT_EQ(StepOrder(shape_of(48, 3), kIndex3, true).count(), 144);
  EXPECT_EQ(StepOrder(shape_of(16, 3), kIndex3, false).count(), 54);
  EXPECT_EQ(StepOrder(shape_of(16, 1), kIndex3, true).count(), 6);
}

}  // namespace
}  // namespace nibble
