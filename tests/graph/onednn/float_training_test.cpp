#include "graph/onednn/float_training.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "kernels/cpu.h"
#include "tests/graph/onednn/cases.h"
#include "tests/graph/onednn/reference_network.h"
#include "tests/messages.h"

namespace nibble {
namespace {

using reference::Tensors;
using reference::Values;

struct NamedNetwork {
  const char* name;
  NetworkDescription network;
};

std::vector<NamedNetwork> networks() {
  return {{"resnet_344", describe_network("resnet_344", 0, "")},
          {"he_20_A", describe_network("he", 20, "A")},
          {"he_20_B", describe_network("he", 20, "B")}};
}

std::size_t logit_count(const NetworkDescription& network, int count) {
  return static_cast<std::size_t>(count * network.classes);
}

double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// |a - b| / |b|, Euclidean.
template <typename Actual>
double relative_error(const Actual& actual, const Values& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double difference = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
  }
  return std::sqrt(difference / dot(expected, expected));
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

/// visit(name, tensor of `a`, tensor of `b`) for every trained tensor.
void for_tensors(const NetworkDescription& network, Tensors& a, Tensors& b,
                 const std::function<void(const std::string&, Values&, Values&)>& visit) {
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const std::string& name = network.convolutions[i].name;
    visit(name + ".weight", a.weight[i], b.weight[i]);
    visit(name + ".gamma", a.gamma[i], b.gamma[i]);
    visit(name + ".beta", a.beta[i], b.beta[i]);
  }
  visit("linear.weight", a.linear_weight, b.linear_weight);
  visit("linear.bias", a.linear_bias, b.linear_bias);
}

/// The reference's own gradient of every tensor, along a random direction, against central differences of its
/// own forward.
TEST(ReferenceNetwork, GradientsAreFiniteDifferences) {
  for (const NamedNetwork& each : networks()) {
    SCOPED_TRACE(each.name);
    const NetworkDescription network = cases::with_image_size(each.network, 8);
    const int count = 2;
    const auto pixels = cases::random_pixels(network, count, 7);
    const auto coefficients = cases::random_gradients(logit_count(network, count), 8);
    const Values loss(coefficients.begin(), coefficients.end());
    reference::Network plain(network, reference::to_double(cases::random_parameters(network, 9)));
    plain.forward(pixels, count, true);
    Tensors gradients = plain.backward(loss);
    std::mt19937 generator(10);
    std::normal_distribution<double> normal;
    for_tensors(network, plain.parameters, gradients,
                [&](const std::string& name, Values& parameter, Values& gradient) {
                  Values direction(parameter.size());
                  for (std::size_t i = 0; i < direction.size(); ++i) {
                    // Mostly along the gradient, so that the derivative is not a difference of large terms.
                    direction[i] = gradient[i] / std::sqrt(dot(gradient, gradient)) +
                                   0.5 * normal(generator) / std::sqrt(static_cast<double>(direction.size()));
                  }
                  const Values original = parameter;
                  const double step = 1e-6;
                  const auto loss_at = [&](double distance) {
                    for (std::size_t i = 0; i < parameter.size(); ++i) {
                      parameter[i] = original[i] + distance * direction[i];
                    }
                    return dot(plain.forward(pixels, count, true), loss);
                  };
                  const double difference = (loss_at(step) - loss_at(-step)) / (2 * step);
                  parameter = original;
                  const double analytic = dot(gradient, direction);
                  EXPECT_NEAR(difference / analytic, 1.0, 1e-5) << name;
                });
  }
}

/// One step of the float network in FP32 against the double reference, every tensor, whole images. The bounds
/// are a few times what FP32 gives here; a wrong coefficient anywhere gives at least 1e-2.
TEST(FloatTraining, StepEqualsDoubleReference) {
  for (const NamedNetwork& each : networks()) {
    SCOPED_TRACE(each.name);
    const NetworkDescription& network = each.network;
    const int count = 3;  // the last tile of most layers is not full
    const FloatParameters parameters = cases::random_parameters(network, 1);
    const auto coefficients = cases::random_gradients(logit_count(network, count), 3);
    reference::Network plain(network, reference::to_double(parameters));
    // FP32 may put a value that lies next to zero on the other side, which changes a gradient by much more
    // than rounding does: take images without such values.
    std::vector<std::uint8_t> pixels;
    Values expected_logits;
    std::uint32_t seed = 100;
    do {
      pixels = cases::random_pixels(network, count, seed++);
      expected_logits = plain.forward(pixels, count, true);
    } while (plain.relu_margin < 3e-6);
    Tensors expected = plain.backward(Values(coefficients.begin(), coefficients.end()));

    FloatTraining training(network, 8);
    training.set_parameters(parameters);
    EXPECT_LT(relative_error(training.forward(pixels, count), expected_logits), 1e-5);
    training.backward(coefficients);
    auto group = training.groups().begin();
    for_tensors(network, expected, expected, [&](const std::string& name, Values& values, Values&) {
      ASSERT_NE(group, training.groups().end());
      EXPECT_EQ(group->name, name);
      EXPECT_LT(relative_error(training.gradients().subspan(group->offset, group->count), values), 1e-4)
          << name;
      ++group;
    });
    EXPECT_EQ(group, training.groups().end());

    const FloatParameters after = training.parameters();
    for (std::size_t layer = 0; layer < network.convolutions.size(); ++layer) {
      const Convolution& shape = network.convolutions[layer];
      const double pixel_count = count * shape.output_height() * shape.output_width();
      Values mean = plain.batch_mean[layer];
      Values variance = plain.batch_variance[layer];
      for (std::size_t channel = 0; channel < mean.size(); ++channel) {
        const FloatConvolution& before = parameters.convolutions[layer];
        mean[channel] = 0.9 * before.running_mean[channel] + 0.1 * mean[channel];
        variance[channel] = 0.9 * before.running_variance[channel] +
                            0.1 * variance[channel] * pixel_count / (pixel_count - 1);
      }
      EXPECT_LT(relative_error(after.convolutions[layer].running_mean, mean), 1e-5) << shape.name;
      EXPECT_LT(relative_error(after.convolutions[layer].running_variance, variance), 1e-5) << shape.name;
    }
  }
}

/// Logits and gradients of two steps with a plain descent between them.
std::vector<float> two_steps(FloatTraining& training, const NetworkDescription& network, int count) {
  const auto pixels = cases::random_pixels(network, count, 2);
  const auto coefficients = cases::random_gradients(logit_count(network, count), 3);
  training.set_parameters(cases::random_parameters(network, 1));
  std::vector<float> seen;
  for (int step = 0; step < 2; ++step) {
    const auto logits = training.forward(pixels, count);
    seen.insert(seen.end(), logits.begin(), logits.end());
    training.backward(coefficients);
    const auto gradients = training.gradients();
    seen.insert(seen.end(), gradients.begin(), gradients.end());
    for (std::size_t i = 0; i < gradients.size(); ++i) training.trainable()[i] -= 0.01F * gradients[i];
  }
  const FloatParameters after = training.parameters();
  for (const FloatConvolution& each : after.convolutions) {
    seen.insert(seen.end(), each.running_mean.begin(), each.running_mean.end());
    seen.insert(seen.end(), each.running_variance.begin(), each.running_variance.end());
  }
  return seen;
}

TEST(FloatTraining, SameStepsGiveSameBitsForAnyThreadsAndCapacity) {
  const int threads = omp_get_max_threads();
  struct Case {
    NamedNetwork network;
    Precision precision;
  };
  std::vector<Case> all;
  for (const NamedNetwork& each : networks()) all.push_back({each, Precision::fp32});
  if (has_avx512_bf16()) all.push_back({networks()[0], Precision::bf16});
  for (const auto& [each, precision] : all) {
    SCOPED_TRACE(each.name);
    const int count = 7;
    FloatTraining training(each.network, count, precision);
    const std::vector<float> first = two_steps(training, each.network, count);
    EXPECT_TRUE(same_bits(first, two_steps(training, each.network, count)));
    FloatTraining larger(each.network, 16, precision);
    two_steps(larger, each.network, 16);  // leaves a larger batch behind
    EXPECT_TRUE(same_bits(first, two_steps(larger, each.network, count)));
    const bool many = each.network.shortcut == "A" || precision == Precision::bf16;
    for (int other = 1; other <= (many ? 3 : 1); ++other) {
      omp_set_num_threads(other);
      FloatTraining again(each.network, count, precision);
      EXPECT_TRUE(same_bits(first, two_steps(again, each.network, count))) << other << " threads";
      omp_set_num_threads(threads);
    }
  }
}

/// A batch of one image is the smallest that normalization over 64 pixels and more allows.
TEST(FloatTraining, OneImage) {
  const NetworkDescription network = describe_network("he", 20, "A");
  const FloatParameters parameters = cases::random_parameters(network, 4);
  const auto pixels = cases::random_pixels(network, 1, 5);
  reference::Network plain(network, reference::to_double(parameters));
  FloatTraining training(network, 64);
  training.set_parameters(parameters);
  EXPECT_LT(relative_error(training.forward(pixels, 1), plain.forward(pixels, 1, true)), 1e-5);
}

TEST(FloatTraining, ParametersComeBackAndGroupsCoverThem) {
  const NetworkDescription network = describe_network("he", 20, "B");
  const FloatParameters parameters = cases::random_parameters(network, 6);
  FloatTraining training(network, 4);
  training.set_parameters(parameters);
  const FloatParameters back = training.parameters();
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    EXPECT_EQ(back.convolutions[i].weight, parameters.convolutions[i].weight);
    EXPECT_EQ(back.convolutions[i].gamma, parameters.convolutions[i].gamma);
    EXPECT_EQ(back.convolutions[i].beta, parameters.convolutions[i].beta);
    EXPECT_EQ(back.convolutions[i].running_mean, parameters.convolutions[i].running_mean);
    EXPECT_EQ(back.convolutions[i].running_variance, parameters.convolutions[i].running_variance);
  }
  EXPECT_EQ(back.linear_weight, parameters.linear_weight);
  EXPECT_EQ(back.linear_bias, parameters.linear_bias);
  std::size_t offset = 0;
  for (const ParameterGroup& group : training.groups()) {
    EXPECT_EQ(group.offset, offset) << group.name;
    offset += group.count;
  }
  EXPECT_EQ(offset, training.trainable().size());
  EXPECT_EQ(offset, static_cast<std::size_t>(network.parameter_count()));
}

/// BF16 against FP32, tensor by tensor: each gradient points the same way. The bounds are what BF16's 8 bits
/// leave of a random network's gradient here; a wrong or missing term in any layer is far below them.
TEST(FloatTraining, Bf16FollowsFp32) {
  if (!has_avx512_bf16()) GTEST_SKIP() << "this CPU has no BF16 instructions";
  for (const NamedNetwork& each : networks()) {
    SCOPED_TRACE(each.name);
    const NetworkDescription& network = each.network;
    const int count = 8;
    const FloatParameters parameters = cases::random_parameters(network, 21);
    const auto pixels = cases::random_pixels(network, count, 22);
    const auto coefficients = cases::random_gradients(logit_count(network, count), 23);
    FloatTraining exact(network, count);
    FloatTraining training(network, count, Precision::bf16);
    exact.set_parameters(parameters);
    training.set_parameters(parameters);
    const auto expected_logits = exact.forward(pixels, count);
    EXPECT_LT(relative_error(training.forward(pixels, count),
                             Values(expected_logits.begin(), expected_logits.end())),
              0.05);
    exact.backward(coefficients);
    training.backward(coefficients);
    for (const ParameterGroup& group : exact.groups()) {
      const auto values = [&](FloatTraining& from) {
        const auto gradient = from.gradients().subspan(group.offset, group.count);
        return Values(gradient.begin(), gradient.end());
      };
      const Values expected = values(exact);
      const Values actual = values(training);
      EXPECT_GT(dot(actual, expected) / std::sqrt(dot(actual, actual) * dot(expected, expected)), 0.8)
          << group.name;
      EXPECT_NEAR(std::sqrt(dot(actual, actual) / dot(expected, expected)), 1, 0.3) << group.name;
    }
  }
}

TEST(FloatTraining, Bf16IsRefusedWithoutItsInstructions) {
  if (has_avx512_bf16()) GTEST_SKIP() << "this CPU has BF16 instructions";
  EXPECT_NE(message_of([] {
              FloatTraining training(describe_network("he", 8, "A"), 8, Precision::bf16);
            }).find("no BF16 instructions"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble
