#include "quant/calibration.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <set>

#include "graph/network/error.h"
#include "quant/float_pass.h"
#include "tests/graph/onednn/cases.h"
#include "tests/graph/onednn/reference_network.h"

namespace nibble {
namespace {

TEST(Calibration, IndicesAreDifferentAndFollowFromTheSeed) {
  const std::vector<std::uint32_t> indices = calibration_indices(50000, 1000, 1);
  EXPECT_EQ(indices.size(), 1000U);
  EXPECT_EQ(std::set(indices.begin(), indices.end()).size(), 1000U);
  EXPECT_LT(*std::max_element(indices.begin(), indices.end()), 50000U);
  EXPECT_EQ(calibration_indices(50000, 1000, 1), indices);
  EXPECT_NE(calibration_indices(50000, 1000, 2), indices);
  // More images with the same seed are the same ones and others.
  const std::vector<std::uint32_t> more = calibration_indices(50000, 1500, 1);
  EXPECT_TRUE(std::equal(indices.begin(), indices.end(), more.begin()));
}

TEST(Calibration, TooManyImagesAreRefused) {
  try {
    calibration_indices(45000, 45001, 1);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_STREQ(
        error.what(),
        "calibration with 45001 images is not possible: there are 45000 training images; choose 1 to "
        "45000 with --calibration-images");
  }
}

TEST(Calibration, IndexListHashIsOfLittleEndianNumbers) {
  const std::vector<std::uint32_t> indices = {1, 258};
  // printf '\x01\0\0\0\x02\x01\0\0' | sha256sum
  EXPECT_EQ(index_list_sha256(indices), "fb8bbe2ad3ab5292f19bc5d75bbab9b5fbddc5a78ce47ab41b2d3d59bca08596");
}

TEST(ChannelMoments, AreMeanAndVarianceOfEachChannel) {
  ChannelMoments moments(2);
  moments.add(std::vector<float>{1, 10, 2, 20, 3, 30, 4, 40}, 2);
  moments.add(std::vector<float>{5, 50}, 1);
  EXPECT_DOUBLE_EQ(moments.mean(0), 3);
  EXPECT_DOUBLE_EQ(moments.variance(0), 2);
  EXPECT_DOUBLE_EQ(moments.mean(1), 30);
  EXPECT_DOUBLE_EQ(moments.variance(1), 200);
}

TEST(Calibration, WeightsThatFoldingPutsBeyondFloat32AreRefused) {
  const NetworkDescription network = describe_network("he", 8, "A");
  FloatParameters parameters = cases::random_parameters(network, 1);
  fold_batch_normalization(network, parameters);
  parameters.convolutions[2].weight[5] = 3e38F;
  parameters.convolutions[2].gamma.assign(parameters.convolutions[2].gamma.size(), 100.0F);
  EXPECT_THROW(fold_batch_normalization(network, parameters), InputError);
}

TEST(FloatPass, EqualsPlainLoopsInDouble) {
  for (const auto& [variant, depth, shortcut] :
       {std::tuple("resnet_344", 0, ""), std::tuple("he", 20, "A"), std::tuple("he", 20, "B")}) {
    const NetworkDescription network = cases::with_image_size(describe_network(variant, depth, shortcut), 16);
    const FloatParameters parameters = cases::random_parameters(network, 3);
    const int count = 3;
    const auto pixels = cases::random_pixels(network, count, 4);
    reference::Network plain(network, reference::to_double(parameters));
    const reference::Values expected = plain.forward(pixels, count, false);
    const std::vector<float> logits =
        FloatPass(network, fold_batch_normalization(network, parameters), 2).run(pixels, [](const FloatTap&) {
        });
    double largest = 0;
    double difference = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      largest = std::max(largest, std::abs(expected[i]));
      difference = std::max(difference, std::abs(expected[i] - double{logits[i]}));
    }
    EXPECT_LT(difference / largest, 5e-6) << variant << shortcut;
  }
}

TEST(Calibration, DoesNotDependOnTheNumberOfThreads) {
  const NetworkDescription network = cases::with_image_size(describe_network("he", 20, "A"), 16);
  const FoldedParameters folded = fold_batch_normalization(network, cases::random_parameters(network, 3));
  const auto pixels = cases::random_pixels(network, 7, 4);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Calibration one = calibrate(network, folded, pixels);
  omp_set_num_threads(3);
  const Calibration three = calibrate(network, folded, pixels);
  omp_set_num_threads(threads);
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    EXPECT_EQ(one.outputs[i].bins(), three.outputs[i].bins());
    EXPECT_EQ(one.outputs[i].largest(), three.outputs[i].largest());
    for (int c = 0; c < network.convolutions[i].output_channels; ++c) {
      EXPECT_EQ(one.sums[i].mean(static_cast<std::size_t>(c)),
                three.sums[i].mean(static_cast<std::size_t>(c)));
      EXPECT_EQ(one.sums[i].variance(static_cast<std::size_t>(c)),
                three.sums[i].variance(static_cast<std::size_t>(c)));
    }
  }
}

}  // namespace
}  // namespace nibble
