#include "kernels/requantize.h"

#include <gtest/gtest.h>

#include <cfenv>
#include <cmath>
#include <random>

#include "kernels/thresholds.h"

namespace nibble {
namespace {

TEST(Requantize, RoundsHalvesToEvenAndClamps) {
  const QuantizedRange u8 = activation_range(8);
  EXPECT_EQ(requantize(1, 0.5F, 0.0F, u8), 0);
  EXPECT_EQ(requantize(3, 0.5F, 0.0F, u8), 2);
  EXPECT_EQ(requantize(5, 0.5F, 0.0F, u8), 2);
  EXPECT_EQ(requantize(511, 0.5F, 0.0F, u8), 255);
  EXPECT_EQ(requantize(-1000, 1.0F, 0.0F, u8), 0);
  EXPECT_EQ(requantize(-1000, 1.0F, 0.0F, shortcut_range(8)), -128);
  EXPECT_EQ(requantize(-5, 0.5F, 0.0F, shortcut_range(8)), -2);
  EXPECT_EQ(requantize(std::int64_t{1} << 40, 1.0F, 0.0F, activation_range(16)), 32767);
}

TEST(Requantize, RoundsTheProductBeforeTheSum) {
  // 16777215 * (1 + 2^-23) is just below 16777217 and rounds to 16777216; fused, almost 1 would be left.
  const float scale = 1.0F + 0x1p-23F;
  EXPECT_EQ(scaled(16777215, scale, -16777216.0F), 0.0F);
  EXPECT_GT(std::fma(16777215.0F, scale, -16777216.0F), 0.9F);
}

TEST(Requantize, FusesTheResidual) {
  // The sum is next to a half: where residual * ratio is rounded first, it is the half itself, which goes to
  // 0.
  int different = 0;
  for (int residual = 1; residual <= 255; ++residual) {
    for (int step = 1; step <= 40; ++step) {
      const float ratio = std::ldexp(static_cast<float>(8388608 + 104729 * step), -25);
      const auto rounded = static_cast<float>(residual) * ratio;
      const float offset = 0.5F - rounded;
      const double exact = residual * static_cast<double>(ratio) + static_cast<double>(offset);
      const int fused = static_cast<int>(std::nearbyint(static_cast<float>(exact)));
      EXPECT_EQ(requantize(0, 1.0F, offset, residual, ratio, activation_range(8)), fused);
      different += fused != 0;
    }
  }
  EXPECT_GT(different, 100);
}

TEST(Requantize, MakesFactorsInDoubleAndRoundsOnce) {
  EXPECT_EQ(
      requantize_scale(0.1F, 0.7F, 0.3F),
      static_cast<float>(static_cast<double>(0.1F) * static_cast<double>(0.7F) / static_cast<double>(0.3F)));
  EXPECT_EQ(scale_ratio(1.0F, 3.0F), static_cast<float>(1.0 / 3.0));
}

TEST(Thresholds, OfBytesEqualTheFormulaForEveryByte) {
  std::mt19937_64 random(5);
  for (int i = 0; i < 400; ++i) {
    for (const int bits : {2, 4}) {
      const float ratio = i == 0   ? 2.0F
                          : i == 1 ? 1e-6F
                                   : std::uniform_real_distribution<float>(1e-4F, 0.5F)(random);
      const auto thresholds = make_byte_thresholds(ratio, bits);
      ASSERT_EQ(thresholds.size(), static_cast<std::size_t>(activation_limit(bits)));
      for (int r = 0; r < 256; ++r) {
        int x = 0;
        for (const std::uint8_t threshold : thresholds) x += r > threshold;
        ASSERT_EQ(x, derive_input(r, ratio, bits)) << "r " << r << ", ratio " << ratio;
      }
    }
  }
}

TEST(Thresholds, OfSumsEqualTheFormulaForEveryReachableSum) {
  std::mt19937_64 random(6);
  for (int i = 0; i < 40; ++i) {
    const ConvolutionShape shape{i % 7 + 1, 3, 3, 1, 1, 4, 4};
    std::vector<std::int16_t> weights(3 * shape.filter_size());
    for (std::int16_t& weight : weights) weight = kDefaultLevels[random() % 4];
    const ConvolutionLayer layer{shape, 2, 2, kDefaultLevels, weights};
    std::vector<float> scale(3);
    std::vector<float> offset(3);
    for (std::size_t c = 0; c < 3; ++c) {
      scale[c] = std::exp2(std::uniform_real_distribution<float>(c == 2 ? -100.0F : -9.0F, 2.0F)(random));
      offset[c] = std::uniform_real_distribution<float>(-2.0F, 4.0F)(random);
    }
    const auto thresholds = make_sum_thresholds(layer, scale, offset, 16);
    ASSERT_EQ(thresholds.size(), 48U);
    for (std::size_t c = 0; c < 3; ++c) {
      const std::size_t filter = shape.filter_size();
      const SumRange sums = reachable_sums(std::span(weights).subspan(c * filter, filter), 2);
      for (auto sum = static_cast<std::int32_t>(sums.lowest); sum <= sums.highest; ++sum) {
        const int q = (sum > thresholds[c]) + (sum > thresholds[16 + c]) + (sum > thresholds[32 + c]);
        ASSERT_EQ(q, requantize(sum, scale[c], offset[c], activation_range(2))) << "sum " << sum;
      }
    }
  }
}

TEST(Thresholds, OfSumsAreRefusedWhereTheyWouldNotFit) {
  const std::vector<std::int16_t> weights(64 * 9, 127);
  const std::vector<float> one(1, 1.0F);
  const ConvolutionLayer layer{{64, 1, 3, 1, 1, 4, 4}, 8, 8, {}, weights};
  EXPECT_TRUE(make_sum_thresholds(layer, one, one, 16).empty());
}

}  // namespace
}  // namespace nibble
