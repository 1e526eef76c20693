#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "graph/network/float_parameters.h"
#include "graph/onednn/elementwise.h"

namespace nibble {

/// (pixel / 255 - mean) / deviation of every pixel value, in the order of operations and the FP32 roundings
/// of torchvision's ToTensor and Normalize.
class PixelNormalization {
 public:
  PixelNormalization() {
    for (std::size_t channel = 0; channel < 3; ++channel) {
      for (std::size_t pixel = 0; pixel < 256; ++pixel) {
        values_[channel][pixel] =
            (static_cast<float>(pixel) / 255.0F - kPixelMean[channel]) / kPixelDeviation[channel];
      }
    }
  }

  /// `pixels`, `x`: [count][3], red green blue
  template <typename T>
  void apply(const std::uint8_t* pixels, std::size_t count, T* x) const {
    for (std::size_t i = 0; i < 3 * count; i += 3) {
      for (std::size_t channel = 0; channel < 3; ++channel) {
        store_value(values_[channel][pixels[i + channel]], x + i + channel);
      }
    }
  }

 private:
  std::array<std::array<float, 256>, 3> values_;
};

}  // namespace nibble
