#include "quant/mixed_widths.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "graph/network/error.h"
#include "graph/network/instruction_set.h"
#include "graph/network/integer_network.h"
#include "graph/network/reference_network.h"
#include "quant/quantize.h"
#include "quant/simulation.h"
#include "tests/graph/onednn/cases.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

using testing::ElementsAre;

WidthTable random_table(std::size_t blocks, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> value(0.1, 1);
  WidthTable table{{}, 1, 1};
  for (std::size_t b = 0; b < blocks; ++b) {
    const double loss = value(random);
    table.blocks.push_back({{8, 0, 8 * value(random), 8 * value(random)},
                            {4, loss, 4 * value(random), 4 * value(random)},
                            {2, 3 * loss, 2 * value(random), 2 * value(random)}});
  }
  return table;
}

struct Total {
  double loss = 0;
  double bytes = 0;
  double seconds = 0;
};

Total total(const WidthTable& table, const std::vector<int>& bits) {
  Total sum{0, table.other_bytes, table.other_seconds};
  for (std::size_t b = 0; b < bits.size(); ++b) {
    for (const BlockWidth& width : table.blocks[b]) {
      if (width.bits != bits[b]) continue;
      sum.loss += width.loss;
      sum.bytes += width.bytes;
      sum.seconds += width.seconds;
    }
  }
  return sum;
}

/// The least loss by looking at all choices.
double least_loss(const WidthTable& table, const Budget& budget) {
  double least = HUGE_VAL;
  std::vector<int> bits(table.blocks.size());
  const auto choices = static_cast<int>(std::pow(3, static_cast<double>(bits.size())));
  for (int choice = 0; choice < choices; ++choice) {
    int rest = choice;
    for (int& width : bits) {
      width = std::array{8, 4, 2}[static_cast<std::size_t>(rest % 3)];
      rest /= 3;
    }
    const Total sum = total(table, bits);
    if ((budget.bytes == 0 || sum.bytes <= budget.bytes) &&
        (budget.seconds == 0 || sum.seconds <= budget.seconds)) {
      least = std::min(least, sum.loss);
    }
  }
  return least;
}

TEST(MixedWidths, AreTheBestOfAllChoicesWithinTheBudget) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    const WidthTable table = random_table(6, seed);
    const Total widest = total(table, {8, 8, 8, 8, 8, 8});
    for (const double share : {0.5, 0.7, 0.9, 1.5}) {
      for (const Budget& budget : {Budget{share * widest.bytes, 0}, Budget{0, share * widest.seconds},
                                   Budget{share * widest.bytes, 0.8 * widest.seconds}}) {
        const double wanted = least_loss(table, budget);
        if (wanted == HUGE_VAL) {
          EXPECT_THROW(choose_widths(table, budget), InputError);
          continue;
        }
        const Total found = total(table, choose_widths(table, budget));
        EXPECT_NEAR(found.loss, wanted, 1e-12);
        EXPECT_TRUE(budget.bytes == 0 || found.bytes <= budget.bytes);
        EXPECT_TRUE(budget.seconds == 0 || found.seconds <= budget.seconds);
      }
    }
  }
}

TEST(MixedWidths, WithoutNeedEveryBlockKeepsEightBits) {
  EXPECT_THAT(choose_widths(random_table(3, 1), {1e6, 1e6}), ElementsAre(8, 8, 8));
}

TEST(MixedWidths, AreChosenForTheDeepestNetworkToo) {
  const WidthTable table = random_table(27, 1);
  const Total widest = total(table, std::vector<int>(27, 8));
  for (const Budget& budget :
       {Budget{0.7 * widest.bytes, 0}, Budget{0.7 * widest.bytes, 0.8 * widest.seconds}}) {
    const Total found = total(table, choose_widths(table, budget));
    EXPECT_LE(found.bytes, budget.bytes);
    EXPECT_TRUE(budget.seconds == 0 || found.seconds <= budget.seconds);
    EXPECT_GT(found.bytes, 0.9 * budget.bytes);
  }
}

TEST(MixedWidths, RefusalsSayWhichBudgetIsTooSmall) {
  // Narrow is small but slow here, so that neither budget alone is too small.
  const WidthTable table{{{{8, 0, 10, 1}, {2, 1, 1, 10}}}, 0, 0};
  const auto refusal = [&](const Budget& budget) {
    try {
      choose_widths(table, budget);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("no refusal");
  };
  EXPECT_THAT(refusal({0.5, 100}), testing::HasSubstr("the smallest may have 1; raise --budget-bytes"));
  EXPECT_THAT(refusal({100, 0.5}), testing::HasSubstr("raise --budget-ms"));
  EXPECT_THAT(refusal({5, 5}), testing::HasSubstr("though each alone is possible"));
}

/// Where the whole network is slower than the sum of its layers, a choice that only seems fast enough is not
/// taken.
TEST(MixedWidths, AreMeasuredAsAWhole) {
  const NetworkDescription network = describe_network("he", 8, "B");
  const FloatParameters parameters = cases::random_parameters(network, 3);
  const auto pixels = cases::random_pixels(network, 4, 4);
  const CalibratedNetwork source = calibrated(network, parameters, pixels);
  const WidthTable table{{{{8, 0, 0, 2e-12}, {2, 1, 0, 1e-12}},
                          {{8, 0, 0, 2e-12}, {2, 1, 0, 1e-12}},
                          {{8, 0, 0, 2e-12}, {2, 1, 0, 1e-12}}},
                         0,
                         0};
  const QuantizationOptions options = default_options(2, 2);
  EXPECT_THAT(choose_measured_widths(source, table, {0, 10}, options), ElementsAre(8, 8, 8));
  EXPECT_THAT(choose_widths(table, {0, 1e-9}), ElementsAre(8, 8, 8));
  EXPECT_THROW(choose_measured_widths(source, table, {0, 1e-9}, options), InputError);
}

/// A network whose blocks differ is the same on every engine.
TEST(MixedWidths, NetworksOfDifferentBlocksAreOneNetwork) {
  const NetworkDescription network = describe_network("he", 8, "B");
  const FloatParameters parameters = cases::random_parameters(network, 3);
  const auto pixels = cases::random_pixels(network, 4, 4);
  for (const char* method : {"nearest", "blocks", "brecq"}) {
    QuantizationOptions options = default_options(8, 8);
    options.block_bits = {2, 8, 4};
    options.method = method;
    if (find_method(method).has_steps) options.learning_steps = 2;
    const QuantizedNetwork quantized = quantize(network, parameters, pixels, options);
    for (std::size_t b = 0; b < 3; ++b) {
      EXPECT_EQ(quantized.parameters.blocks[b].middle_bits, options.block_bits[b]);
      const auto conv2 = static_cast<std::size_t>(network.blocks[b].conv2);
      EXPECT_EQ(quantized.parameters.convolutions[conv2].weight_bits, options.block_bits[b]);
    }
    EXPECT_EQ(quantized.parameters.provenance.at(kMixedWidths), "2 8 4");
    std::vector<float> reference(40);
    std::vector<float> kernels(40);
    ReferenceNetwork(quantized).run(pixels.data(), 4, reference.data());
    IntegerNetwork(quantized, InstructionSet::reference).run(pixels.data(), 4, kernels.data());
    EXPECT_EQ(reference, kernels);
    EXPECT_EQ(reference, Simulation(network).run(quantized.parameters, pixels));
    IntegerNetwork(quantized, effective_instruction_set()).run(pixels.data(), 4, kernels.data());
    EXPECT_EQ(reference, kernels);
  }
}

TEST(MixedWidths, TableHoldsWhatTheFileHolds) {
  const NetworkDescription network = describe_network("he", 8, "B");
  const FloatParameters parameters = cases::random_parameters(network, 3);
  const auto pixels = cases::random_pixels(network, 4, 4);
  QuantizationOptions options = default_options(2, 2);
  int told = 0;
  options.progress = [&](const std::string&) { ++told; };
  const std::map<std::string, std::string> provenance = {{"source", "some.safetensors"}};
  const CalibratedNetwork source = calibrated(network, parameters, pixels);
  const WidthTable table = measure_widths(source, options, provenance);
  EXPECT_EQ(told, 6);
  ASSERT_EQ(table.blocks.size(), 3U);
  for (const std::vector<BlockWidth>& widths : table.blocks) {
    ASSERT_EQ(widths.size(), 3U);
    EXPECT_EQ(widths[0].loss, 0);
    EXPECT_GT(widths[2].loss, 0);
    EXPECT_GT(widths[0].bytes, 1.9 * widths[1].bytes);
    EXPECT_GT(widths[0].seconds, 0);
  }
  // Layer 1 of block 0: 16 x 16 x 9 weights twice.
  EXPECT_EQ(table.blocks[0][0].bytes, 2 * 2304);
  EXPECT_EQ(table.blocks[0][2].bytes, 2 * (2304 / 4 + 8));

  // What a budget is compared with is at least the file's size, and little more.
  const TemporaryFolder folder;
  for (const std::vector<int>& bits : {std::vector<int>{8, 8, 8}, {2, 2, 2}, {2, 8, 4}}) {
    QuantizationOptions chosen = options;
    chosen.bits = chosen.activation_bits = *std::max_element(bits.begin(), bits.end());
    chosen.block_bits = bits;
    QuantizedNetwork quantized = quantize(source, chosen);
    quantized.parameters.provenance.insert(provenance.begin(), provenance.end());
    write_quantized(folder / "mixed.safetensors", quantized);
    const auto size = static_cast<double>(std::filesystem::file_size(folder / "mixed.safetensors"));
    EXPECT_LE(size, total(table, bits).bytes);
    EXPECT_GT(size, total(table, bits).bytes - 100);
  }
}

}  // namespace
}  // namespace nibble
