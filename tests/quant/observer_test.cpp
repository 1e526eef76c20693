#include "quant/observer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "graph/network/error.h"

namespace nibble {
namespace {

/// Like activations behind a ReLU: half of them zero, the others half a bell with a few outliers.
std::vector<float> activations(std::size_t count, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = std::max(0.0F, normal(generator));
  for (std::size_t i = 0; i < count / 5000; ++i) values[i * 5000] *= 4;
  return values;
}

ValueHistogram histogram_of(const std::vector<float>& values) {
  ValueHistogram histogram;
  histogram.add(values);
  return histogram;
}

double squared_error(const std::vector<float>& values, double scale, int highest) {
  double sum = 0;
  for (const float value : values) {
    const double q = std::min(std::nearbyint(double{value} / scale), static_cast<double>(highest));
    sum += (double{value} - scale * q) * (double{value} - scale * q);
  }
  return sum / static_cast<double>(values.size());
}

TEST(ValueHistogram, DoesNotDependOnTheOrderOfTheValues) {
  std::vector<float> values = activations(20000, 1);
  values.push_back(0.001F);
  std::vector<float> ascending = values;
  std::sort(ascending.begin(), ascending.end());
  ValueHistogram one_by_one;
  for (const float& value : ascending) one_by_one.add({&value, 1});
  const ValueHistogram at_once = histogram_of(values);
  EXPECT_EQ(at_once.bins(), one_by_one.bins());
  EXPECT_EQ(at_once.bin_width(), one_by_one.bin_width());
  EXPECT_EQ(at_once.largest(), *std::max_element(values.begin(), values.end()));
  EXPECT_EQ(at_once.count(), values.size());
}

TEST(ValueHistogram, CountsEveryValueInItsBin) {
  const std::vector<float> values = {0.0F, -0.5F, 0.5F, 0.99F, 3.0F};
  const ValueHistogram histogram = histogram_of(values);
  ASSERT_EQ(histogram.bin_width(), 4.0 / ValueHistogram::kBins);
  EXPECT_EQ(histogram.bins()[0], 1U);
  EXPECT_EQ(histogram.bins()[ValueHistogram::kBins / 8], 2U);
  EXPECT_EQ(histogram.bins()[static_cast<std::size_t>(0.99F / 4 * ValueHistogram::kBins)], 1U);
  EXPECT_EQ(histogram.bins()[ValueHistogram::kBins / 4 * 3], 1U);
}

TEST(ValueHistogram, RefusesWhatIsNotFinite) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    ValueHistogram histogram;
    EXPECT_THROW(histogram.add(std::vector<float>{1, bad, 2}), InputError);
  }
}

TEST(ValueHistogram, EstimatesTheQuantizationError) {
  const std::vector<float> values = activations(50000, 2);
  const ValueHistogram histogram = histogram_of(values);
  for (const int highest : {3, 15, 255}) {
    for (const double bound : {1.0, 2.5, 6.0}) {
      const double exact = squared_error(values, bound / highest, highest);
      EXPECT_NEAR(histogram.quantization_error(bound / highest, highest) / exact, 1, 0.02)
          << highest << " " << bound;
    }
  }
}

TEST(Observer, MinmaxClipsNothing) {
  const std::vector<float> values = activations(20000, 3);
  EXPECT_EQ(minmax_bound(histogram_of(values), 255), double{*std::max_element(values.begin(), values.end())});
}

TEST(Observer, PercentileClipsOneInTenThousand) {
  std::vector<float> values = activations(100000, 4);
  const ValueHistogram histogram = histogram_of(values);
  const double bound = percentile_bound(histogram, 255);
  std::sort(values.begin(), values.end());
  // 10 of 100,000 values lie above the bound, up to the width of a bin.
  EXPECT_GE(bound, double{values[values.size() - 11]});
  EXPECT_LE(bound, double{values[values.size() - 11]} + 2 * histogram.bin_width());
}

TEST(Observer, MseIsAsGoodAsEveryBoundThatIsTried) {
  const std::vector<float> values = activations(50000, 5);
  const ValueHistogram histogram = histogram_of(values);
  for (const int highest : {3, 15, 255}) {
    const double error = squared_error(values, mse_bound(histogram, highest) / highest, highest);
    for (double bound = 0.05; bound <= double{histogram.largest()}; bound += 0.05) {
      EXPECT_LE(error, 1.02 * squared_error(values, bound / highest, highest)) << highest << " " << bound;
    }
  }
}

TEST(Observer, HistogramClipsOutliersAndKeepsUniformValues) {
  std::vector<float> uniform;
  for (int i = 0; i < 40000; ++i) uniform.push_back(static_cast<float>(i % 1000 + 1) / 1000);
  EXPECT_NEAR(histogram_bound(histogram_of(uniform), 255), 1.0, 0.01);
  uniform.push_back(50.0F);
  const double bound = histogram_bound(histogram_of(uniform), 15);
  EXPECT_LT(bound, 2.0);
  EXPECT_GE(bound, 0.9);
}

TEST(Observer, ScaleOfATensorOfZerosIsOne) {
  const ValueHistogram zeros = histogram_of(std::vector<float>(100));
  for (const Observer& observer : observers())
    EXPECT_EQ(choose_scale(observer, zeros, 255), 1.0F) << observer.name;
}

TEST(Observer, EveryScaleIsPositiveEvenForOneTinyValue) {
  const ValueHistogram tiny = histogram_of({0.0F, 1e-38F});
  for (const Observer& observer : observers())
    EXPECT_GT(choose_scale(observer, tiny, 32767), 0.0F) << observer.name;
}

TEST(Observer, UnknownNameListsTheOthers) {
  EXPECT_EQ(&find_observer("mse"), &observers()[3]);
  try {
    find_observer("median");
    FAIL();
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "there is no observer 'median'; choose one of minmax, histogram, percentile, mse");
  }
}

}  // namespace
}  // namespace nibble
