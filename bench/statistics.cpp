#include "bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble {

Interval wilson_interval(std::int64_t successes, std::int64_t trials) {
  constexpr double z = 1.959963984540054;  // 97.5 % of the normal distribution lie below it
  const auto n = static_cast<double>(trials);
  const double p = static_cast<double>(successes) / n;
  const double centre = (p + z * z / (2 * n)) / (1 + z * z / n);
  const double half = z / (1 + z * z / n) * std::sqrt(p * (1 - p) / n + z * z / (4 * n * n));
  return {std::max(0.0, centre - half), std::min(1.0, centre + half)};
}

double mcnemar_exact_p(std::int64_t only_first, std::int64_t only_second) {
  const std::int64_t n = only_first + only_second;
  const std::int64_t smaller = std::min(only_first, only_second);
  // Twice the lower tail of the binomial distribution (n, 1/2); logarithms, since 2^-n underflows.
  double tail = 0;
  for (std::int64_t k = 0; k <= smaller; ++k) {
    const double log_choose = std::lgamma(static_cast<double>(n) + 1) -
                              std::lgamma(static_cast<double>(k) + 1) -
                              std::lgamma(static_cast<double>(n - k) + 1);
    tail += std::exp(log_choose - static_cast<double>(n) * std::log(2.0));
  }
  return std::min(1.0, 2 * tail);
}

double rank_sum_p(std::span<const double> first, std::span<const double> second) {
  std::vector<std::pair<double, bool>> values;  // and whether it is of `second`
  for (const double value : first) values.emplace_back(value, false);
  for (const double value : second) values.emplace_back(value, true);
  std::sort(values.begin(), values.end());
  // Twice the rank, so that ties, which share the mean of their ranks, stay integers.
  std::vector<std::size_t> doubled(values.size());
  std::size_t observed = 0;
  for (std::size_t i = 0; i < values.size();) {
    std::size_t end = i;
    while (end < values.size() && values[end].first == values[i].first) ++end;
    for (std::size_t k = i; k < end; ++k) {
      doubled[k] = i + end + 1;
      if (values[k].second) observed += doubled[k];
    }
    i = end;
  }
  const std::size_t count = values.size();
  if (count > 40) {
    const auto n = static_cast<double>(count);
    const auto chosen = static_cast<double>(second.size());
    double variance = 0;
    for (const std::size_t rank : doubled) {
      const double deviation = static_cast<double>(rank) / 2 - (n + 1) / 2;
      variance += deviation * deviation;
    }
    variance *= chosen * (n - chosen) / (n * (n - 1));
    if (variance == 0) return 1;
    const double centred = static_cast<double>(observed) / 2 - chosen * (n + 1) / 2 - 0.5;
    return 0.5 * std::erfc(centred / std::sqrt(2 * variance));
  }
  // ways[k][s]: choices of k values whose doubled ranks sum to s.
  const std::size_t largest = count * (count + 1);
  std::vector<std::vector<double>> ways(second.size() + 1, std::vector<double>(largest + 1));
  ways[0][0] = 1;
  for (const std::size_t rank : doubled) {
    for (std::size_t k = second.size(); k >= 1; --k) {
      for (std::size_t sum = largest; sum >= rank; --sum) ways[k][sum] += ways[k - 1][sum - rank];
    }
  }
  const std::vector<double>& all = ways.back();
  const double total = std::accumulate(all.begin(), all.end(), 0.0);
  return std::accumulate(all.begin() + static_cast<std::ptrdiff_t>(observed), all.end(), 0.0) / total;
}

double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double standard_deviation(std::span<const double> values) {
  if (values.size() < 2) return 0;
  const double centre = mean(values);
  double sum = 0;
  for (const double value : values) sum += (value - centre) * (value - centre);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

double quantile(std::vector<double> values, double q) {
  const auto rank = static_cast<std::size_t>(std::ceil(q * static_cast<double>(values.size())));
  const std::size_t index = std::min(values.size() - 1, rank == 0 ? 0 : rank - 1);
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(index), values.end());
  return values[index];
}

double median(std::vector<double> values) {
  const double lower = quantile(values, 0.5);
  if (values.size() % 2 == 1) return lower;
  std::sort(values.begin(), values.end());
  return (lower + values[values.size() / 2]) / 2;
}

}  // namespace nibble
