#include "train/augmentation.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "graph/data/random.h"
#include "graph/network/error.h"
#include "graph/network/float_parameters.h"

namespace nibble {
namespace {

constexpr int kSize = 32;
constexpr int kChannels = 3;
constexpr int kRow = kSize * kChannels;

void copy_row(const std::uint8_t* from, std::uint8_t* to, int pixels, bool mirrored) {
  if (!mirrored) {
    std::memcpy(to, from, static_cast<std::size_t>(pixels) * kChannels);
    return;
  }
  const std::uint8_t* last = from + (pixels - 1) * kChannels;
  for (int x = 0; x < pixels; ++x, to += kChannels, last -= kChannels) {
    for (int c = 0; c < kChannels; ++c) to[c] = last[c];
  }
}

}  // namespace

void augment(const AugmentationConfiguration& augmentation, std::uint64_t seed, std::uint64_t epoch,
             std::uint32_t index, std::span<const std::uint8_t> image, std::span<std::uint8_t> result) {
  if (image.size() != kSize * kRow || result.size() != kSize * kRow) {
    throw InputError("augmentation: an image must have 32 x 32 x 3 bytes");
  }
  SplitMix64 random(mix_seed(seed, epoch, index));
  const auto below = [&](int bound) {
    return static_cast<int>(random.below(static_cast<std::uint32_t>(bound)));
  };
  // All draws are made whatever is switched on, so that one setting does not change what another one does.
  const bool mirrored = below(2) == 1 && augmentation.flip;
  const int padding = augmentation.crop_padding;
  const int dx = below(2 * padding + 1) - padding;  // source column = column + dx
  const int dy = below(2 * padding + 1) - padding;
  const int hole_x = below(kSize);
  const int hole_y = below(kSize);

  const int first = std::max(0, -dx);
  const int count = kSize - std::abs(dx);
  // In the unmirrored image the window's columns first+dx .. first+dx+count-1 are these:
  const int source = mirrored ? kSize - (first + dx) - count : first + dx;
  for (int y = 0; y < kSize; ++y) {
    std::uint8_t* const row = result.data() + y * kRow;
    const int source_row = y + dy;
    if (source_row < 0 || source_row >= kSize) {
      std::memset(row, 0, kRow);
      continue;
    }
    std::memset(row, 0, static_cast<std::size_t>(first) * kChannels);
    copy_row(image.data() + source_row * kRow + source * kChannels, row + first * kChannels, count, mirrored);
    const int behind = first + count;
    std::memset(row + behind * kChannels, 0, static_cast<std::size_t>(kSize - behind) * kChannels);
  }

  if (augmentation.cutout > 0) {
    const int top = hole_y - augmentation.cutout / 2;
    const int left = hole_x - augmentation.cutout / 2;
    for (int y = std::max(0, top); y < std::min(kSize, top + augmentation.cutout); ++y) {
      for (int x = std::max(0, left); x < std::min(kSize, left + augmentation.cutout); ++x) {
        for (int c = 0; c < kChannels; ++c) {
          result[static_cast<std::size_t>(y * kRow + x * kChannels + c)] =
              static_cast<std::uint8_t>(std::lround(255 * kPixelMean[c]));
        }
      }
    }
  }
}

}  // namespace nibble
