#include "kernels/features.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace nibble {
namespace {

template <typename Value>
class PoolOf : public testing::Test {};
using Values = testing::Types<std::uint8_t, std::uint16_t>;
TYPED_TEST_SUITE(PoolOf, Values);

/// Any number of positions, random values and the largest ones; what lies between two planes does not count.
TYPED_TEST(PoolOf, SumsPositionLanes) {
  constexpr int kChannels = 3;
  constexpr int kStride = 101;
  const int largest = sizeof(TypeParam) == 1 ? 255 : 32767;
  std::mt19937 random(5);
  for (int positions = 1; positions <= 70; ++positions) {
    for (const bool all_largest : {false, true}) {
      std::vector<TypeParam> planes(kChannels * kStride);
      for (TypeParam& value : planes) {
        value = static_cast<TypeParam>(all_largest ? largest
                                                   : static_cast<int>(random() % 32768) % (largest + 1));
      }
      std::int32_t sums[kChannels];
      pool_position_lanes(planes.data(), positions, kStride, kChannels, sums);
      for (int channel = 0; channel < kChannels; ++channel) {
        const TypeParam* plane = planes.data() + channel * kStride;
        EXPECT_EQ(sums[channel], std::accumulate(plane, plane + positions, 0)) << positions << " positions";
      }
    }
  }
}

}  // namespace
}  // namespace nibble
