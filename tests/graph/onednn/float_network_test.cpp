#include "graph/onednn/float_network.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "graph/network/error.h"
#include "graph/network/fold.h"
#include "tests/graph/onednn/cases.h"
#include "tests/graph/onednn/reference_network.h"

namespace nibble {
namespace {

std::size_t size(int value) {
  return static_cast<std::size_t>(value);
}

bool has_bf16() {
  try {
    require_precision(Precision::bf16);
    return true;
  } catch (const InputError&) {
    return false;
  }
}

/// The largest |actual - expected| beside the largest |expected|.
double error(std::span<const float> actual, std::span<const double> expected) {
  double difference = 0;
  double largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference = std::max(difference, std::abs(actual[i] - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  return difference / largest;
}

/// Every way a count is cut (one image on all threads, single images, full tiles, rests) gives what the
/// network with running statistics gives in double.
TEST(FloatNetwork, EqualsDoubleReferenceForEveryCount) {
  for (const auto& [variant, depth, shortcut] :
       {std::tuple("resnet_344", 0, ""), std::tuple("he", 20, "A"), std::tuple("he", 20, "B")}) {
    SCOPED_TRACE(std::string(variant) + shortcut);
    const NetworkDescription network = describe_network(variant, depth, shortcut);
    const FloatParameters parameters = cases::random_parameters(network, 11);
    const int most = 19;
    const auto pixels = cases::random_pixels(network, most, 12);
    reference::Network plain(network, reference::to_double(parameters));
    const reference::Values expected = plain.forward(pixels, most, false);
    FloatNetwork classifier(network, parameters, most);
    for (const int count : {1, 2, 3, 7, 8, 16, 19}) {
      // The rest of the buffer must stay as it was.
      std::vector<float> logits(size(most * network.classes), -7.0F);
      classifier.run(pixels, count, logits);
      const std::size_t written = size(count * network.classes);
      EXPECT_LT(error(std::span(logits).first(written), std::span(expected).first(written)), 5e-6) << count;
      EXPECT_TRUE(std::all_of(logits.begin() + static_cast<std::ptrdiff_t>(written), logits.end(),
                              [](float value) { return value == -7.0F; }));
    }
  }
}

TEST(FloatNetwork, OtherThreadCounts) {
  const NetworkDescription network = describe_network("he", 20, "A");
  const FloatParameters parameters = cases::random_parameters(network, 13);
  const int count = 9;
  const auto pixels = cases::random_pixels(network, count, 14);
  reference::Network plain(network, reference::to_double(parameters));
  const reference::Values expected = plain.forward(pixels, count, false);
  const int threads = omp_get_max_threads();
  for (const int other : {1, 3}) {
    omp_set_num_threads(other);
    FloatNetwork classifier(network, parameters, count);
    std::vector<float> logits(expected.size());
    classifier.run(pixels, count, logits);
    EXPECT_LT(error(logits, expected), 5e-6) << other << " threads";
    classifier.run(pixels, 1, logits);
    EXPECT_LT(error(std::span(logits).first(10), std::span(expected).first(10)), 5e-6) << other << " threads";
    omp_set_num_threads(threads);
  }
}

TEST(FloatNetwork, ProfileNamesEveryLayerAndCountsItsWork) {
  const NetworkDescription network = describe_network("he", 20, "A");
  FloatNetwork classifier(network, cases::random_parameters(network, 15), 4);
  const auto pixels = cases::random_pixels(network, 4, 16);
  const std::vector<LayerTime> times = classifier.profile(pixels, 4, 2);
  double work = 0;
  for (const LayerTime& each : times) {
    EXPECT_GT(each.seconds, 0) << each.name;
    work += each.multiply_accumulates;
  }
  EXPECT_EQ(work, 4.0 * static_cast<double>(network.multiply_accumulates()));
  for (const Convolution& convolution : network.convolutions) {
    EXPECT_EQ(std::count_if(times.begin(), times.end(),
                            [&](const LayerTime& each) { return each.name == convolution.name; }),
              1)
        << convolution.name;
  }
  EXPECT_EQ(classifier.implementations().size(), network.convolutions.size());
}

/// Where the CPU has the instructions BF16 is near FP32, elsewhere it is refused with a sentence.
TEST(FloatNetwork, Bf16) {
  const NetworkDescription network = describe_network("he", 20, "B");
  const FloatParameters parameters = cases::random_parameters(network, 17);
  if (!has_bf16()) {
    try {
      const FloatNetwork refused(network, parameters, 4, Precision::bf16);
      FAIL() << "BF16 without its instructions";
    } catch (const InputError& refusal) {
      EXPECT_NE(std::string(refusal.what()).find("no BF16 instructions"), std::string::npos);
    }
    return;
  }
  const int count = 9;
  const auto pixels = cases::random_pixels(network, count, 18);
  reference::Network plain(network, reference::to_double(parameters));
  const reference::Values expected = plain.forward(pixels, count, false);
  FloatNetwork classifier(network, parameters, count, Precision::bf16);
  std::vector<float> logits(expected.size());
  classifier.run(pixels, count, logits);
  EXPECT_LT(error(logits, expected), 0.03);
  classifier.run(pixels, 1, logits);
  EXPECT_LT(error(std::span(logits).first(10), std::span(expected).first(10)), 0.03);
}

TEST(FoldBatchNormalization, IsTheNormalizationItself) {
  const NetworkDescription network = describe_network("he", 20, "B");
  const FloatParameters parameters = cases::random_parameters(network, 19);
  const FoldedParameters folded = fold_batch_normalization(network, parameters);
  ASSERT_EQ(folded.convolutions.size(), network.convolutions.size());
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const FloatConvolution& source = parameters.convolutions[i];
    const std::size_t taps = source.weight.size() / source.gamma.size();
    for (std::size_t channel = 0; channel < source.gamma.size(); ++channel) {
      // Normalizing an accumulator of 1.5 times the first weight, in double, after the definition.
      const double accumulator = 1.5 * double{source.weight[channel * taps]};
      const double expected = (accumulator - double{source.running_mean[channel]}) /
                                  std::sqrt(double{source.running_variance[channel]} + 1e-5) *
                                  double{source.gamma[channel]} +
                              double{source.beta[channel]};
      const double actual = 1.5 * double{folded.convolutions[i].weight[channel * taps]} +
                            double{folded.convolutions[i].bias[channel]};
      EXPECT_NEAR(actual, expected, 1e-6) << network.convolutions[i].name;
    }
  }
  EXPECT_EQ(folded.linear_weight, parameters.linear_weight);
  EXPECT_EQ(folded.linear_bias, parameters.linear_bias);
}

}  // namespace
}  // namespace nibble
