#include <algorithm>

#include "quant/observer.h"

namespace nibble {

/// PyTorch's HistogramObserver (its `_non_linear_param_search`) for a range that begins at zero: from the
/// largest value down, the bound moves to the next bin that loses another 1e-5 of the values, and stops as
/// soon as the estimated error grows. The estimate takes values as evenly spread inside each bin.
double histogram_bound(const ValueHistogram& seen, int highest) {
  constexpr double quantile_step = 1e-5;
  const double width = seen.bin_width();
  const auto& bins = seen.bins();
  const auto total = static_cast<double>(seen.count());

  // With a step `scale`, inside the range the error is that of values spread evenly between two integers,
  // scale^2 / 12; a clipped bin's is its distance from the bound.
  const auto error = [&](std::size_t end) {
    const double bound = static_cast<double>(end) * width;
    const double scale = bound / highest;
    double sum = 0;
    for (std::size_t i = 0; i < ValueHistogram::kBins; ++i) {
      if (bins[i] == 0 || i == 0) continue;  // bin 0 is almost only ReLU's exact zeros
      const double distance = (static_cast<double>(i) + 0.5) * width - bound;
      const double squared = i < end ? scale * scale / 12 : distance * distance;
      sum += static_cast<double>(bins[i]) * squared;
    }
    return sum;
  };

  std::size_t end = ValueHistogram::kBins;
  while (end > 1 && bins[end - 1] == 0) --end;
  double best = error(end);
  double lost = 0;
  double target = 0;
  std::size_t next = end;
  while (next > 1) {
    target += quantile_step * total;
    while (next > 1 && lost < target) lost += static_cast<double>(bins[--next]);
    const double candidate = error(next);
    if (candidate > best) break;
    best = candidate;
    end = next;
  }
  return std::min(static_cast<double>(end) * width, double{seen.largest()});
}

}  // namespace nibble
