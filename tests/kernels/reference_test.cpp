#include "kernels/reference.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>
#include <vector>

namespace nibble {
namespace {

using Values = std::vector<std::int16_t>;
using testing::ElementsAre;

/// The definition, term by term, in double: exact for every sum that is tested here.
std::vector<double> convolve_in_double(const ConvolutionShape& s, const Values& input,
                                       const Values& weights) {
  std::vector<double> sums;
  for (int row = 0; row < s.output_height(); ++row) {
    for (int column = 0; column < s.output_width(); ++column) {
      for (int o = 0; o < s.output_channels; ++o) {
        double sum = 0;
        for (int i = 0; i < s.input_channels; ++i) {
          for (int y = 0; y < s.kernel; ++y) {
            for (int x = 0; x < s.kernel; ++x) {
              const int r = row * s.stride + y - s.padding;
              const int c = column * s.stride + x - s.padding;
              if (r < 0 || c < 0 || r >= s.input_height || c >= s.input_width) continue;
              const auto at = static_cast<std::size_t>((r * s.input_width + c) * s.input_channels + i);
              const auto w =
                  static_cast<std::size_t>(((o * s.kernel + y) * s.kernel + x) * s.input_channels + i);
              sum += static_cast<double>(input[at]) * weights[w];
            }
          }
        }
        sums.push_back(sum);
      }
    }
  }
  return sums;
}

template <typename Accumulator>
void expect_exact_sums(int largest_weight, int largest_input) {
  std::mt19937_64 random(9);
  for (int i = 0; i < 60; ++i) {
    const int kernel = i % 2 == 0 ? 3 : 1;
    const ConvolutionShape shape{
        1 + i % 5,      1 + i % 4,     kernel, 1 + i / 2 % 2, i % 3 == 0 ? 0 : kernel / 2,
        kernel + i % 6, kernel + i % 4};
    Values input(shape.input_size());
    Values weights(shape.filter_size() * static_cast<std::size_t>(shape.output_channels));
    for (auto& v : input)
      v = static_cast<std::int16_t>(std::uniform_int_distribution<int>(0, largest_input)(random));
    for (auto& v : weights) {
      v = static_cast<std::int16_t>(
          std::uniform_int_distribution<int>(-largest_weight, largest_weight)(random));
    }
    if (i == 0) std::fill(weights.begin(), weights.end(), static_cast<std::int16_t>(-largest_weight));
    std::vector<Accumulator> sums(shape.output_size());
    reference_convolution<Accumulator>(shape, input, weights, sums);
    const std::vector<double> expected = convolve_in_double(shape, input, weights);
    ASSERT_EQ(std::vector<double>(sums.begin(), sums.end()), expected);
  }
}

TEST(Reference, ConvolvesExactly) {
  expect_exact_sums<std::int32_t>(127, 255);
}

TEST(Reference, ConvolvesSixteenBitsExactly) {
  expect_exact_sums<std::int64_t>(32767, 32767);
}

TEST(Reference, RequantizesAChannelWithItsOwnFactorsAndTheResidual) {
  const std::vector<std::int32_t> sums = {10, 10, -10, -10, 1000, 1000};
  const std::vector<float> scale = {0.5F, 2.0F};
  const std::vector<float> offset = {1.0F, -3.0F};
  Values output(6);
  reference_requantize<std::int32_t>(sums, {scale, offset, {0, 255}}, {}, output);
  EXPECT_THAT(output, ElementsAre(6, 17, 0, 0, 255, 255));
  const Values residual = {100, 100, 100, 100, 0, 0};
  reference_requantize<std::int32_t>(sums, {scale, offset, {0, 255}, 0.25F}, residual, output);
  EXPECT_THAT(output, ElementsAre(31, 42, 21, 2, 255, 255));
}

TEST(Reference, DerivesNarrowInputsFromTheStream) {
  Values x(5);
  reference_derive_input(Values{0, 1, 3, 100, 255}, 0.5F, 4, x);
  EXPECT_THAT(x, ElementsAre(0, 0, 2, 15, 15));
  reference_derive_input(Values{0, 1, 3, 100, 255}, 0.5F, 2, x);
  EXPECT_THAT(x, ElementsAre(0, 0, 2, 3, 3));
}

TEST(Reference, PadsChannelsOnBothSides) {
  Values output(2 * 1 * 4);
  // 3 rows, 2 columns, 2 channels -> rows 0 and 2, column 0, channels 1 and 2 of 4.
  reference_pad_channels(3, 2, 2, 4, Values{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, output);
  EXPECT_THAT(output, ElementsAre(0, 1, 2, 0, 0, 9, 10, 0));
}

TEST(Reference, PoolsIntoTheLinearLayer) {
  std::vector<float> logits(2);
  // Sums over the pixels: channel 0: 1 + 3 = 4, channel 1: 2 + 4 = 6.
  reference_pool_linear<std::int32_t>(Values{1, 2, 3, 4}, 2, Values{1, -1, 10, 2},
                                      std::vector<float>{0.5F, 0.25F}, std::vector<float>{7.0F, 0.0F},
                                      logits);
  EXPECT_THAT(logits, ElementsAre(6.0F, 13.0F));
}

TEST(Reference, SurroundsAnImageWithTheMeanPixel) {
  Values bordered(3 * 3 * 3);
  reference_bordered_image(1, 1, std::vector<std::uint8_t>{1, 2, 3}, bordered);
  for (std::size_t i = 0; i < bordered.size(); ++i) {
    const int mean[] = {124, 116, 104};
    EXPECT_EQ(bordered[i], i / 3 == 4 ? static_cast<int>(i % 3) + 1 : mean[i % 3]);
  }
}

}  // namespace
}  // namespace nibble
