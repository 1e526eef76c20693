#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

struct Interval {
  double low;
  double high;
};

/// The 95 % interval of a proportion (Wilson, 1927), which stays inside 0..1 and is right near its ends.
/// 0 <= successes <= trials, trials > 0.
Interval wilson_interval(std::int64_t successes, std::int64_t trials);

/// McNemar's exact test, two-sided: the probability that two classifiers of equal accuracy differ at least
/// so one-sidedly. `only_first`, `only_second`: images that only one of them classifies rightly.
double mcnemar_exact_p(std::int64_t only_first, std::int64_t only_second);

/// The rank-sum test (Wilcoxon, 1945; Mann and Whitney, 1947), one-sided: the probability that `second` is at
/// least so much larger than `first` when both come from one distribution. Ties share their ranks; exact up
/// to 40 values together, then by the normal distribution. Neither may be empty.
double rank_sum_p(std::span<const double> first, std::span<const double> second);

double mean(std::span<const double> values);

/// The sample's standard deviation (n - 1); 0 for a single value.
double standard_deviation(std::span<const double> values);

/// The smallest value that at least a fraction `q` of the values do not exceed. `values` must not be empty.
double quantile(std::vector<double> values, double q);

/// The middle value; of an even count the mean of the two middle ones. `values` must not be empty.
double median(std::vector<double> values);

}  // namespace nibble
