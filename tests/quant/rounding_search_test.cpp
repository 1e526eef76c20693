#include "quant/rounding_search.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "graph/data/random.h"

namespace nibble {
namespace {

constexpr int kImages = 3;

Convolution small_convolution() {
  Convolution shape{};
  shape.name = "small";
  shape.input_channels = 5;
  shape.output_channels = 1;
  shape.kernel = 3;
  shape.stride = 2;
  shape.padding = 1;
  shape.input_height = 9;
  shape.input_width = 6;
  return shape;
}

Integers random_map(const Convolution& shape, std::uint64_t seed) {
  SplitMix64 random(seed);
  Integers values(
      static_cast<std::size_t>(kImages * shape.input_height * shape.input_width * shape.input_channels));
  int last = 128;
  for (std::int16_t& value : values) {
    last = (3 * last + static_cast<int>(random.below(256))) / 4;  // neighbouring channels are alike
    value = static_cast<std::int16_t>(last);
  }
  return values;
}

/// What tap `tap` reads for output pixel (row, column) of image `image`.
double read_by(const Convolution& shape, const Integers& map, int image, int row, int column, int tap) {
  const int channel = tap % shape.input_channels;
  const int position = tap / shape.input_channels;
  const int from_row = row * shape.stride - shape.padding + position / shape.kernel;
  const int from_column = column * shape.stride - shape.padding + position % shape.kernel;
  if (from_row < 0 || from_row >= shape.input_height || from_column < 0 || from_column >= shape.input_width) {
    return 0;
  }
  return map[static_cast<std::size_t>(
      ((image * shape.input_height + from_row) * shape.input_width + from_column) * shape.input_channels +
      channel)];
}

std::vector<float> random_weights(std::size_t taps, std::uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<float> weights(taps);
  for (float& weight : weights) weight = static_cast<float>(random.below(2001)) / 100.0F - 10.0F;
  return weights;
}

TEST(TapCovariance, IsThatOfAllPatches) {
  const Convolution shape = small_convolution();
  const Integers map = random_map(shape, 4);
  const int taps = shape.kernel * shape.kernel * shape.input_channels;
  const std::vector<double> covariance = tap_covariance(shape, map);
  ASSERT_EQ(covariance.size(), static_cast<std::size_t>(taps * taps));
  for (int i = 0; i < taps; ++i) {
    for (int j = 0; j < taps; ++j) {
      double sum_i = 0;
      double sum_j = 0;
      double products = 0;
      int count = 0;
      for (int image = 0; image < kImages; ++image) {
        for (int row = 0; row < shape.output_height(); ++row) {
          for (int column = 0; column < shape.output_width(); ++column, ++count) {
            const double a = read_by(shape, map, image, row, column, i);
            const double b = read_by(shape, map, image, row, column, j);
            sum_i += a;
            sum_j += b;
            products += a * b;
          }
        }
      }
      const double wanted = products / count - sum_i / count * sum_j / count;
      EXPECT_NEAR(covariance[static_cast<std::size_t>(i * taps + j)], wanted, 1e-7) << i << " " << j;
    }
  }
}

TEST(TapCovariance, DoesNotDependOnThreads) {
  const Convolution shape = small_convolution();
  const Integers map = random_map(shape, 9);
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<double> one = tap_covariance(shape, map);
  omp_set_num_threads(3);
  const std::vector<double> three = tap_covariance(shape, map);
  omp_set_num_threads(before);
  EXPECT_EQ(one, three);
}

struct Width {
  int bits;
  double scale;
};

class RoundingSearch : public testing::TestWithParam<Width> {
 protected:
  WeightRule rule() const {
    WeightRule rule;
    rule.bits = GetParam().bits;
    return rule;
  }
};

/// Where the taps are independent, no error can make up for another.
TEST_P(RoundingSearch, IsNearestForIndependentTaps) {
  constexpr std::size_t taps = 40;
  const std::vector<float> weights = random_weights(taps, 7);
  std::vector<double> covariance(taps * taps);
  for (std::size_t i = 0; i < taps; ++i) covariance[i * taps + i] = 1.0 + static_cast<double>(i);
  std::vector<std::int16_t> found(taps, rule().bits == 2 ? kDefaultLevels[2] : std::int16_t{0});
  const double scale = search_rounding(weights, GetParam().scale, covariance, rule(), found);
  std::vector<std::int16_t> nearest(taps);
  round_weights(weights, scale, rule(), nearest);
  EXPECT_EQ(found, nearest);
}

/// Correlated taps: never worse than nearest rounding, here better, and no single move lessens what is left.
TEST_P(RoundingSearch, EndsWhereNoMoveHelps) {
  const Convolution shape = small_convolution();
  const std::vector<double> covariance = tap_covariance(shape, random_map(shape, 5));
  const auto taps = static_cast<std::size_t>(shape.kernel * shape.kernel * shape.input_channels);
  const std::vector<float> weights = random_weights(taps, 8);
  std::vector<std::int16_t> nearest(taps);
  round_weights(weights, GetParam().scale, rule(), nearest);
  std::vector<std::int16_t> found = nearest;
  const double scale = search_rounding(weights, GetParam().scale, covariance, rule(), found);
  const double error = output_error(weights, scale, found, covariance);
  EXPECT_LT(error, 0.9 * output_error(weights, GetParam().scale, nearest, covariance));

  const int limit = rule().bits == 2 ? kDefaultLevels[3] : (1 << (rule().bits - 1)) - 1;
  for (std::size_t i = 0; i < taps; ++i) {
    EXPECT_LE(std::abs(found[i]), limit);
    if (rule().bits == 2) {
      EXPECT_NE(std::find(kDefaultLevels.begin(), kDefaultLevels.end(), found[i]), kDefaultLevels.end());
      continue;
    }
    for (const int move : {-1, 1}) {
      if (std::abs(found[i] + move) > limit) continue;
      std::vector<std::int16_t> moved = found;
      moved[i] = static_cast<std::int16_t>(moved[i] + move);
      EXPECT_GE(output_error(weights, scale, moved, covariance), error * (1 - 1e-6)) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, RoundingSearch, testing::Values(Width{8, 0.1}, Width{4, 1.4}, Width{2, 3.0}),
                         [](const auto& width) { return "bits" + std::to_string(width.param.bits); });

}  // namespace
}  // namespace nibble
