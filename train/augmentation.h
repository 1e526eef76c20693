#pragma once

#include <cstdint>
#include <span>

#include "cfg/configuration.h"

namespace nibble {

/// Augments one image, [32][32][3] raw bytes, into `result` (the same shape, not the same memory), in this
/// order:
///   flip    mirrored left to right, every second image on average
///   crop    a random 32x32 window of the image with `crop_padding` (at most 31) black pixels on each side
///   cutout  a square of this side around a random pixel becomes the mean pixel (DeVries and Taylor 2017,
///           arXiv:1708.04552)
/// The outcome is a pure function of the arguments: `index` is the image's place in the data set.
void augment(const AugmentationConfiguration& augmentation, std::uint64_t seed, std::uint64_t epoch,
             std::uint32_t index, std::span<const std::uint8_t> image, std::span<std::uint8_t> result);

}  // namespace nibble
