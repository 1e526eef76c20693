#include "quant/quantize.h"

#include <gtest/gtest.h>

#include <cmath>

#include "graph/network/error.h"
#include "graph/network/reference_network.h"
#include "graph/onednn/int8_unfused_network.h"
#include "kernels/requantize.h"
#include "quant/equalization.h"
#include "quant/float_pass.h"
#include "quant/quantize_unfused.h"
#include "quant/simulation.h"
#include "tests/graph/onednn/cases.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

struct Trained {
  NetworkDescription network;
  FloatParameters parameters;
  std::vector<std::uint8_t> pixels;
};

/// Random parameters whose batch normalization has the statistics of its input, as after training; images of
/// 16 x 16 are quicker.
Trained trained(const char* variant, int depth, const char* shortcut, int images) {
  Trained result;
  result.network = cases::with_image_size(describe_network(variant, depth, shortcut), 16);
  result.parameters = cases::random_parameters(result.network, 21);
  result.pixels = cases::random_pixels(result.network, images, 22);
  for (std::size_t i = 0; i < result.network.convolutions.size(); ++i) {
    FloatConvolution& values = result.parameters.convolutions[i];
    FloatPass pass(result.network, fold_batch_normalization(result.network, result.parameters));
    ChannelMoments moments(values.gamma.size());
    pass.run(result.pixels, [&](const FloatTap& tap) {
      if (tap.convolution == static_cast<int>(i)) moments.add(tap.sums, tap.images);
    });
    for (std::size_t c = 0; c < values.gamma.size(); ++c) {
      const double factor = std::sqrt(double{values.running_variance[c]} + kBatchNormalizationEpsilon) /
                            double{values.gamma[c]};
      values.running_mean[c] += static_cast<float>((moments.mean(c) - double{values.beta[c]}) * factor);
      values.running_variance[c] = static_cast<float>(moments.variance(c) * factor * factor);
    }
  }
  return result;
}

double logits_sqnr(const Trained& t, const QuantizedNetwork& quantized) {
  return measure_quality(t.parameters, quantized, t.pixels).layers.back().sqnr;
}

TEST(Quantize, EveryWidthIsAsNearAsItsBitsAllow) {
  const Trained t = trained("resnet_344", 0, "", 8);
  struct Case {
    int bits;
    int activation_bits;
    double at_least;  // decibels of the logits
  };
  for (const Case& c : {Case{16, 16, 52}, Case{8, 8, 25}, Case{4, 8, 10}, Case{4, 4, 5}}) {
    const QuantizedNetwork quantized =
        quantize(t.network, t.parameters, t.pixels, default_options(c.bits, c.activation_bits));
    EXPECT_GT(logits_sqnr(t, quantized), c.at_least) << c.bits << " " << c.activation_bits;
    EXPECT_EQ(quantized.parameters.weight_bits, c.bits);
    EXPECT_EQ(quantized.parameters.activation_bits, c.activation_bits);
    EXPECT_EQ(quantized.parameters.convolutions[0].weight_bits, std::max(8, c.bits));
    EXPECT_EQ(quantized.parameters.linear.weight_bits, std::max(8, c.bits));
  }
}

TEST(Quantize, FilesComeBackWithTheSameLogits) {
  const TemporaryFolder folder;
  NetworkDescription network = describe_network("he", 20, "A");
  const FloatParameters parameters = cases::random_parameters(network, 5);
  const auto pixels = cases::random_pixels(network, 3, 6);
  for (const int bits : {16, 8, 4, 2}) {
    const QuantizedNetwork quantized = quantize(network, parameters, pixels, default_options(bits, 0));
    write_quantized(folder / "q.safetensors", quantized);
    const QuantizedNetwork read = read_quantized(folder / "q.safetensors");
    EXPECT_EQ(Simulation(network).run(read.parameters, pixels),
              Simulation(network).run(quantized.parameters, pixels));
    EXPECT_EQ(read.parameters.provenance.at("method"), "nearest");
  }
}

TEST(Quantize, CorrectionChangesScalesAndBiasesButNoInteger) {
  const Trained t = trained("he", 20, "A", 6);
  QuantizationOptions options = default_options(2, 2);
  options.correction = Correction::none;
  const QuantizedNetwork plain = quantize(t.network, t.parameters, t.pixels, options);
  options.correction = Correction::statistics;
  const QuantizedNetwork corrected = quantize(t.network, t.parameters, t.pixels, options);
  for (std::size_t i = 0; i < t.network.convolutions.size(); ++i) {
    EXPECT_EQ(plain.parameters.convolutions[i].weights, corrected.parameters.convolutions[i].weights);
    EXPECT_NE(plain.parameters.convolutions[i].weight_scale,
              corrected.parameters.convolutions[i].weight_scale);
    EXPECT_NE(plain.parameters.convolutions[i].bias, corrected.parameters.convolutions[i].bias);
  }
  EXPECT_GT(logits_sqnr(t, corrected), logits_sqnr(t, plain) + 3);
}

TEST(Equalized, BothRangesOfAChannelAreTheSameAndTheNetworkComputesWhatItDid) {
  const Trained t = trained("he", 20, "B", 4);
  FoldedParameters folded = fold_batch_normalization(t.network, t.parameters);
  const Block& block = t.network.blocks[3];
  const auto conv1 = static_cast<std::size_t>(block.conv1);
  const auto conv2 = static_cast<std::size_t>(block.conv2);
  const std::size_t channels = folded.convolutions[conv1].bias.size();
  const std::size_t taps = folded.convolutions[conv1].weight.size() / channels;
  std::fill_n(folded.convolutions[conv1].weight.begin(), taps, 1e-12F);  // channel 0 has only its bias
  const FoldedParameters result = equalized(t.network, folded);
  for (std::size_t i = 0; i < channels; ++i) {
    float range1 = 0;
    float range2 = 0;
    for (std::size_t k = 0; k < taps; ++k) {
      range1 = std::max(range1, std::abs(result.convolutions[conv1].weight[i * taps + k]));
    }
    for (std::size_t k = i; k < result.convolutions[conv2].weight.size(); k += channels) {
      range2 = std::max(range2, std::abs(result.convolutions[conv2].weight[k]));
      if (i == 0) {
        EXPECT_EQ(result.convolutions[conv1].bias[i], folded.convolutions[conv1].bias[i]);
        EXPECT_EQ(result.convolutions[conv2].weight[k], folded.convolutions[conv2].weight[k]);
      }
    }
    if (i != 0) {
      EXPECT_NEAR(range1, range2, 1e-6F * range1);
    }
  }
  const auto ignore = [](const FloatTap&) {};
  const std::vector<float> before = FloatPass(t.network, folded).run(t.pixels, ignore);
  const std::vector<float> after = FloatPass(t.network, result).run(t.pixels, ignore);
  float largest = 0;
  for (const float logit : before) largest = std::max(largest, std::abs(logit));
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(after[i], before[i], 1e-4F * largest);
}

/// Its middle tensors have other scales than the FP32 network's, which must not count as an error.
TEST(Quantize, AnEqualizedNetworksLayersAreComparedWithTheEqualizedNetwork) {
  const Trained t = trained("he", 20, "A", 8);
  QuantizationOptions options = default_options(8, 8);
  options.method = "equalize";
  const QuantizedNetwork quantized = quantize(t.network, t.parameters, t.pixels, options);
  for (const LayerQuality& layer : measure_quality(t.parameters, quantized, t.pixels).layers) {
    EXPECT_GT(layer.sqnr, 20) << layer.name;
  }
  options.method = "nearest";
  const QuantizedNetwork plain = quantize(t.network, t.parameters, t.pixels, options);
  // conv1's channels have a scale each, so that hardly an integer changes; conv2's columns share one.
  const auto conv2 = static_cast<std::size_t>(t.network.blocks[0].conv2);
  EXPECT_NE(plain.parameters.convolutions[conv2].weights, quantized.parameters.convolutions[conv2].weights);
}

/// After the correction the integer network's sums have the FP32 network's mean and variance.
TEST(Quantize, CorrectedSumsHaveTheFloatMoments) {
  const Trained t = trained("he", 20, "B", 6);
  const QuantizedNetwork quantized = quantize(t.network, t.parameters, t.pixels, default_options(4, 4));
  const FoldedParameters folded = fold_batch_normalization(t.network, t.parameters);
  const Calibration calibration = calibrate(t.network, folded, t.pixels);
  const QuantizedParameters& parameters = quantized.parameters;
  Simulation simulation(t.network);
  const Integers stream =
      simulation.convolve(0, parameters.convolutions[0], bordered_pixels(t.network, t.pixels),
                          {1.0F, parameters.first_output_scale, 0, 255});
  const Integers input = simulation.block_input(parameters.blocks[0], stream, parameters.first_output_scale);
  const auto number = static_cast<std::size_t>(t.network.blocks[0].conv1);
  const QuantizedLayer& layer = parameters.convolutions[number];
  ChannelMoments moments(layer.bias.size());
  simulation.accumulate(static_cast<int>(number), layer.weights, input,
                        [&](int, int count, std::span<const float> sums) { moments.add(sums, count); });
  for (std::size_t c = 0; c < layer.bias.size(); ++c) {
    const double factor = double{parameters.blocks[0].input_scale} * double{layer.weight_scale[c]};
    const double variance = calibration.sums[number].variance(c);
    EXPECT_NEAR(factor * moments.mean(c) + double{layer.bias[c]}, calibration.sums[number].mean(c),
                1e-5 * std::sqrt(variance));
    EXPECT_NEAR(factor * factor * moments.variance(c) / variance, 1, 1e-5);
  }
}

TEST(Quantize, ChannelsWithGammaZeroStayConstant) {
  Trained t = trained("he", 20, "A", 4);
  const auto number = static_cast<std::size_t>(t.network.blocks[1].conv1);
  t.parameters.convolutions[number].gamma[3] = 0;
  t.parameters.convolutions[number].gamma[5] *= -1;
  for (const int bits : {8, 4, 2}) {
    const QuantizedNetwork quantized =
        quantize(t.network, t.parameters, t.pixels, default_options(bits, bits));
    const QuantizedLayer& layer = quantized.parameters.convolutions[number];
    EXPECT_TRUE(is_zero_channel(layer, 3));
    EXPECT_EQ(layer.weight_scale[3], bits == 2 ? 0x1p-100F : 1.0F);
    EXPECT_EQ(layer.bias[3], t.parameters.convolutions[number].beta[3]);
    EXPECT_FALSE(is_zero_channel(layer, 5));
    EXPECT_GT(layer.weight_scale[5], 0.0F);
  }
}

/// The first layer reads raw pixels: with the mean folded in from the quantized weights it gives what the
/// folded float layer gives for normalized pixels and the quantized weights.
TEST(Quantize, RawPixelsNeedNoOffset) {
  const NetworkDescription network = describe_network("he", 20, "A");
  const std::size_t taps = 27;
  QuantizedLayer layer{8, {}, std::vector<std::int16_t>(taps), {0.01F}, {0.0F}};
  for (std::size_t i = 0; i < taps; ++i)
    layer.weights[i] = static_cast<std::int16_t>(7 * static_cast<int>(i) - 90);
  const std::vector<float> bias = {0.25F};
  fold_pixel_mean(bias, layer);
  double integer = double{layer.bias[0]};
  double real = double{bias[0]};
  for (std::size_t i = 0; i < taps; ++i) {
    const double pixel = static_cast<double>((i * 37) % 256);
    const double scaled_weight = double{layer.weight_scale[0]} * layer.weights[i];
    integer += scaled_weight * pixel;
    // weight' = weight / (255 deviation), so weight * (pixel / 255 - mean) / deviation:
    real += scaled_weight * (pixel - 255.0 * double{kPixelMean[i % 3]});
  }
  EXPECT_NEAR(integer, real, 1e-5);
}

TEST(Quantize, PairSafeNetworksHaveNoUnsafePair) {
  const Trained t = trained("resnet_344", 0, "", 4);
  QuantizationOptions options = default_options(8, 8);
  const auto count_unsafe = [&](const QuantizedNetwork& quantized) {
    std::int64_t unsafe = 0;
    for (std::size_t i = 0; i < t.network.convolutions.size(); ++i) {
      unsafe += unsafe_pairs(quantized.parameters.convolutions[i].weights,
                             t.network.convolutions[i].input_channels);
    }
    return unsafe;
  };
  EXPECT_GT(count_unsafe(quantize(t.network, t.parameters, t.pixels, options)), 0);
  options.pair_safe = true;
  const QuantizedNetwork safe = quantize(t.network, t.parameters, t.pixels, options);
  EXPECT_EQ(count_unsafe(safe), 0);
  EXPECT_GT(logits_sqnr(t, safe), 20);
  EXPECT_NE(safe.parameters.provenance.find("pair_safe"), safe.parameters.provenance.end());
}

TEST(Quantize, OptionsThatDoNotGoTogetherAreRefused) {
  const auto refusal = [](QuantizationOptions options) -> std::string {
    try {
      check_options(options);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal(default_options(8, 0)), "");
  EXPECT_EQ(refusal(default_options(5, 0)), "weights of 5 bits do not exist; choose --bits 16, 8, 4 or 2");
  EXPECT_EQ(refusal(default_options(4, 3)),
            "activations of 3 bits do not exist; choose --activation-bits 16, 8, 4 or 2");
  EXPECT_EQ(refusal(default_options(16, 8)),
            "weights of 16 bits and activations of 8 bits do not go together; 16 bits go with 16 only");
  QuantizationOptions options = default_options(4, 4);
  options.pair_safe = true;
  EXPECT_EQ(refusal(options),
            "--pair-safe is about 8-bit weights, not 4 bits; leave it out or choose --bits 8");
  options = default_options(4, 4);
  options.method = "magic";
  EXPECT_EQ(refusal(options),
            "there is no rounding method 'magic'; choose one of nearest, equalize, adaround, brecq, blocks, "
            "distill");
  options = default_options(16, 16);
  options.method = "distill";
  EXPECT_EQ(refusal(options),
            "the method 'distill' is for 8, 4 and 2 bits, not for 16; choose --method nearest");
  options = default_options(8, 8);
  options.method = "brecq";
  options.pair_safe = true;
  EXPECT_EQ(refusal(options),
            "the method 'brecq' does not keep pairs safe; leave out --pair-safe or choose --method nearest");
}

/// Each operation by itself in 8 bits, on oneDNN: near the FP32 network, as its fused sister is.
TEST(Quantize, UnfusedIsNearTheFloatNetwork) {
  Trained t = trained("resnet_344", 0, "", 16);
  t.network = describe_network("resnet_344", 0, "");
  t.pixels = cases::random_pixels(t.network, 16, 22);
  const UnfusedNetwork unfused = quantize_unfused(t.network, t.parameters, t.pixels, default_options(8, 8));
  std::vector<float> logits(16 * 10);
  Int8UnfusedNetwork(unfused, 16).run(t.pixels, 16, logits);
  const std::vector<float> wanted = FloatPass(t.network, fold_batch_normalization(t.network, t.parameters))
                                        .run(t.pixels, [](const FloatTap&) {});
  double power = 0;
  double error = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    power += double{wanted[i]} * double{wanted[i]};
    error += (double{logits[i]} - double{wanted[i]}) * (double{logits[i]} - double{wanted[i]});
  }
  EXPECT_GT(10 * std::log10(power / error), 12);
}

TEST(Quantize, WithoutImagesThereIsNothingToCalibrateOn) {
  const NetworkDescription network = describe_network("he", 20, "A");
  EXPECT_THROW(quantize(network, cases::random_parameters(network, 1), {}, default_options(8, 8)),
               InputError);
  EXPECT_THROW(quantize_unfused(network, cases::random_parameters(network, 1), {}, default_options(8, 8)),
               InputError);
}

}  // namespace
}  // namespace nibble
