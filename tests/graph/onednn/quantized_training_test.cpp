#include "graph/onednn/quantized_training.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>

#include "graph/onednn/fake_quantization.h"
#include "kernels/cpu.h"
#include "tests/graph/onednn/cases.h"
#include "tests/graph/onednn/quantized_reference.h"

namespace nibble {
namespace {

using reference::Tensors;
using reference::Values;

struct Case {
  const char* name;
  NetworkDescription network;
  int weight_bits, activation_bits;
};

/// Small images: the plain loops in double take most of the time.
std::vector<Case> step_cases() {
  const auto small = [](const NetworkDescription& network) { return cases::with_image_size(network, 8); };
  const NetworkDescription reference = small(describe_network("resnet_344", 0, ""));
  return {{"resnet_344 W2A2", reference, 2, 2},
          {"resnet_344 W4A4", reference, 4, 4},
          {"resnet_344 W2A8", reference, 2, 8},
          {"he A W8A8", small(describe_network("he", 20, "A")), 8, 8},
          {"he A W4A2", small(describe_network("he", 20, "A")), 4, 2},
          {"he B W2A4", small(describe_network("he", 20, "B")), 2, 4}};
}

/// Scales near what fits random_parameters, each its own; some values of every tensor are clipped.
LearnedScales random_scales(const Case& each, const FloatParameters& parameters, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> around(0.7F, 1.3F);
  LearnedScales scales;
  scales.weight_bits = each.weight_bits;
  scales.activation_bits = each.activation_bits;
  const auto of_weights = [&](const std::vector<float>& weights, std::size_t channels, int bits) {
    double square = 0;
    for (const float weight : weights) square += double{weight} * double{weight};
    const double deviation = std::sqrt(square / static_cast<double>(weights.size()));
    const double clip = double{weight_clip(bits)};
    std::vector<float> result(channels);
    for (float& scale : result) {
      scale = around(generator) * static_cast<float>((bits == 2 ? 1.5 : 2.2) * deviation / clip);
    }
    return result;
  };
  for (std::size_t i = 0; i < each.network.convolutions.size(); ++i) {
    scales.weights.push_back(of_weights(parameters.convolutions[i].weight,
                                        parameters.convolutions[i].gamma.size(),
                                        trained_weight_bits(scales, i)));
  }
  scales.linear = of_weights(parameters.linear_weight, parameters.linear_bias.size(), 8);
  const float limit = static_cast<float>((1 << each.activation_bits) - 1);
  scales.first_output = 2.0F / 255 * around(generator);
  for (std::size_t i = 0; i < each.network.blocks.size(); ++i) {
    scales.blocks.push_back({2.0F / limit * around(generator), 1.8F / limit * around(generator),
                             2.0F / 127 * around(generator), 2.5F / 255 * around(generator)});
  }
  return scales;
}

template <typename Actual>
double relative_error(const Actual& actual, const Values& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double difference = 0;
  double square = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    square += expected[i] * expected[i];
  }
  return std::sqrt(difference / square);
}

TEST(FakeQuantization, NearestWeights) {
  for (int step = -600; step <= 600; ++step) {
    const float v = static_cast<float>(step) / 64;
    for (const int bits : {2, 4, 8}) {
      const float q = quantize_weight(v, bits);
      const float limit = weight_clip(bits);
      EXPECT_LE(std::fabs(q), limit);
      EXPECT_EQ(q, std::nearbyint(q));
      if (bits == 2) {
        EXPECT_EQ(std::fmod(std::fabs(q), 2.0F), 1.0F) << v;
      }
      EXPECT_LE(std::fabs(q - std::clamp(v, -limit, limit)), bits == 2 ? 1.0F : 0.5F) << v;
    }
  }
}

/// One step in FP32 against the double reference in real units: logits, every tensor's gradient, every
/// scale's. A value that FP32 rounds to the neighbouring integer changes its gradients by far more than
/// FP32's own error, so the bounds are a few times what such values give here; a wrong term gives at least
/// 3e-2.
TEST(QuantizedTraining, StepEqualsDoubleReference) {
  for (const Case& each : step_cases()) {
    SCOPED_TRACE(each.name);
    const NetworkDescription& network = each.network;
    const int count = 3;
    const FloatParameters parameters = cases::random_parameters(network, 1);
    const LearnedScales scales = random_scales(each, parameters, 2);
    const auto coefficients = cases::random_gradients(static_cast<std::size_t>(count * network.classes), 3);
    reference::QuantizedNetwork plain(network, reference::to_double(parameters), scales);
    // Images of which FP32 rounds no value to the neighbouring integer, which shows in the logits.
    double error = 1;
    QuantizedTraining training(network, scales, 8);
    for (std::uint32_t seed = 4; error > 1e-5 && seed < 40; ++seed) {
      const auto pixels = cases::random_pixels(network, count, seed);
      training.set_parameters(parameters);
      error = relative_error(training.forward(pixels, count), plain.forward(pixels, count));
    }
    ASSERT_LT(error, 1e-5);
    const Tensors expected = plain.backward(Values(coefficients.begin(), coefficients.end()));
    training.backward(coefficients);

    auto group = training.groups().begin();
    const auto expect = [&](const std::string& name, const Values& values) {
      ASSERT_NE(group, training.groups().end());
      EXPECT_EQ(group->name, name);
      EXPECT_LT(relative_error(training.gradients().subspan(group->offset, group->count), values), 1e-2)
          << name;
      ++group;
    };
    for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
      const std::string& name = network.convolutions[i].name;
      expect(name + ".weight", expected.weight[i]);
      expect(name + ".gamma", expected.gamma[i]);
      expect(name + ".beta", expected.beta[i]);
    }
    expect("linear.weight", expected.linear_weight);
    expect("linear.bias", expected.linear_bias);
    // Sums in which most terms cancel: relative to the largest of their kind.
    double largest = 0;
    for (const auto& block : plain.block_gradients) {
      largest = std::max({largest, std::fabs(block.input), std::fabs(block.middle), std::fabs(block.output)});
    }
    const auto expect_scale = [&](const std::string& name, double value) {
      ASSERT_NE(group, training.groups().end());
      EXPECT_EQ(group->name, name);
      EXPECT_NEAR(double{training.gradients()[group->offset]}, value,
                  1e-2 * std::fabs(value) + 1e-3 * largest)
          << name;
      ++group;
    };
    expect_scale("first_output_scale", plain.first_output_gradient);
    for (std::size_t i = 0; i < network.blocks.size(); ++i) {
      const std::string name = "blocks." + std::to_string(i);
      const auto& block = plain.block_gradients[i];
      if (each.activation_bits < 8) expect_scale(name + ".input_scale", block.input);
      expect_scale(name + ".middle_scale", block.middle);
      if (network.blocks[i].projection >= 0) expect_scale(name + ".shortcut_scale", block.shortcut);
      expect_scale(name + ".output_scale", block.output);
    }
    const auto expect_scales = [&](const std::string& name, const Values& values, const Values& terms) {
      ASSERT_NE(group, training.groups().end());
      EXPECT_EQ(group->name, name);
      ASSERT_EQ(group->count, values.size());
      double difference = 0;
      double square = 0;
      for (std::size_t c = 0; c < values.size(); ++c) {
        difference += std::pow(double{training.gradients()[group->offset + c]} - values[c], 2);
        square += terms[c] * terms[c];
      }
      EXPECT_LT(std::sqrt(difference / square), 1e-2) << name;
      ++group;
    };
    for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
      expect_scales(network.convolutions[i].name + ".weight_scale", plain.weight_scale_gradients[i],
                    plain.weight_scale_terms[i]);
    }
    expect_scales("linear.weight_scale", plain.linear_scale_gradients, plain.linear_scale_terms);
    EXPECT_EQ(group, training.groups().end());

    // The running statistics are in real units.
    const FloatParameters after = training.parameters();
    for (std::size_t layer = 0; layer < network.convolutions.size(); ++layer) {
      const Convolution& shape = network.convolutions[layer];
      const double pixel_count = count * shape.output_height() * shape.output_width();
      Values mean = plain.batch_mean[layer];
      Values variance = plain.batch_variance[layer];
      for (std::size_t channel = 0; channel < mean.size(); ++channel) {
        const FloatConvolution& before = parameters.convolutions[layer];
        mean[channel] = 0.9 * double{before.running_mean[channel]} + 0.1 * mean[channel];
        variance[channel] = 0.9 * double{before.running_variance[channel]} +
                            0.1 * variance[channel] * pixel_count / (pixel_count - 1);
      }
      EXPECT_LT(relative_error(after.convolutions[layer].running_mean, mean), 1e-3) << shape.name;
      EXPECT_LT(relative_error(after.convolutions[layer].running_variance, variance), 1e-3) << shape.name;
    }
  }
}

TEST(QuantizedTraining, SameStepsGiveSameBitsForAnyThreads) {
  const Case each{"", cases::with_image_size(describe_network("resnet_344", 0, ""), 16), 2, 2};
  const FloatParameters parameters = cases::random_parameters(each.network, 5);
  const LearnedScales scales = random_scales(each, parameters, 6);
  const int count = 7;
  const auto pixels = cases::random_pixels(each.network, count, 7);
  const auto coefficients =
      cases::random_gradients(static_cast<std::size_t>(count * each.network.classes), 8);
  const auto two_steps = [&](int batch_size, Precision precision) {
    QuantizedTraining training(each.network, scales, batch_size, precision);
    training.set_parameters(parameters);
    std::vector<float> seen;
    for (int step = 0; step < 2; ++step) {
      const auto logits = training.forward(pixels, count);
      seen.insert(seen.end(), logits.begin(), logits.end());
      training.backward(coefficients);
      const auto gradients = training.gradients();
      seen.insert(seen.end(), gradients.begin(), gradients.end());
      for (std::size_t i = 0; i < gradients.size(); ++i) training.trainable()[i] -= 1e-3F * gradients[i];
      training.keep_scales_positive();
    }
    return seen;
  };
  const int threads = omp_get_max_threads();
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    if (precision == Precision::bf16 && !has_avx512_bf16()) continue;
    const std::vector<float> first = two_steps(count, precision);
    EXPECT_EQ(first, two_steps(16, precision));
    for (int other = 1; other <= 3; ++other) {
      omp_set_num_threads(other);
      EXPECT_EQ(first, two_steps(count, precision)) << other << " threads";
    }
    omp_set_num_threads(threads);
  }
}

/// Integers and their sums are exact in BF16 too, so the logits are the same bits; gradients are rounded to
/// BF16.
TEST(QuantizedTraining, Bf16ComputesTheSameIntegers) {
  if (!has_avx512_bf16()) GTEST_SKIP() << "this CPU has no BF16 instructions";
  for (const Case& each : step_cases()) {
    SCOPED_TRACE(each.name);
    const int count = 8;
    const FloatParameters parameters = cases::random_parameters(each.network, 1);
    const LearnedScales scales = random_scales(each, parameters, 2);
    const auto pixels = cases::random_pixels(each.network, count, 4);
    const auto coefficients =
        cases::random_gradients(static_cast<std::size_t>(count * each.network.classes), 3);
    QuantizedTraining exact(each.network, scales, count);
    QuantizedTraining training(each.network, scales, count, Precision::bf16);
    exact.set_parameters(parameters);
    training.set_parameters(parameters);
    const auto expected_logits = exact.forward(pixels, count);
    const auto logits = training.forward(pixels, count);
    EXPECT_TRUE(std::equal(logits.begin(), logits.end(), expected_logits.begin()));
    exact.backward(coefficients);
    training.backward(coefficients);
    for (const ParameterGroup& group : exact.groups()) {
      if (group.kind == ParameterKind::quantizer_scale) continue;  // sums in which most terms cancel
      double product = 0;
      double square = 0;
      double expected_square = 0;
      for (std::size_t i = group.offset; i < group.offset + group.count; ++i) {
        const double actual = double{training.gradients()[i]};
        const double expected = double{exact.gradients()[i]};
        product += actual * expected;
        square += actual * actual;
        expected_square += expected * expected;
      }
      EXPECT_GT(product / std::sqrt(square * expected_square), 0.98) << group.name;
      EXPECT_NEAR(std::sqrt(square / expected_square), 1, 0.1) << group.name;
    }
  }
}

TEST(QuantizedTraining, ScalesComeBackAndStayPositive) {
  const Case each{"", describe_network("he", 20, "B"), 2, 8};
  const FloatParameters parameters = cases::random_parameters(each.network, 9);
  const LearnedScales scales = random_scales(each, parameters, 10);
  QuantizedTraining training(each.network, scales, 2);
  const LearnedScales back = training.scales();
  EXPECT_EQ(back.weights, scales.weights);
  EXPECT_EQ(back.linear, scales.linear);
  EXPECT_EQ(back.first_output, scales.first_output);
  for (std::size_t i = 0; i < scales.blocks.size(); ++i) {
    EXPECT_EQ(back.blocks[i].middle, scales.blocks[i].middle);
    EXPECT_EQ(back.blocks[i].output, scales.blocks[i].output);
  }
  for (float& value : training.trainable()) value = -1;
  training.keep_scales_positive();
  EXPECT_GT(training.scales().first_output, 0);
  for (const float scale : training.scales().linear) EXPECT_GT(scale, 0);
  EXPECT_EQ(training.trainable()[0], -1);

  TensorFile file;
  store_parameters(each.network, parameters, file);
  store_scales(scales, file);
  const LearnedScales stored = stored_scales(each.network, file);
  EXPECT_EQ(stored.weights, scales.weights);
  EXPECT_EQ(stored.blocks[3].input, scales.blocks[3].input);
  EXPECT_EQ(stored.activation_bits, 8);
}

}  // namespace
}  // namespace nibble
