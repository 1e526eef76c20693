#include "bench/bare_convolutions.h"

#include <gmock/gmock.h>

#include <chrono>
#include <thread>

#include "bench/network_comparison.h"

namespace nibble {
namespace {

TEST(DistinctLayers, DifferInShapeOrRole) {
  std::vector<std::string> names;
  for (const DistinctLayer& layer : distinct_layers(describe_network("resnet_344", 0, ""))) {
    names.push_back(layer.convolution.name);
  }
  EXPECT_THAT(names,
              testing::ElementsAre("conv1", "blocks.0.conv1", "blocks.0.conv2", "blocks.3.conv1",
                                   "blocks.3.conv2", "blocks.3.shortcut", "blocks.4.conv1", "blocks.7.conv1",
                                   "blocks.7.conv2", "blocks.7.shortcut", "blocks.8.conv1"));
}

TEST(BareConvolutions, AreAllOfTheNetwork) {
  for (const char* shortcut : {"A", "B"}) {
    const NetworkDescription network = describe_network("he", 20, shortcut);
    for (const BareKind kind : {BareKind::f32_nhwc, BareKind::f32_any, BareKind::int8}) {
      BareConvolutions bare(network, kind, 2);
      bare.run();
      const std::int64_t linear = std::int64_t{network.feature_channels} * network.classes;
      EXPECT_EQ(bare.multiply_accumulates(),
                2.0 * static_cast<double>(network.multiply_accumulates() - linear));
      EXPECT_FALSE(bare.implementation().empty());
    }
  }
}

TEST(BareConvolutions, RunEachLayerAlone) {
  for (const DistinctLayer& layer : distinct_layers(describe_network("resnet_344", 0, ""))) {
    for (const BareKind kind : {BareKind::f32_nhwc, BareKind::f32_any, BareKind::int8}) {
      BareConvolutions bare(layer, kind, 3);
      bare.run();
      EXPECT_EQ(bare.multiply_accumulates(),
                3.0 * static_cast<double>(layer.convolution.multiply_accumulates()));
    }
  }
}

TEST(NetworkComparison, DividesTheNetworksRateByTheBareOne) {
  const NetworkDescription network = describe_network("he", 20, "A");
  // A network that cannot be faster than its pause.
  const auto pause = [] { std::this_thread::sleep_for(std::chrono::milliseconds(5)); };
  const NetworkComparison comparison = compare_with_bare(network, 1, {BareKind::int8}, pause, 3);
  EXPECT_GT(comparison.images_per_second, 0);
  EXPECT_LE(comparison.images_per_second, 200);
  EXPECT_GT(comparison.bare_images_per_second, 0);
  EXPECT_EQ(comparison.bare_batch, 1);
  EXPECT_EQ(comparison.ratio(), comparison.images_per_second / comparison.bare_images_per_second);
}

}  // namespace
}  // namespace nibble
