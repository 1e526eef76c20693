#include "graph/network/integer_network.h"

#include <gmock/gmock.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>

#include "graph/network/error.h"
#include "graph/network/instruction_set.h"
#include "graph/network/reference_network.h"
#include "graph/network/signature.h"
#include "tests/count_allocations.h"
#include "tests/environment.h"
#include "tests/graph/network/random_network.h"
#include "tests/messages.h"

namespace nibble {
namespace {

struct Case {
  const char* variant;
  int depth;
  const char* shortcut;
  int weight_bits;
  int activation_bits;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.variant << c.depth << c.shortcut << " w" << c.weight_bits << " a" << c.activation_bits;
}

QuantizedNetwork network_of(const Case& c) {
  return random_network(describe_network(c.variant, c.depth, c.shortcut), c.weight_bits, c.activation_bits,
                        21);
}

/// With every instruction set that may be used, on one thread: a single image, then others in a tile that is
/// not full. `pixels` and `expected` are of 63 images or more.
void expect_equal_singly_and_in_a_tile(const QuantizedNetwork& quantized,
                                       const std::vector<std::uint8_t>& pixels,
                                       const std::vector<float>& expected) {
  omp_set_num_threads(1);
  for (int set = static_cast<int>(InstructionSet::avx2); set <= static_cast<int>(effective_instruction_set());
       ++set) {
    const IntegerNetwork network(quantized, static_cast<InstructionSet>(set));
    EXPECT_LE(static_cast<int>(network.instruction_set()), set);
    const int images = network.plan().lanes - 2;
    EXPECT_EQ(network.images_in_tiles(1), 0);
    EXPECT_EQ(network.images_in_tiles(images), images);
    std::vector<float> logits(static_cast<std::size_t>(1 + images) * 10);
    network.run(pixels.data(), 1, logits.data());
    network.run(pixels.data() + 3072, images, logits.data() + 10);
    EXPECT_EQ(logits, std::vector<float>(expected.begin(), expected.begin() + (1 + images) * 10))
        << "instruction set " << set << ": " << network.text();
  }
}

class IntegerNetworkOf : public testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Networks, IntegerNetworkOf,
                         testing::Values(Case{"resnet_344", 24, "B", 16, 16},
                                         Case{"resnet_344", 24, "B", 8, 8}, Case{"resnet_344", 24, "B", 4, 4},
                                         Case{"resnet_344", 24, "B", 2, 2}, Case{"resnet_344", 24, "B", 2, 8},
                                         Case{"resnet_344", 24, "B", 4, 8}, Case{"resnet_344", 24, "B", 2, 4},
                                         Case{"he", 20, "A", 16, 16}, Case{"he", 20, "A", 8, 8},
                                         Case{"he", 20, "A", 4, 4}, Case{"he", 20, "A", 2, 2},
                                         Case{"he", 20, "B", 8, 8}, Case{"he", 20, "B", 2, 2}));

TEST_P(IntegerNetworkOf, EqualsTheReferenceWithAnyBatchThreadsAndInstructionSet) {
  const QuantizedNetwork quantized = network_of(GetParam());
  constexpr int kImages = 70;
  const std::vector<std::uint8_t> pixels = random_pixels(kImages, 22);
  std::vector<float> expected(kImages * 10);
  omp_set_num_threads(omp_get_num_procs());
  ReferenceNetwork(quantized).run(pixels.data(), kImages, expected.data());
  for (const int threads : {1, 2, 3, 4, 5}) {
    omp_set_num_threads(threads);
    const IntegerNetwork network(quantized, effective_instruction_set());
    if (network.instruction_set() == InstructionSet::reference) {
      std::puts("no kernel of this CPU's is within NIBBLE_MAX_ISA: two images on the scalar reference");
      std::vector<float> logits(20);
      network.run(pixels.data(), 2, logits.data());
      EXPECT_EQ(logits, std::vector<float>(expected.begin(), expected.begin() + 20));
      break;
    }
    for (const int batch : {1, 2, 31, 32, kImages}) {
      std::vector<float> logits(kImages * 10);
      for (int first = 0; first < kImages; first += batch) {
        if (batch < 31 && first >= 6) {  // enough of the small ones
          std::copy(expected.begin() + first * 10, expected.end(), logits.begin() + first * 10);
          break;
        }
        network.run(pixels.data() + first * 3072, std::min(batch, kImages - first),
                    logits.data() + first * 10);
      }
      EXPECT_EQ(signature(logits), signature(expected)) << threads << " threads, batch " << batch;
    }
  }

  // The older CPUs' kernels, lanes and plans too.
  expect_equal_singly_and_in_a_tile(quantized, pixels, expected);
}

/// One tile for each thread, the last one not full.
TEST(IntegerNetwork, TilesOfEveryInstructionSetOnSeveralThreads) {
  for (const int bits : {16, 8, 4, 2}) {
    const QuantizedNetwork quantized = random_network(describe_network("he", 8, "B"), bits, bits, 61);
    std::vector<std::uint8_t> pixels;
    std::vector<float> expected;
    for (int set = static_cast<int>(InstructionSet::avx2);
         set <= static_cast<int>(effective_instruction_set()); ++set) {
      for (const int threads : {2, 3, 4, 5}) {
        omp_set_num_threads(threads);
        const IntegerNetwork network(quantized, static_cast<InstructionSet>(set));
        const int images = network.plan().lanes * threads - 3;
        ASSERT_EQ(network.images_in_tiles(images), images);
        if (expected.size() < static_cast<std::size_t>(images) * 10) {
          pixels = random_pixels(network.plan().lanes * 5, 62);
          expected.resize(static_cast<std::size_t>(network.plan().lanes) * 50);
          omp_set_num_threads(omp_get_num_procs());
          ReferenceNetwork(quantized).run(pixels.data(), network.plan().lanes * 5, expected.data());
          omp_set_num_threads(threads);
        }
        std::vector<float> logits(static_cast<std::size_t>(images) * 10);
        network.run(pixels.data(), images, logits.data());
        EXPECT_TRUE(std::equal(logits.begin(), logits.end(), expected.begin()))
            << bits << " bits, instruction set " << set << ", " << threads << " threads";
      }
    }
  }
}

/// Maps cut by rows, by channels, and by both, in each instruction set's formats.
TEST(IntegerNetwork, ASingleImageOfEveryInstructionSetOnSeveralThreads) {
  constexpr int kImages = 2;
  const std::vector<std::uint8_t> pixels = random_pixels(kImages, 64);
  for (const int bits : {16, 8, 4, 2}) {
    const QuantizedNetwork quantized = random_network(describe_network("he", 8, "B"), bits, bits, 63);
    std::vector<float> expected(kImages * 10);
    omp_set_num_threads(omp_get_num_procs());
    ReferenceNetwork(quantized).run(pixels.data(), kImages, expected.data());
    for (int set = static_cast<int>(InstructionSet::avx2);
         set <= static_cast<int>(effective_instruction_set()); ++set) {
      for (const int threads : {2, 3, 4, 6, 8}) {
        omp_set_num_threads(threads);
        const IntegerNetwork network(quantized, static_cast<InstructionSet>(set));
        std::vector<float> logits(kImages * 10);
        for (int image = 0; image < kImages; ++image) {
          network.run(pixels.data() + image * 3072, 1, logits.data() + image * 10);
        }
        EXPECT_EQ(logits, expected) << bits << " bits, instruction set " << set << ", " << threads
                                    << " threads";
      }
    }
  }
}

/// Levels that some kernels' proofs refuse, in every second layer: layers of one network then are left to
/// kernels of different instruction sets, which must agree on the formats of the maps between them.
TEST(IntegerNetwork, KernelsOfOneNetworkAgreeWhateverItsLevels) {
  constexpr int kImages = 63;  // a single one, and a tile of 64 that is not full
  const std::vector<std::uint8_t> pixels = random_pixels(kImages, 52);
  for (const int first : {0, 1}) {
    QuantizedNetwork quantized = random_network(describe_network("he", 8, "B"), 2, 2, 51);
    std::vector<QuantizedLayer>& layers = quantized.parameters.convolutions;
    for (std::size_t i = 1 + static_cast<std::size_t>(first); i < layers.size(); i += 2) {
      for (std::int16_t& weight : layers[i].weights) {
        if (std::abs(weight) == 3) weight = static_cast<std::int16_t>(10 * weight);
      }
      layers[i].levels = {-30, -1, 1, 30};
      for (float& scale : layers[i].weight_scale) scale /= 10;
    }
    std::vector<float> expected(kImages * 10);
    omp_set_num_threads(omp_get_num_procs());
    ReferenceNetwork(quantized).run(pixels.data(), kImages, expected.data());
    SCOPED_TRACE(first);
    expect_equal_singly_and_in_a_tile(quantized, pixels, expected);
  }
}

/// include/nibble/network.h: callers from several threads take turns, and running allocates nothing.
TEST(IntegerNetwork, SeveralThreadsMayCallAndNothingIsAllocated) {
  omp_set_num_threads(2);
  const QuantizedNetwork quantized = random_network(describe_network("he", 8, "A"), 4, 4, 41);
  const IntegerNetwork network(quantized, effective_instruction_set());
  const int images = 2 * network.plan().lanes + 1;  // a tile each, and a single image
  EXPECT_EQ(network.images_in_tiles(images), images - 1);
  const std::vector<std::uint8_t> pixels = random_pixels(images, 42);
  std::vector<float> expected(static_cast<std::size_t>(images) * 10);
  ReferenceNetwork(quantized).run(pixels.data(), images, expected.data());
  std::vector<std::vector<float>> logits(3, std::vector<float>(expected.size()));
  std::vector<std::thread> callers;
  for (std::vector<float>& own : logits) {
    callers.emplace_back([&] {
      omp_set_num_threads(1);
      for (int turn = 0; turn < 20; ++turn) network.run(pixels.data(), images, own.data());
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const std::vector<float>& own : logits) EXPECT_EQ(own, expected);

  network.run(pixels.data(), images, logits[0].data());  // OpenMP's own threads have begun
  network.run(pixels.data(), 1, logits[0].data());
  const long before = allocations;
  network.run(pixels.data(), images, logits[0].data());
  network.run(pixels.data(), 1, logits[0].data());
  EXPECT_EQ(allocations, before);
}

TEST(IntegerNetwork, RunsOnTheScalarReferenceAlone) {
  omp_set_num_threads(2);
  for (const int bits : {16, 8, 4, 2}) {
    const QuantizedNetwork quantized = random_network(describe_network("he", 20, "A"), bits, bits, 5);
    const std::vector<std::uint8_t> pixels = random_pixels(3, 6);
    std::vector<float> expected(30);
    ReferenceNetwork(quantized).run(pixels.data(), 3, expected.data());
    const IntegerNetwork network(quantized, InstructionSet::reference);
    EXPECT_EQ(network.instruction_set(), InstructionSet::reference);
    std::vector<float> logits(30);
    network.run(pixels.data(), 3, logits.data());
    EXPECT_EQ(logits, expected);
  }
}

TEST(IntegerNetwork, RunsLayersOfDifferentWidths) {
  omp_set_num_threads(2);
  const NetworkDescription description = describe_network("resnet_344", 0, "");
  QuantizedNetwork mixed = random_network(description, 2, 2, 31);
  const QuantizedNetwork four = random_network(description, 4, 4, 32);
  const QuantizedNetwork eight = random_network(description, 8, 8, 33);
  const auto take = [&](std::size_t block, const QuantizedNetwork& from, int input_bits, int middle_bits) {
    for (const int index : {description.blocks[block].conv1, description.blocks[block].conv2,
                            description.blocks[block].projection}) {
      if (index < 0) continue;
      mixed.parameters.convolutions[static_cast<std::size_t>(index)] =
          from.parameters.convolutions[static_cast<std::size_t>(index)];
    }
    QuantizedBlock& block_scales = mixed.parameters.blocks[block];
    block_scales.input_bits = input_bits;
    block_scales.middle_bits = middle_bits;
    const float stream =
        block == 0 ? mixed.parameters.first_output_scale : mixed.parameters.blocks[block - 1].output_scale;
    block_scales.input_scale = input_bits == 8 ? stream : 3.0F / 15.0F;
    block_scales.middle_scale = 3.0F / static_cast<float>((1 << middle_bits) - 1);
  };
  take(1, four, 4, 4);
  take(3, eight, 8, 8);
  take(4, four, 8, 4);
  take(7, eight, 4, 8);
  take(10, eight, 8, 8);
  constexpr int kImages = 63;
  const std::vector<std::uint8_t> pixels = random_pixels(kImages, 34);
  std::vector<float> expected(kImages * 10);
  ReferenceNetwork(mixed).run(pixels.data(), kImages, expected.data());
  expect_equal_singly_and_in_a_tile(mixed, pixels, expected);
}

TEST(IntegerNetwork, StaysWithinItsMemory) {
  omp_set_num_threads(1);
  const NetworkDescription description = describe_network("resnet_344", 0, "");
  for (const int bits : {16, 8, 4, 2}) {
    const IntegerNetwork network(random_network(description, bits, bits, 1), effective_instruction_set());
    EXPECT_LE(network.scratch_bytes(), std::size_t{2'000'000}) << bits << " bits";
    if (bits == 2) {
      EXPECT_LE(network.plan_bytes(), std::size_t{500'000});
    }
  }
}

TEST(EffectiveInstructionSet, NamesTheVariableThatIsWrong) {
  {
    const EnvironmentVariable wrong("NIBBLE_MAX_ISA", "sse9");
    EXPECT_THAT(message_of([] { effective_instruction_set(); }), testing::HasSubstr("NIBBLE_MAX_ISA"));
  }
  const EnvironmentVariable reference("NIBBLE_MAX_ISA", "reference");
  EXPECT_EQ(effective_instruction_set(), InstructionSet::reference);
}

}  // namespace
}  // namespace nibble
