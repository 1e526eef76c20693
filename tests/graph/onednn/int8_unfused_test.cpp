#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>

#include "graph/network/error.h"
#include "graph/network/float_parameters.h"
#include "graph/network/quantized_parameters.h"
#include "graph/onednn/int8_network.h"
#include "graph/onednn/int8_unfused_network.h"
#include "kernels/reference.h"
#include "tests/graph/network/random_network.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

/// Small weights: the sums of pairs stay within 16 bits, and even ones: without VNNI oneDNN halves the
/// weights of signed sources.
UnfusedNetwork random_unfused(const NetworkDescription& network, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> half(-31, 31);
  std::uniform_real_distribution<float> spread(0.7F, 1.4F);
  std::normal_distribution<float> normal;
  UnfusedNetwork unfused{network, {}};
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& shape = network.convolutions[i];
    UnfusedConvolution values{};
    for (std::int64_t w = 0; w < shape.weight_count(); ++w) {
      values.weights.push_back(static_cast<std::int8_t>(2 * half(generator)));
    }
    const float inputs = static_cast<float>(shape.kernel * shape.kernel * shape.input_channels);
    for (int c = 0; c < shape.output_channels; ++c) {
      values.weight_scale.push_back(spread(generator) / (36 * std::sqrt(inputs)) / (i == 0 ? 60.0F : 1.0F));
      values.gamma.push_back(spread(generator) * (c % 5 == 0 ? -1.0F : 1.0F));
      values.beta.push_back(0.3F * normal(generator));
      values.mean.push_back(0.3F * normal(generator));
      values.variance.push_back(spread(generator));
    }
    values.convolution_scale = 0.04F * spread(generator);
    values.output_scale = 0.03F * spread(generator);
    unfused.parameters.convolutions.push_back(values);
  }
  for (std::size_t i = 0; i < network.blocks.size(); ++i) {
    unfused.parameters.block_scale.push_back(0.04F * spread(generator));
  }
  for (int i = 0; i < network.classes * network.feature_channels; ++i) {
    unfused.parameters.linear_weights.push_back(static_cast<std::int8_t>(2 * half(generator)));
  }
  for (int i = 0; i < network.classes; ++i) {
    unfused.parameters.linear_scale.push_back(0.003F * spread(generator));
    unfused.parameters.linear_bias.push_back(normal(generator));
  }
  return unfused;
}

using Map = std::vector<std::int16_t>;

/// The unfused 8-bit network in plain loops and double; every tensor is rounded to s8.
class PlainUnfused {
 public:
  explicit PlainUnfused(const UnfusedNetwork& unfused) : unfused_(unfused) {}

  std::vector<double> run(std::span<const std::uint8_t> pixels) const {
    const NetworkDescription& network = unfused_.network;
    const UnfusedParameters& parameters = unfused_.parameters;
    const auto convolution = [&](int number) -> const UnfusedConvolution& {
      return parameters.convolutions[static_cast<std::size_t>(number)];
    };
    const auto side = static_cast<std::size_t>(network.image_size + 2);
    Map bordered(side * side * 3);
    reference_bordered_image(network.image_size, network.image_size, pixels, bordered);
    Map stream = relu(normalized(0, convolved(0, bordered, 1.0)));
    double stream_scale = double{convolution(0).output_scale};
    for (std::size_t b = 0; b < network.blocks.size(); ++b) {
      const Block& block = network.blocks[b];
      const Map middle = relu(normalized(block.conv1, convolved(block.conv1, stream, stream_scale)));
      const Map sums = normalized(
          block.conv2, convolved(block.conv2, middle, double{convolution(block.conv1).output_scale}));
      Map shortcut = stream;
      double shortcut_scale = stream_scale;
      const Convolution& first = network.convolutions[static_cast<std::size_t>(block.conv1)];
      if (block.shortcut == Shortcut::projection) {
        shortcut = normalized(block.projection, convolved(block.projection, stream, stream_scale));
        shortcut_scale = double{convolution(block.projection).output_scale};
      } else if (block.shortcut == Shortcut::pad_channels) {
        shortcut.resize(sums.size());
        reference_pad_channels(first.input_height, first.input_width, first.input_channels,
                               first.output_channels, stream, shortcut);
      }
      const double output_scale = double{parameters.block_scale[b]};
      stream.resize(sums.size());
      for (std::size_t i = 0; i < sums.size(); ++i) {
        stream[i] =
            rounded((sums[i] * double{convolution(block.conv2).output_scale} + shortcut[i] * shortcut_scale) /
                    output_scale);
      }
      stream = relu(stream);
      stream_scale = output_scale;
    }
    const auto channels = static_cast<std::size_t>(network.feature_channels);
    std::vector<double> logits;
    for (std::size_t k = 0; k < static_cast<std::size_t>(network.classes); ++k) {
      double sum = 0;
      for (std::size_t i = 0; i < stream.size(); ++i) {
        sum += stream[i] * parameters.linear_weights[k * channels + i % channels];
      }
      logits.push_back(sum * stream_scale * double{parameters.linear_scale[k]} /
                           static_cast<double>(stream.size() / channels) +
                       double{parameters.linear_bias[k]});
    }
    return logits;
  }

 private:
  static std::int16_t rounded(double y) {
    return static_cast<std::int16_t>(std::nearbyint(std::clamp(y, -128.0, 127.0)));
  }
  static Map relu(Map map) {
    for (std::int16_t& value : map) value = std::max<std::int16_t>(value, 0);
    return map;
  }

  Map convolved(int number, const Map& input, double input_scale) const {
    const auto index = static_cast<std::size_t>(number);
    const Convolution& c = unfused_.network.convolutions[index];
    const UnfusedConvolution& values = unfused_.parameters.convolutions[index];
    ConvolutionShape shape{c.input_channels, c.output_channels, c.kernel,     c.stride,
                           c.padding,        c.input_height,    c.input_width};
    double mean_of_pixels[3] = {0, 0, 0};
    if (number == 0) {
      shape.input_height += 2;
      shape.input_width += 2;
      shape.padding = 0;
      for (std::size_t i = 0; i < 3; ++i) mean_of_pixels[i] = 255 * double{kPixelMean[i]};
    }
    std::vector<std::int32_t> sums(shape.output_size());
    reference_convolution<std::int32_t>(shape, input, Map(values.weights.begin(), values.weights.end()),
                                        sums);
    const std::size_t channels = values.weight_scale.size();
    const std::size_t taps = values.weights.size() / channels;
    Map output(sums.size());
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const std::size_t channel = i % channels;
      double sum = sums[i];
      for (std::size_t w = 0; w < taps; ++w)
        sum -= mean_of_pixels[w % 3] * values.weights[channel * taps + w];
      output[i] = rounded(sum * input_scale * double{values.weight_scale[channel]} /
                          double{values.convolution_scale});
    }
    return output;
  }

  Map normalized(int number, const Map& input) const {
    const UnfusedConvolution& values = unfused_.parameters.convolutions[static_cast<std::size_t>(number)];
    Map output(input.size());
    for (std::size_t i = 0; i < input.size(); ++i) {
      const std::size_t c = i % values.gamma.size();
      const double x = input[i] * double{values.convolution_scale};
      const double y = (x - double{values.mean[c]}) * double{values.gamma[c]} /
                           std::sqrt(double{values.variance[c]} + kBatchNormalizationEpsilon) +
                       double{values.beta[c]};
      output[i] = rounded(y / double{values.output_scale});
    }
    return output;
  }

  const UnfusedNetwork& unfused_;
};

/// Roundings of ties may differ by one step here and there, so logits differ a little; a wrong scale, sign or
/// order changes them altogether.
TEST(Int8UnfusedNetwork, ComputesItsDefinition) {
  for (const auto& [variant, depth, shortcut] :
       {std::tuple("resnet_344", 0, ""), std::tuple("he", 20, "A"), std::tuple("he", 20, "B")}) {
    SCOPED_TRACE(std::string(variant) + shortcut);
    const UnfusedNetwork unfused = random_unfused(describe_network(variant, depth, shortcut), 3);
    const int count = 18;  // a tile and two single images
    const std::vector<std::uint8_t> pixels = random_pixels(count, 4);
    Int8UnfusedNetwork network(unfused, count);
    std::vector<float> logits(static_cast<std::size_t>(count * 10));
    network.run(pixels, count, logits);
    double difference = 0;
    double deviation = 0;
    for (const int image : {0, 15, 17}) {
      const auto first = static_cast<std::size_t>(image);
      const std::vector<double> expected =
          PlainUnfused(unfused).run(std::span(pixels).subspan(3072 * first, 3072));
      for (std::size_t k = 0; k < 10; ++k) {
        difference += std::pow(double{logits[10 * first + k]} - expected[k], 2);
        deviation += std::pow(expected[k] - double{unfused.parameters.linear_bias[k]}, 2);
      }
    }
    EXPECT_LT(std::sqrt(difference / deviation), 0.02);
  }
}

TEST(Int8UnfusedNetwork, TilesAndSingleImagesGiveTheSameBits) {
  const UnfusedNetwork unfused = random_unfused(describe_network("he", 20, "A"), 5);
  const int count = 17;
  const std::vector<std::uint8_t> pixels = random_pixels(count, 6);
  Int8UnfusedNetwork network(unfused, count);
  std::vector<float> together(static_cast<std::size_t>(count * 10));
  network.run(pixels, count, together);
  std::vector<float> one_by_one(together.size());
  for (std::size_t image = 0; image < static_cast<std::size_t>(count); ++image) {
    network.run(std::span(pixels).subspan(3072 * image, 3072), 1,
                std::span(one_by_one).subspan(10 * image, 10));
  }
  EXPECT_EQ(together, one_by_one);
}

TEST(UnfusedFile, ComesBackAsItWas) {
  const TemporaryFolder folder;
  UnfusedNetwork unfused = random_unfused(describe_network("he", 20, "B"), 7);
  unfused.parameters.provenance["observer"] = "mse";
  write_unfused(folder / "u.safetensors", unfused);
  const UnfusedNetwork read = read_unfused(folder / "u.safetensors");
  EXPECT_EQ(read.network, unfused.network);
  EXPECT_EQ(read.parameters.provenance, unfused.parameters.provenance);
  EXPECT_EQ(read.parameters.block_scale, unfused.parameters.block_scale);
  EXPECT_EQ(read.parameters.linear_weights, unfused.parameters.linear_weights);
  EXPECT_EQ(read.parameters.linear_scale, unfused.parameters.linear_scale);
  EXPECT_EQ(read.parameters.linear_bias, unfused.parameters.linear_bias);
  for (std::size_t i = 0; i < unfused.parameters.convolutions.size(); ++i) {
    const UnfusedConvolution& a = unfused.parameters.convolutions[i];
    const UnfusedConvolution& b = read.parameters.convolutions[i];
    EXPECT_EQ(a.weights, b.weights);
    EXPECT_EQ(a.weight_scale, b.weight_scale);
    EXPECT_EQ(a.gamma, b.gamma);
    EXPECT_EQ(a.beta, b.beta);
    EXPECT_EQ(a.mean, b.mean);
    EXPECT_EQ(a.variance, b.variance);
    EXPECT_EQ(a.convolution_scale, b.convolution_scale);
    EXPECT_EQ(a.output_scale, b.output_scale);
  }
}

TEST(UnfusedFile, WhatDoesNotFitIsRefusedWithASentence) {
  const TemporaryFolder folder;
  const auto refusal = [&](UnfusedNetwork unfused) -> std::string {
    write_unfused(folder / "u.safetensors", unfused);
    try {
      read_unfused(folder / "u.safetensors");
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  const NetworkDescription network = describe_network("he", 20, "A");
  UnfusedNetwork unfused = random_unfused(network, 8);
  unfused.parameters.block_scale[2] = 0;
  EXPECT_NE(refusal(unfused).find("tensor 'scales' has 0.000000"), std::string::npos);
  unfused = random_unfused(network, 8);
  unfused.parameters.convolutions[4].variance[1] = -1;
  EXPECT_NE(refusal(unfused).find("'blocks.1.conv2.variance' has a negative value"), std::string::npos);
  unfused = random_unfused(network, 8);
  unfused.parameters.convolutions[4].gamma[1] = NAN;
  EXPECT_NE(refusal(unfused).find("'blocks.1.conv2.gamma' has NaN"), std::string::npos);
  // The run-time library refuses the file, and this reader a fused one.
  write_unfused(folder / "u.safetensors", random_unfused(network, 8));
  EXPECT_THROW(read_quantized(folder / "u.safetensors"), InputError);
  write_quantized(folder / "q.safetensors", random_network(network, 8, 8, 1));
  EXPECT_THROW(read_unfused(folder / "q.safetensors"), InputError);
}

}  // namespace
}  // namespace nibble
