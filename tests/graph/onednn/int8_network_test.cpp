#include "graph/onednn/int8_network.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <numeric>

#include "graph/network/error.h"
#include "graph/network/reference_network.h"
#include "tests/graph/network/random_network.h"

namespace nibble {
namespace {

std::vector<float> reference_logits(const QuantizedNetwork& quantized,
                                    const std::vector<std::uint8_t>& pixels, int count) {
  std::vector<float> logits(static_cast<std::size_t>(count * quantized.network.classes));
  ReferenceNetwork(quantized).run(pixels.data(), count, logits.data());
  return logits;
}

/// Halves the weights: the largest sum of a pair is then 2 * 63 * 255 < 32767.
QuantizedNetwork with_proved_pairs(QuantizedNetwork quantized) {
  for (QuantizedLayer& layer : quantized.parameters.convolutions) {
    for (std::int16_t& weight : layer.weights) weight = static_cast<std::int16_t>(weight / 2);
    for (float& scale : layer.weight_scale) scale *= 2;
  }
  return quantized;
}

constexpr std::tuple<const char*, int, const char*> kNetworks[] = {
    {"resnet_344", 0, ""}, {"he", 20, "A"}, {"he", 20, "B"}};

/// Every way a count is cut (one image on all threads, single images, full tiles, rests) is the reference bit
/// for bit, with oneDNN's kernels.
TEST(Int8Network, EqualsTheReferenceForEveryCountAndThreadCount) {
  for (const auto& [variant, depth, shortcut] : kNetworks) {
    SCOPED_TRACE(std::string(variant) + shortcut);
    const QuantizedNetwork quantized =
        with_proved_pairs(random_network(describe_network(variant, depth, shortcut), 8, 8, 3));
    const int most = 37;
    const std::vector<std::uint8_t> pixels = random_pixels(most, 4);
    const std::vector<float> expected = reference_logits(quantized, pixels, most);
    EXPECT_TRUE(onednn_is_exact(quantized));
    const int threads = omp_get_max_threads();
    for (const int used : {1, 2, 3}) {
      omp_set_num_threads(used);
      Int8Network network(quantized, most);
      EXPECT_EQ(network.engine(), "onednn");
      for (const int count : {1, 2, 5, 16, 33, 37}) {
        // The rest of the buffer must stay as it was.
        std::vector<float> logits(expected.size(), -7.0F);
        network.run(pixels, count, logits);
        std::vector<float> wanted(expected.begin(), expected.begin() + count * quantized.network.classes);
        wanted.resize(expected.size(), -7.0F);
        EXPECT_EQ(logits, wanted) << used << " threads, " << count << " images";
      }
    }
    omp_set_num_threads(threads);
  }
}

/// Full-range weights: without VNNI most pairs are not proved and our own kernels run those layers.
TEST(Int8Network, EqualsTheReferenceWhereOnednnWouldSaturate) {
  for (const auto& [variant, depth, shortcut] : kNetworks) {
    const QuantizedNetwork quantized = random_network(describe_network(variant, depth, shortcut), 8, 8, 5);
    const int count = 3;
    const std::vector<std::uint8_t> pixels = random_pixels(count, 6);
    Int8Network network(quantized, count);
    EXPECT_EQ(network.engine(), onednn_has_vnni() ? "onednn" : "onednn+nibble");
    EXPECT_EQ(onednn_is_exact(quantized), onednn_has_vnni());
    std::vector<float> logits(static_cast<std::size_t>(count * quantized.network.classes));
    network.run(pixels, count, logits);
    EXPECT_EQ(logits, reference_logits(quantized, pixels, count)) << variant << shortcut;
    for (int image = 0; image < count; ++image) {  // one image takes another way
      std::vector<float> one(static_cast<std::size_t>(quantized.network.classes));
      network.run(std::span(pixels).subspan(static_cast<std::size_t>(image) * 3072), 1, one);
      EXPECT_TRUE(std::equal(one.begin(), one.end(), logits.begin() + image * quantized.network.classes));
    }
  }
}

/// The extremes: every weight at its limit of one sign, of alternating signs, pixels all dark or all bright.
TEST(Int8Network, EqualsTheReferenceAtTheExtremes) {
  const NetworkDescription description = describe_network("resnet_344", 0, "");
  std::vector<std::uint8_t> pixels(4 * 3072, 0);
  std::fill(pixels.begin() + 3072, pixels.begin() + 2 * 3072, std::uint8_t{255});
  for (std::size_t i = 2 * 3072; i < pixels.size(); ++i) pixels[i] = i % 2 == 0 ? 255 : 0;
  std::fill(pixels.begin() + 3 * 3072, pixels.end(), std::uint8_t{128});
  for (const int pattern : {0, 1, 2}) {
    QuantizedNetwork quantized = random_network(description, 8, 8, 7);
    for (QuantizedLayer& layer : quantized.parameters.convolutions) {
      for (std::size_t i = 0; i < layer.weights.size(); ++i) {
        const int sign = pattern == 0 ? 1 : pattern == 1 ? (i % 2 == 0 ? 1 : -1) : (i % 3 == 0 ? -1 : 1);
        layer.weights[i] = static_cast<std::int16_t>(127 * sign);
      }
    }
    Int8Network network(quantized, 4);
    std::vector<float> logits(40);
    network.run(pixels, 4, logits);
    EXPECT_EQ(logits, reference_logits(quantized, pixels, 4)) << pattern;
  }
}

TEST(Int8Network, SaturatingRunsEverythingOnOnednn) {
  const QuantizedNetwork quantized = random_network(describe_network("he", 20, "A"), 8, 8, 5);
  const std::vector<std::uint8_t> pixels = random_pixels(2, 6);
  Int8Network network(quantized, 2, UnprovedLayers::saturating);
  EXPECT_EQ(network.engine(), "onednn");
  std::vector<float> logits(20);
  network.run(pixels, 2, logits);
  EXPECT_EQ(logits == reference_logits(quantized, pixels, 2), onednn_has_vnni());
}

TEST(Int8Network, ProfileNamesEveryConvolutionAndCountsItsProducts) {
  const QuantizedNetwork quantized =
      with_proved_pairs(random_network(describe_network("he", 20, "B"), 8, 8, 5));
  Int8Network network(quantized, 16);
  const std::vector<LayerTime> layers = network.profile(random_pixels(16, 6), 16, 2);
  const auto total =
      std::accumulate(layers.begin(), layers.end(), 0.0,
                      [](double sum, const LayerTime& layer) { return sum + layer.multiply_accumulates; });
  EXPECT_EQ(total, 16.0 * static_cast<double>(quantized.network.multiply_accumulates()));
  for (const Convolution& convolution : quantized.network.convolutions) {
    EXPECT_TRUE(std::any_of(layers.begin(), layers.end(), [&](const LayerTime& layer) {
      return layer.name == convolution.name && layer.seconds > 0;
    })) << convolution.name;
  }
  EXPECT_EQ(network.implementations().size(), quantized.network.convolutions.size());
}

TEST(Int8Network, OtherWidthsAreRefused) {
  const NetworkDescription description = describe_network("he", 20, "A");
  for (const auto& [bits, activation_bits] : {std::pair(16, 16), std::pair(4, 4), std::pair(8, 4)}) {
    EXPECT_THROW(Int8Network(random_network(description, bits, activation_bits, 1), 1), InputError);
  }
}

}  // namespace
}  // namespace nibble
