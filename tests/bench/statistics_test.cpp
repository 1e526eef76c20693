#include "bench/statistics.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

// Expected values: statsmodels' proportion_confint(method="wilson") and exact fractions of binomial sums.

TEST(WilsonInterval, AgreesWithPublishedValues) {
  const Interval interval = wilson_interval(9173, 10000);
  EXPECT_NEAR(interval.low, 0.9117401216863086, 1e-12);
  EXPECT_NEAR(interval.high, 0.9225393932735246, 1e-12);
}

TEST(WilsonInterval, StaysInsideAtTheEnds) {
  EXPECT_EQ(wilson_interval(0, 10).low, 0);
  EXPECT_NEAR(wilson_interval(0, 10).high, 0.2775327998628892, 1e-12);
  EXPECT_NEAR(wilson_interval(10, 10).low, 0.7224672001371107, 1e-12);
  EXPECT_LE(wilson_interval(10, 10).high, 1);
}

TEST(McNemar, IsTheExactBinomialTest) {
  EXPECT_NEAR(mcnemar_exact_p(10, 40), 2.3861331676755526e-05, 1e-15);
  EXPECT_NEAR(mcnemar_exact_p(40, 10), 2.3861331676755526e-05, 1e-15);
  EXPECT_NEAR(mcnemar_exact_p(3, 7), 0.34375, 1e-12);
  EXPECT_NEAR(mcnemar_exact_p(0, 6), 0.03125, 1e-14);
  EXPECT_NEAR(mcnemar_exact_p(500, 600), 0.0028195449914364275, 1e-12);
}

TEST(McNemar, IsOneWithoutADifference) {
  EXPECT_DOUBLE_EQ(mcnemar_exact_p(0, 0), 1);
  EXPECT_DOUBLE_EQ(mcnemar_exact_p(5, 5), 1);
}

TEST(Spread, IsTheSamples) {
  const std::vector<double> values = {2, 4, 4, 4, 5, 5, 7, 9};
  EXPECT_DOUBLE_EQ(mean(values), 5);
  EXPECT_NEAR(standard_deviation(values), 2.138089935299395, 1e-14);
  EXPECT_EQ(standard_deviation(std::vector<double>{3}), 0);
}

TEST(Quantile, TakesRanks) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  EXPECT_EQ(quantile(values, 0.99), 99);
  EXPECT_EQ(quantile(values, 1), 100);
  EXPECT_EQ(quantile(values, 0), 1);
  EXPECT_EQ(quantile({7}, 0.99), 7);
  EXPECT_EQ(median(values), 50.5);
  EXPECT_EQ(median({3, 1, 2}), 2);
}

}  // namespace
}  // namespace nibble
