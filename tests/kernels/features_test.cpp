#include "kernels/features.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/format.h"
#include "tests/kernels/guarded_memory.h"

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

/// Any number of images as quads8; nothing is read before or behind them, no lane of another image written.
TEST(LoadPixels, SpreadsImagesOverLanes) {
  constexpr int kHeight = 3;
  constexpr int kWidth = 5;
  constexpr int kPositions = kHeight * kWidth;
  constexpr int kQuad = 4;
  constexpr std::uint8_t kUntouched = 0x5A;
  std::mt19937 random(8);
  for (const auto guard : {GuardedMemory::Guard::behind, GuardedMemory::Guard::before}) {
    for (const int lanes : {1, 11}) {
      for (int count = 1; count <= lanes; ++count) {
        GuardedMemory images(static_cast<std::size_t>(count * kPositions * 3), guard);
        for (std::size_t i = 0; i < images.size(); ++i)
          images.data()[i] = static_cast<std::uint8_t>(random());
        const std::ptrdiff_t position_bytes = kQuad * lanes;
        std::vector<std::uint8_t> map(static_cast<std::size_t>(kPositions * position_bytes), kUntouched);
        load_pixels(images.data(), count, kHeight, kWidth, kQuads8, {map.data(), position_bytes, 0},
                    kWidth * position_bytes);
        for (int i = 0; i < kPositions * lanes * kQuad; ++i) {
          const int c = i % kQuad;
          const int lane = i / kQuad % lanes;
          const int position = i / kQuad / lanes;
          const int pixel = (lane * kPositions + position) * 3 + c;
          const int expected = lane >= count ? kUntouched : c == 3 ? 0 : images.data()[pixel];
          ASSERT_EQ(map[static_cast<std::size_t>(i)], expected)
              << "image " << lane << " of " << count << ", position " << position << ", byte " << c;
        }
      }
    }
  }
}

template <typename Accumulator>
class LinearOf : public testing::Test {};
using Accumulators = testing::Types<std::int32_t, std::int64_t>;
TYPED_TEST_SUITE(LinearOf, Accumulators);

/// Any number of images, sums up to the largest word and beyond it, weights of both signs.
TYPED_TEST(LinearOf, AddsUpProducts) {
  constexpr int kChannels = 5;
  constexpr int kClasses = 3;
  const std::vector<std::int16_t> weights = {127, -127, 1, -1, 0, -128, 64, 3, -5, 9, -127, -126, 125, 2, 7};
  const std::vector<float> scale = {1.0F, 0.5F, 2.0F};
  const std::vector<float> offset = {0.0F, -3.0F, 1.0F};
  std::mt19937 random(7);
  for (const int lanes : {1, 4, 16, 24, 64}) {
    for (const std::int32_t largest : {32767, 32768, 70000}) {
      std::vector<std::int32_t> sums(static_cast<std::size_t>(kChannels * lanes));
      for (std::int32_t& sum : sums) sum = static_cast<std::int32_t>(random()) & 0x7FFF;
      for (std::size_t i = 0; i < sums.size(); i += 3) sums[i] = largest;
      for (int images = 1; images <= lanes; ++images) {
        std::vector<float> logits(static_cast<std::size_t>(images * kClasses));
        linear<TypeParam>(sums.data(), kChannels, lanes, images, weights, scale, offset, logits.data());
        for (int image = 0; image < images; ++image) {
          for (int k = 0; k < kClasses; ++k) {
            std::int64_t expected = 0;
            for (int c = 0; c < kChannels; ++c) {
              expected += std::int64_t{sums[static_cast<std::size_t>(c * lanes + image)]} *
                          weights[static_cast<std::size_t>(k * kChannels + c)];
            }
            const auto index = static_cast<std::size_t>(k);
            ASSERT_EQ(logits[static_cast<std::size_t>(image * kClasses + k)],
                      static_cast<float>(expected) * scale[index] + offset[index])
                << "image " << image << " of " << images << ", " << lanes << " lanes, sums up to " << largest;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
