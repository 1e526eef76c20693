#include "train/augmentation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <vector>

#include "graph/data/cifar10.h"
#include "graph/network/error.h"
#include "train/mixup.h"

namespace nibble {
namespace {

using Image = std::vector<std::uint8_t>;

// Every pixel is different from every other one and from black: red is the column + 1, green the row + 1.
Image numbered_image() {
  Image image(cifar10_image_bytes);
  for (std::size_t y = 0; y < 32; ++y) {
    for (std::size_t x = 0; x < 32; ++x) {
      image[(y * 32 + x) * 3] = static_cast<std::uint8_t>(x + 1);
      image[(y * 32 + x) * 3 + 1] = static_cast<std::uint8_t>(y + 1);
      image[(y * 32 + x) * 3 + 2] = 77;
    }
  }
  return image;
}

Image augmented(const AugmentationConfiguration& how, std::uint64_t seed, std::uint64_t epoch,
                std::uint32_t index, const Image& image) {
  Image result(cifar10_image_bytes, 250);
  augment(how, seed, epoch, index, image, result);
  return result;
}

// The plain way: mirror the whole image, put it on a black 40 x 40 canvas, cut out 32 x 32.
Image plainly(const Image& image, bool mirrored, int top, int left, int padding) {
  const int side = 32 + 2 * padding;
  Image canvas(static_cast<std::size_t>(side * side * 3), 0);
  for (int y = 0; y < 32; ++y) {
    for (int x = 0; x < 32; ++x) {
      for (int c = 0; c < 3; ++c) {
        canvas[static_cast<std::size_t>(((y + padding) * side + x + padding) * 3 + c)] =
            image[static_cast<std::size_t>((y * 32 + (mirrored ? 31 - x : x)) * 3 + c)];
      }
    }
  }
  Image result;
  for (int y = 0; y < 32; ++y) {
    for (int x = 0; x < 32 * 3; ++x) {
      result.push_back(canvas[static_cast<std::size_t>((y + top) * side * 3 + left * 3 + x)]);
    }
  }
  return result;
}

std::string text_of(const Image& image) {
  return {image.begin(), image.end()};
}

TEST(Augmentation, IsOneOfThePlainFlipsAndCropsAndEachIsAsFrequentAsAnother) {
  const Image image = numbered_image();
  std::map<std::string, int> index_of;
  for (int mirrored = 0; mirrored < 2; ++mirrored) {
    for (int top = 0; top < 9; ++top) {
      for (int left = 0; left < 9; ++left) {
        index_of.emplace(text_of(plainly(image, mirrored == 1, top, left, 4)),
                         (mirrored * 9 + top) * 9 + left);
      }
    }
  }
  ASSERT_EQ(index_of.size(), 162U);
  constexpr int draws = 162 * 100;
  std::array<int, 162> counts{};
  for (std::uint32_t i = 0; i < draws; ++i) {
    const auto found = index_of.find(text_of(augmented({}, 1, i / 1000, i % 1000, image)));
    ASSERT_NE(found, index_of.end()) << "draw " << i;
    ++counts[static_cast<std::size_t>(found->second)];
  }
  // Chi-square with 161 degrees of freedom: 99.9 % of all seeds are below 222 and above 110.
  double chi_square = 0;
  for (const int count : counts) chi_square += (count - 100.0) * (count - 100.0) / 100.0;
  EXPECT_LT(chi_square, 222);
  EXPECT_GT(chi_square, 110);
}

TEST(Augmentation, DependsOnSeedEpochAndIndexAlone) {
  const Image image = numbered_image();
  AugmentationConfiguration how;
  how.cutout = 8;
  int equal_epochs = 0;
  int equal_seeds = 0;
  int equal_indices = 0;
  for (std::uint32_t index = 0; index < 200; ++index) {
    const Image first = augmented(how, 5, 3, index, image);
    EXPECT_EQ(first, augmented(how, 5, 3, index, image));
    equal_epochs += first == augmented(how, 5, 4, index, image);
    equal_seeds += first == augmented(how, 6, 3, index, image);
    equal_indices += first == augmented(how, 5, 3, index + 1, image);
  }
  // Two draws out of 162 * 1024 are seldom the same.
  EXPECT_LE(equal_epochs, 1);
  EXPECT_LE(equal_seeds, 1);
  EXPECT_LE(equal_indices, 1);
}

TEST(Augmentation, CanBeSwitchedOff) {
  const Image image = numbered_image();
  AugmentationConfiguration nothing;
  nothing.flip = false;
  nothing.crop_padding = 0;
  AugmentationConfiguration only_flip = nothing;
  only_flip.flip = true;
  int mirrored = 0;
  for (std::uint32_t index = 0; index < 1000; ++index) {
    EXPECT_EQ(augmented(nothing, 1, 0, index, image), image);
    mirrored += augmented(only_flip, 1, 0, index, image) == plainly(image, true, 0, 0, 0);
  }
  EXPECT_NEAR(mirrored, 500, 64);  // four deviations
}

TEST(Augmentation, LargestPaddingStaysInsideTheImage) {
  const Image image = numbered_image();
  AugmentationConfiguration how;
  how.crop_padding = 31;
  for (std::uint32_t index = 0; index < 2000; ++index) {
    const Image result = augmented(how, 1, 0, index, image);
    for (std::size_t i = 0; i < result.size(); i += 3) {
      ASSERT_TRUE((result[i] == 0 && result[i + 2] == 0) || (result[i] <= 32 && result[i + 2] == 77));
    }
  }
}

TEST(Augmentation, CutoutIsASquareOfTheMeanPixelAndChangesNothingElse) {
  const Image image = numbered_image();
  AugmentationConfiguration how;
  how.cutout = 8;
  int full = 0;
  for (std::uint32_t index = 0; index < 500; ++index) {
    const Image without = augmented({}, 1, 0, index, image);
    const Image with = augmented(how, 1, 0, index, image);
    int top = 32;
    int bottom = -1;
    int left = 32;
    int right = -1;
    int changed = 0;
    for (int y = 0; y < 32; ++y) {
      for (int x = 0; x < 32; ++x) {
        const std::size_t i = static_cast<std::size_t>((y * 32 + x) * 3);
        if (with[i] == without[i] && with[i + 1] == without[i + 1] && with[i + 2] == without[i + 2]) continue;
        ASSERT_EQ(with[i], 124);
        ASSERT_EQ(with[i + 1], 116);
        ASSERT_EQ(with[i + 2], 104);
        ++changed;
        top = std::min(top, y);
        bottom = std::max(bottom, y);
        left = std::min(left, x);
        right = std::max(right, x);
      }
    }
    ASSERT_EQ(changed, (bottom - top + 1) * (right - left + 1));
    EXPECT_GE(changed, 16);  // the centre is inside, so at least a quarter is
    EXPECT_LE(changed, 64);
    full += changed == 64;
  }
  EXPECT_NEAR(full / 500.0, 25.0 * 25 / (32 * 32), 0.09);
}

TEST(Augmentation, RefusesOtherSizes) {
  Image small(100);
  Image result(cifar10_image_bytes);
  EXPECT_THROW(augment({}, 1, 0, 0, small, result), InputError);
}

TEST(Mixup, DrawsTheBetaDistribution) {
  for (const double alpha : {0.2, 1.0, 4.0}) {
    constexpr int draws = 20000;
    double sum = 0;
    double squares = 0;
    for (int i = 0; i < draws; ++i) {
      const Mixup mixup = draw_mixup(alpha, 7, static_cast<std::uint64_t>(i / 100), i % 100, 64);
      ASSERT_GE(mixup.weight, 0);
      ASSERT_LE(mixup.weight, 1);
      ASSERT_GE(mixup.shift, 1);
      ASSERT_LE(mixup.shift, 63);
      sum += mixup.weight;
      squares += mixup.weight * mixup.weight;
    }
    const double mean = sum / draws;
    EXPECT_NEAR(mean, 0.5, 0.015) << alpha;
    EXPECT_NEAR(squares / draws - mean * mean, 1 / (4 * (2 * alpha + 1)), 0.004) << alpha;
  }
}

TEST(Mixup, MixesEachImageWithTheShiftedOne) {
  const Image pixels = {0, 100, 200, 40, 250, 10};  // three images of two bytes
  Image mixed(6);
  mix_images({.weight = 0.75, .shift = 1}, 3, pixels, mixed);
  EXPECT_EQ(mixed, (Image{50, 85, 213, 33, 188, 33}));
}

}  // namespace
}  // namespace nibble
