#pragma once

#include <cstdint>
#include <span>

namespace nibble {

/// What happens to a training image, in this order: flip, crop, cutout.
struct Augmentation {
  bool flip = true;      ///< mirrored left to right, every second image on average
  int crop_padding = 4;  ///< a random 32x32 window of the raw image with this many black pixels around it
  int cutout = 0;        ///< a square of this side at a random centre becomes the mean pixel; 0: none
                         ///< (DeVries and Taylor 2017, arXiv:1708.04552)
};

/// Augments one image, [32][32][3] raw bytes, into `result` (the same shape, not the same memory).
/// The outcome is a pure function of the arguments: `index` is the image's place in the data set.
void augment(const Augmentation& augmentation, std::uint64_t seed, int epoch, std::int64_t index,
             std::span<const std::uint8_t> image, std::span<std::uint8_t> result);

}  // namespace nibble
