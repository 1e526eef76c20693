#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

/// Counts of the magnitudes of many values, in bins of equal width over [0, limit). The limit is a power of
/// two that doubles (two bins become one) when a larger value comes, so the result does not depend on the
/// order of the values.
class ValueHistogram {
 public:
  static constexpr int kBins = 8192;

  void add(std::span<const float> values);

  float largest() const { return largest_; }  ///< magnitude, exact
  std::uint64_t count() const { return count_; }
  double bin_width() const { return limit_ / kBins; }
  const std::array<std::uint64_t, kBins>& bins() const { return bins_; }

  /// Mean squared error when each value v becomes scale * min(round(|v| / scale), highest).
  double quantization_error(double scale, int highest) const;

 private:
  void grow(double needed);

  std::array<std::uint64_t, kBins> bins_{};
  double limit_ = 0x1p-20;
  float largest_ = 0;
  std::uint64_t count_ = 0;
};

}  // namespace nibble
