#include "quant/value_histogram.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "graph/network/error.h"

namespace nibble {

void ValueHistogram::grow(double needed) {
  while (limit_ <= needed) {
    for (std::size_t i = 0; i < kBins / 2; ++i) bins_[i] = bins_[2 * i] + bins_[2 * i + 1];
    std::fill(bins_.begin() + kBins / 2, bins_.end(), 0);
    limit_ *= 2;
  }
}

void ValueHistogram::add(std::span<const float> values) {
  float largest = 0;
  bool finite = true;
  for (const float value : values) {
    finite = finite && std::fabs(value) <= std::numeric_limits<float>::max();
    largest = std::max(largest, std::fabs(value));
  }
  if (!finite) {
    throw InputError(
        "an activation of the FP32 network is NaN or infinite on a calibration image; use an earlier "
        "checkpoint, of a training that had not diverged");
  }
  largest_ = std::max(largest_, largest);
  grow(double{largest_});
  // A power of two: the product is exact, so a value's bin never depends on when it came.
  const auto bins_per_unit = static_cast<float>(kBins / limit_);
  for (const float value : values) ++bins_[static_cast<std::size_t>(std::fabs(value) * bins_per_unit)];
  count_ += values.size();
}

double ValueHistogram::quantization_error(double scale, int highest) const {
  const double width = bin_width();
  // Where a step holds less than one bin, values are spread evenly over each step.
  const bool fine = width >= scale;
  const double clip = scale * highest;
  double sum = 0;
  for (std::size_t i = 0; i < kBins; ++i) {
    if (bins_[i] == 0) continue;
    const double value = (static_cast<double>(i) + 0.5) * width;
    double error = value - clip;
    if (value < clip) error = fine ? scale / std::sqrt(12.0) : value - scale * std::nearbyint(value / scale);
    sum += static_cast<double>(bins_[i]) * error * error;
  }
  return count_ == 0 ? 0.0 : sum / static_cast<double>(count_);
}

}  // namespace nibble
