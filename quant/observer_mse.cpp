#include "quant/observer.h"

namespace nibble {

/// The bound of the least mean squared error: every hundredth of the largest value is tried, then the
/// neighbourhood of the best in steps of a thousandth.
double mse_bound(const ValueHistogram& seen, int highest) {
  const double largest = double{seen.largest()};
  double best_fraction = 1;
  double best_error = seen.quantization_error(largest / highest, highest);
  const auto search = [&](double from, double to, double step) {
    for (double fraction = from; fraction <= to; fraction += step) {
      if (fraction <= 0 || fraction > 1) continue;
      const double error = seen.quantization_error(fraction * largest / highest, highest);
      if (error < best_error) {
        best_error = error;
        best_fraction = fraction;
      }
    }
  };
  search(0.01, 1.0, 0.01);
  search(best_fraction - 0.01, best_fraction + 0.01, 0.001);
  return best_fraction * largest;
}

}  // namespace nibble
