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

/// Maps of whole cache lines and of less; up to more positions than the sums of u8 hold in 16 bits.
TYPED_TEST(PoolOf, SumsImageLanes) {
  const int largest = sizeof(TypeParam) == 1 ? 255 : 32767;
  std::mt19937 random(6);
  for (const int channels : {1, 5, 12}) {
    for (const int lanes : {1, 16, 64}) {
      for (const int positions : {1, 64, 257, 258, 600}) {
        const int count = channels * lanes;
        std::vector<TypeParam> map(static_cast<std::size_t>(positions * count));
        for (std::size_t i = 0; i < map.size(); ++i) {  // every other channel's are the largest
          const bool is_largest = i / static_cast<std::size_t>(lanes) % 2 == 0;
          map[i] = static_cast<TypeParam>(is_largest ? largest
                                                     : static_cast<int>(random() % 32768) % (largest + 1));
        }
        std::vector<std::int32_t> sums(static_cast<std::size_t>(count), -1);
        pool_image_lanes(map.data(), positions, channels, lanes, sums.data());
        for (int i = 0; i < count; ++i) {
          std::int32_t expected = 0;
          for (int position = 0; position < positions; ++position) {
            expected += map[static_cast<std::size_t>(position * count + i)];
          }
          ASSERT_EQ(sums[static_cast<std::size_t>(i)], expected)
              << positions << " positions of " << channels << " channels, " << lanes << " lanes";
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
