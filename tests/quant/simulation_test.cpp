#include "quant/simulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "graph/network/error.h"
#include "graph/network/reference_network.h"
#include "tests/graph/network/random_network.h"

namespace nibble {
namespace {

/// The simulation's float32 sums are exact up to 8 bits, so its logits are the scalar reference's.
TEST(Simulation, EqualsTheReferenceBitForBit) {
  struct Case {
    const char* variant;
    int depth;
    const char* shortcut;
    int weight_bits;
    int activation_bits;
  };
  for (const Case& c : {Case{"resnet_344", 0, "", 8, 8}, Case{"resnet_344", 0, "", 2, 2},
                        Case{"resnet_344", 0, "", 4, 8}, Case{"he", 20, "A", 4, 4}, Case{"he", 20, "B", 8, 8},
                        Case{"he", 20, "A", 2, 8}, Case{"he", 20, "B", 8, 4}}) {
    const NetworkDescription network = describe_network(c.variant, c.depth, c.shortcut);
    const QuantizedNetwork quantized = random_network(network, c.weight_bits, c.activation_bits, 5);
    const int count = 5;  // two chunks
    const std::vector<std::uint8_t> pixels = random_pixels(count, 6);
    std::vector<float> expected(static_cast<std::size_t>(count * network.classes));
    ReferenceNetwork(quantized).run(pixels.data(), count, expected.data());
    EXPECT_EQ(Simulation(network, 3).run(quantized.parameters, pixels), expected)
        << c.variant << c.shortcut << " " << c.weight_bits << " " << c.activation_bits;
  }
}

TEST(Simulation, ShowsEveryConvolutionInTheOrderOfExecution) {
  const NetworkDescription network = describe_network("he", 20, "B");
  const QuantizedNetwork quantized = random_network(network, 8, 8, 5);
  std::vector<int> order;
  Simulation(network).run(
      quantized.parameters, random_pixels(1, 6), [&](int convolution, const Integers& output, float scale) {
        order.push_back(convolution);
        const Convolution& shape = network.convolutions[static_cast<std::size_t>(convolution)];
        EXPECT_EQ(output.size(), static_cast<std::size_t>(shape.output_channels * shape.output_height() *
                                                          shape.output_width()));
        EXPECT_GT(scale, 0.0F);
      });
  ASSERT_EQ(order.size(), network.convolutions.size());
  const Block& projecting = network.blocks[3];
  const auto at = [&](int convolution) { return std::find(order.begin(), order.end(), convolution); };
  EXPECT_LT(at(projecting.conv1), at(projecting.projection));
  EXPECT_LT(at(projecting.projection), at(projecting.conv2));
}

/// 64 channels: 255 * 127 * 576 is more than 2^24, 255 * 113 * 576 is not.
TEST(Simulation, RefusesSumsThatFloatDoesNotHold) {
  const NetworkDescription network = describe_network("he", 20, "A");
  const int last = network.blocks.back().conv2;
  const Convolution& shape = network.convolutions[static_cast<std::size_t>(last)];
  const Integers inputs(
      static_cast<std::size_t>(shape.input_channels * shape.input_height * shape.input_width), 255);
  std::vector<std::int16_t> weights(static_cast<std::size_t>(shape.weight_count()), 113);
  Simulation simulation(network);
  const auto nothing = [](int, int, std::span<const float>) {};
  simulation.accumulate(last, weights, inputs, nothing);
  std::fill(weights.end() - 576, weights.end(), std::int16_t{-127});
  try {
    simulation.accumulate(last, weights, inputs, nothing);
    FAIL() << "sums beyond 2^24 were accepted";
  } catch (const RunError& error) {
    EXPECT_NE(std::string(error.what()).find(shape.name + ": sums of output channel 63"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
