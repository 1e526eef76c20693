#include "quant/weight_quantization.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "kernels/requantize.h"

namespace nibble {
namespace {

std::vector<float> bell(std::size_t count, std::uint32_t seed, float deviation = 0.1F) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

WeightRule rule_of(int bits, int input_channels = 1) {
  WeightRule rule;
  rule.bits = bits;
  rule.input_channels = input_channels;
  return rule;
}

double error_at(const std::vector<float>& weights, double scale, const WeightRule& rule) {
  std::vector<std::int16_t> integers(weights.size());
  return round_weights(weights, scale, rule, integers);
}

std::vector<int> values_of(const WeightRule& rule) {
  if (rule.bits == 2) return {rule.levels.begin(), rule.levels.end()};
  std::vector<int> values;
  for (int value = -weight_limit(rule.bits); value <= weight_limit(rule.bits); ++value)
    values.push_back(value);
  return values;
}

TEST(WeightQuantization, EveryIntegerIsTheNearestThatExists) {
  for (const int bits : {2, 4, 8}) {
    const WeightRule rule = rule_of(bits);
    const std::vector<float> weights = bell(500, 1);
    const double scale = 0.25 / values_of(rule).back();
    std::vector<std::int16_t> integers(weights.size());
    round_weights(weights, scale, rule, integers);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      double nearest = std::numeric_limits<double>::infinity();
      for (const int value : values_of(rule)) {
        nearest = std::min(nearest, std::fabs(double{weights[i]} - scale * value));
      }
      EXPECT_EQ(std::fabs(double{weights[i]} - scale * integers[i]), nearest) << bits << " " << weights[i];
    }
  }
}

TEST(WeightQuantization, ScaleHasTheLeastSquaredError) {
  for (const int bits : {2, 4, 8}) {
    const std::vector<float> weights = bell(144, 2);
    const WeightRule rule = rule_of(bits);
    const QuantizedLayer layer = quantize_weights(weights, std::vector<float>(1), rule, ScaleChoice::mse);
    const double error = error_at(weights, double{layer.weight_scale[0]}, rule);
    const double full = 0.5 / values_of(rule).back();
    // Between neighbours of the grid the error jumps with each weight that changes its integer, at 8 bits
    // by a few percent.
    for (double scale = full * 0.05; scale < full * 1.5; scale += full * 0.001) {
      EXPECT_LE(error, (bits == 8 ? 1.08 : 1.01) * error_at(weights, scale, rule)) << bits << " " << scale;
    }
  }
}

TEST(WeightQuantization, LargestMagnitudeBecomesTheLargestInteger) {
  const std::vector<float> weights = {0.1F, -0.8F, 0.4F, 0.0F};
  const QuantizedLayer layer =
      quantize_weights(weights, std::vector<float>(1), rule_of(8), ScaleChoice::largest);
  EXPECT_EQ(layer.weights, (std::vector<std::int16_t>{16, -127, 64, 0}));
  EXPECT_EQ(layer.weight_scale[0], static_cast<float>(double{0.8F} / 127));
}

TEST(WeightQuantization, ChannelsOfZerosGetTheirStandIn) {
  const std::vector<float> weights(18, 0.0F);
  const std::vector<float> bias = {1.0F, 2.0F};
  for (const int bits : {16, 8, 4, 2}) {
    const QuantizedLayer layer = quantize_weights(weights, bias, rule_of(bits), ScaleChoice::mse);
    EXPECT_EQ(layer.bias, bias);
    for (std::size_t channel = 0; channel < 2; ++channel) {
      EXPECT_EQ(layer.weight_scale[channel], bits == 2 ? 0x1p-100F : 1.0F);
      EXPECT_TRUE(is_zero_channel(layer, channel));
    }
    EXPECT_EQ(layer.weights, std::vector<std::int16_t>(18, bits == 2 ? 1 : 0));
  }
}

TEST(WeightQuantization, PairSafeLeavesNoUnsafePairAndMovesToTheNearestSafeOne) {
  WeightRule rule = rule_of(8, 3);
  rule.pair_limit = kPairLimit;
  const std::vector<float> weights = bell(27 * 3, 3, 60.0F);
  std::vector<std::int16_t> free(weights.size());
  std::vector<std::int16_t> safe(weights.size());
  round_weights(weights, 1.0, rule_of(8, 3), free);
  round_weights(weights, 1.0, rule, safe);
  EXPECT_GT(unsafe_pairs(free, 3), 0);
  EXPECT_EQ(unsafe_pairs(safe, 3), 0);
  for (std::size_t tap = 0; tap < weights.size(); tap += 3) {
    EXPECT_EQ(safe[tap + 2], free[tap + 2]);  // the third channel has no partner
    double nearest = std::numeric_limits<double>::infinity();
    for (int a = -127; a <= 127; ++a) {
      for (int b = -127; b <= 127; ++b) {
        if (std::max(a, 0) + std::max(b, 0) > 128 || std::min(a, 0) + std::min(b, 0) < -128) continue;
        nearest = std::min(nearest,
                           std::pow(double{weights[tap]} - a, 2) + std::pow(double{weights[tap + 1]} - b, 2));
      }
    }
    const double found =
        std::pow(double{weights[tap]} - safe[tap], 2) + std::pow(double{weights[tap + 1]} - safe[tap + 1], 2);
    EXPECT_DOUBLE_EQ(found, nearest) << tap;
  }
}

TEST(WeightQuantization, PairLimitIsWhatVpmaddubswHolds) {
  EXPECT_LE(255 * kPairLimit, 32767);
  EXPECT_GT(255 * (kPairLimit + 1), 32767);
}

TEST(WeightQuantization, RunLimitHoldsForAnyEightWeights) {
  // Eight products of the largest weights and activations fit s32.
  EXPECT_LE(std::int64_t{kRunLimit} * activation_limit(16), std::numeric_limits<std::int32_t>::max());
  WeightRule rule = rule_of(16);
  rule.run_limit = kRunLimit;
  std::vector<float> weights = bell(144, 4);
  std::fill_n(weights.begin(), 9, 0.3F);  // the worst case: nothing but large weights
  const QuantizedLayer layer = quantize_weights(weights, std::vector<float>(1), rule, ScaleChoice::largest);
  std::vector<int> magnitudes;
  for (const std::int16_t weight : layer.weights) magnitudes.push_back(std::abs(int{weight}));
  std::sort(magnitudes.rbegin(), magnitudes.rend());
  int sum = 0;
  for (int i = 0; i < 8; ++i) sum += magnitudes[static_cast<std::size_t>(i)];
  EXPECT_LE(sum, kRunLimit);
  EXPECT_GT(sum, kRunLimit * 99 / 100);  // no more was given away than needed
  EXPECT_GE(magnitudes[0], 2047);        // at least 12 bits are left
}

}  // namespace
}  // namespace nibble
