#include "quant/trained.h"

#include <gtest/gtest.h>

#include <cmath>

#include "graph/network/instruction_set.h"
#include "graph/network/integer_network.h"
#include "graph/onednn/quantized_training.h"
#include "quant/simulation.h"
#include "tests/graph/onednn/cases.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

constexpr int kImages = 16;

/// Parameters, scales fitted to them, and the logits that training's forward gives; the running statistics
/// are those of the same images, so that inference must give the same logits.
struct Trained {
  NetworkDescription network;
  FloatParameters parameters;
  LearnedScales scales;
  std::vector<std::uint8_t> pixels;
  std::vector<float> logits;
};

Trained trained(const char* variant, int depth, const char* shortcut, int weight_bits, int activation_bits) {
  Trained result;
  result.network = cases::with_image_size(describe_network(variant, depth, shortcut), 16);
  result.parameters = cases::random_parameters(result.network, 31);
  result.pixels = cases::random_pixels(result.network, kImages, 32);
  for (FloatConvolution& each : result.parameters.convolutions) {
    for (std::size_t c = 0; c < each.gamma.size(); c += 5) each.gamma[c] = -each.gamma[c];
    each.running_mean.assign(each.running_mean.size(), 0.0F);
    each.running_variance.assign(each.running_variance.size(), 1.0F);
  }
  result.scales =
      initial_scales(result.network, result.parameters, result.pixels, weight_bits, activation_bits, "auto");
  for (FloatConvolution& each : result.parameters.convolutions) {
    each.running_variance.assign(each.running_variance.size(), 0.0F);
  }
  // Statistics that begin with 0 are a tenth of the batch's after one step; scales that fit them come second.
  for (int round = 0; round < 2; ++round) {
    QuantizedTraining training(result.network, result.scales, kImages);
    training.set_parameters(result.parameters);
    const auto logits = training.forward(result.pixels, kImages);
    result.logits.assign(logits.begin(), logits.end());
    FloatParameters after = training.parameters();
    for (std::size_t i = 0; i < result.network.convolutions.size(); ++i) {
      const Convolution& shape = result.network.convolutions[i];
      const double pixels = kImages * shape.output_height() * shape.output_width();
      for (float& mean : after.convolutions[i].running_mean) mean = static_cast<float>(double{mean} * 10);
      for (float& variance : after.convolutions[i].running_variance) {
        variance = static_cast<float>(double{variance} * 10 * (pixels - 1) / pixels);
      }
    }
    if (round == 1) {
      result.parameters = after;
    } else {
      result.scales =
          initial_scales(result.network, after, result.pixels, weight_bits, activation_bits, "mse");
    }
  }
  return result;
}

double relative_error(const std::vector<float>& actual, const std::vector<float>& expected) {
  double difference = 0;
  double square = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double{actual[i]} - double{expected[i]}, 2);
    square += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(difference / square);
}

struct Case {
  const char* variant;
  int depth;
  const char* shortcut;
  int weight_bits, activation_bits;
};

/// The integers are those of training: only a value that FP32 rounds the other way makes a difference.
TEST(Trained, IntegersGiveTrainingsLogits) {
  for (const Case& c :
       {Case{"resnet_344", 0, "", 2, 2}, Case{"resnet_344", 0, "", 2, 8}, Case{"resnet_344", 0, "", 4, 4},
        Case{"he", 20, "A", 8, 8}, Case{"he", 20, "B", 2, 4}}) {
    SCOPED_TRACE(std::string(c.variant) + c.shortcut + " W" + std::to_string(c.weight_bits) + "A" +
                 std::to_string(c.activation_bits));
    const Trained t = trained(c.variant, c.depth, c.shortcut, c.weight_bits, c.activation_bits);
    const QuantizedParameters integers = integer_parameters(t.network, t.parameters, t.scales);
    Simulation simulation(t.network);
    EXPECT_LT(relative_error(simulation.run(integers, t.pixels), t.logits), 2e-2);
  }
}

/// The exported file, the kernels, the scalar reference and the simulation on floats agree bit for bit.
/// Training evaluates the integers of this export; that its own forward pass is near them,
/// IntegersGiveTrainingsLogits tells.
TEST(Trained, ExportedFileHasOneSignature) {
  const TemporaryFolder folder;
  for (const Case& c : {Case{"resnet_344", 0, "", 2, 2}, Case{"resnet_344", 0, "", 2, 4},
                        Case{"resnet_344", 0, "", 4, 4}, Case{"resnet_344", 0, "", 8, 8}}) {
    SCOPED_TRACE("W" + std::to_string(c.weight_bits) + "A" + std::to_string(c.activation_bits));
    const NetworkDescription network = describe_network(c.variant, c.depth, c.shortcut);
    FloatParameters parameters = cases::random_parameters(network, 41);
    parameters.convolutions[3].gamma[1] = -0.5F;
    const auto pixels = cases::random_pixels(network, 8, 42);
    TensorFile file;
    store_parameters(network, parameters, file);
    store_scales(initial_scales(network, parameters, pixels, c.weight_bits, c.activation_bits, "auto"), file);
    const std::filesystem::path path = folder / "P.safetensors";
    write_tensor_file(path, file);
    const QuantizedNetwork exported = export_trained(read_tensor_file(path));
    EXPECT_EQ(exported.parameters.provenance.at("source"), "P.safetensors");
    const std::vector<float> logits = Simulation(network).run(exported.parameters, pixels);

    const std::filesystem::path integers = folder / "P_integers.safetensors";
    write_quantized(integers, exported);
    const QuantizedNetwork back = read_quantized(integers);
    std::vector<float> seen(logits.size());
    IntegerNetwork(back, InstructionSet::reference).run(pixels.data(), 8, seen.data());
    EXPECT_EQ(seen, logits);
    IntegerNetwork(back, effective_instruction_set()).run(pixels.data(), 8, seen.data());
    EXPECT_EQ(seen, logits);
  }
}

TEST(Trained, ChannelsWithoutAnEffectAreStandIns) {
  for (const int bits : {2, 4}) {
    Trained t = trained("he", 20, "A", bits, bits);
    FloatConvolution& layer = t.parameters.convolutions[2];
    const std::size_t taps = layer.weight.size() / layer.gamma.size();
    layer.gamma[0] = 0;
    layer.beta[0] = 0.25F;
    std::fill_n(layer.weight.begin() + static_cast<std::ptrdiff_t>(taps), taps, 0.0F);
    layer.running_mean[1] = 0.5F;
    const QuantizedLayer folded = integer_parameters(t.network, t.parameters, t.scales).convolutions[2];
    for (std::size_t i = 0; i < 2 * taps; ++i) EXPECT_EQ(folded.weights[i], bits == 2 ? 1 : 0);
    for (const std::size_t c : {0, 1}) EXPECT_EQ(folded.weight_scale[c], bits == 2 ? 0x1p-100F : 1.0F);
    EXPECT_EQ(folded.bias[0], 0.25F);
    const double factor =
        double{layer.gamma[1]} / std::sqrt(double{layer.running_variance[1]} + kBatchNormalizationEpsilon);
    EXPECT_FLOAT_EQ(folded.bias[1], static_cast<float>(double{layer.beta[1]} - 0.5 * factor));
    EXPECT_GT(folded.weight_scale[2], 1e-6F);
  }
}

}  // namespace
}  // namespace nibble
