#pragma once

#include <algorithm>
#include <cstdint>

#include "graph/data/cifar10.h"

namespace nibble {

/// Noise with a bright bar whose row is the label: something that a network can learn. Images first, first +
/// 1 and so on of an endless row.
inline Dataset labelled_images(int count, int first = 0) {
  Dataset dataset = generated_images(first + count);
  dataset.pixels.erase(dataset.pixels.begin(),
                       dataset.pixels.begin() + first * static_cast<std::ptrdiff_t>(cifar10_image_bytes));
  constexpr std::size_t row_bytes = 32 * 3;
  for (int image = 0; image < count; ++image) {
    const int label = image % 10;
    dataset.labels.push_back(static_cast<std::uint8_t>(label));
    const std::size_t start = static_cast<std::size_t>(image) * cifar10_image_bytes +
                              static_cast<std::size_t>(3 * label) * row_bytes;
    std::fill_n(dataset.pixels.begin() + static_cast<std::ptrdiff_t>(start), 3 * row_bytes,
                std::uint8_t{255});
  }
  dataset.name = "generated";
  dataset.sha256 = "generated";
  return dataset;
}

}  // namespace nibble
