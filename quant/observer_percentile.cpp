#include <algorithm>

#include "quant/observer.h"

namespace nibble {

/// Clips the largest 0.01 % of the values, zeros included (Wu et al. 2020, arXiv:2004.09602).
double percentile_bound(const ValueHistogram& seen, int /*highest*/) {
  constexpr double kept = 0.9999;
  const double wanted = kept * static_cast<double>(seen.count());
  double below = 0;
  for (std::size_t i = 0; i < ValueHistogram::kBins; ++i) {
    below += static_cast<double>(seen.bins()[i]);
    const double bound = static_cast<double>(i + 1) * seen.bin_width();
    if (below >= wanted) return std::min(bound, double{seen.largest()});
  }
  return double{seen.largest()};
}

}  // namespace nibble
