#include "quant/learned_network.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <set>
#include <string>

#include "graph/data/cifar10.h"
#include "graph/network/instruction_set.h"
#include "graph/network/integer_network.h"
#include "kernels/requantize.h"
#include "quant/float_pass.h"
#include "quant/learned_methods.h"
#include "quant/quantize.h"
#include "tests/graph/onednn/cases.h"

namespace nibble {
namespace {

struct Case {
  const char* variant;
  int depth;
  const char* shortcut;
  int bits;
  int activation_bits;
};

/// A network on 16 x 16 images, quantized by rounding to nearest.
struct Quantized {
  Quantized(const Case& c, int images)
      : network(cases::with_image_size(describe_network(c.variant, c.depth, c.shortcut), 16)),
        parameters(cases::random_parameters(network, 21)),
        folded(fold_batch_normalization(network, parameters)),
        pixels(cases::random_pixels(network, images, 22)),
        options(default_options(c.bits, c.activation_bits)),
        nearest(quantize(network, parameters, pixels, options)) {}

  Integers stream() const {
    Simulation simulation(network);
    return simulation.convolve(0, nearest.parameters.convolutions[0], bordered_pixels(network, pixels),
                               {1.0F, nearest.parameters.first_output_scale, 0, 255});
  }

  QuantizedNetwork with(const char* method, int steps) const {
    QuantizationOptions learning = options;
    learning.method = method;
    if (find_method(method).has_steps) learning.learning_steps = steps;
    return quantize(network, parameters, pixels, learning);
  }

  NetworkDescription network;
  FloatParameters parameters;
  FoldedParameters folded;
  std::vector<std::uint8_t> pixels;
  QuantizationOptions options;
  QuantizedNetwork nearest;
};

LearnedLoss whole_network(const NetworkDescription& network) {
  LearnedLoss loss;
  loss.last_block = static_cast<int>(network.blocks.size());
  loss.block_weights.assign(network.blocks.size(), 0.1);
  loss.logits_weight = 1;
  return loss;
}

/// Without rounding the loss is smooth almost everywhere: along the gradient of each tensor it grows as the
/// gradient says.
TEST(LearnedNetwork, GradientsAreTheFiniteDifferences) {
  for (const auto& [c, rounding] : {std::pair{Case{"resnet_344", 0, "", 4, 4}, Rounding::straight_through},
                                    {Case{"he", 20, "A", 2, 2}, Rounding::straight_through},
                                    {Case{"he", 20, "B", 4, 8}, Rounding::straight_through},
                                    {Case{"resnet_344", 0, "", 4, 4}, Rounding::adaptive}}) {
    const Quantized q(c, 4);
    const int blocks = static_cast<int>(q.network.blocks.size());
    LearnedNetwork learned(q.network, q.folded, q.nearest.parameters, rounding);
    learned.set_rounding(false);
    FloatBlocks teacher(q.network, q.folded);
    const LearnedTargets targets = teacher.run(q.pixels, blocks);
    const LearnedLoss loss = whole_network(q.network);
    const Integers stream = q.stream();
    const std::vector<OptimizedTensor> tensors = learned.tensors(0, blocks, true, {});
    learned.step(loss, stream, targets);
    std::vector<std::vector<float>> gradients;
    for (const OptimizedTensor& tensor : tensors) {
      gradients.emplace_back(tensor.gradients.begin(), tensor.gradients.end());
    }
    std::set<std::string> compared;
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      const std::vector<float> start(tensors[t].values.begin(), tensors[t].values.end());
      double norm = 0;
      for (const float g : gradients[t]) norm += double{g} * double{g};
      norm = std::sqrt(norm);
      // A step size moves the clipping of a whole map, so its loss bends at many points close to each other:
      // the slope comes near the gradient only over a short distance, where a small one drowns in float32's
      // rounding.
      const bool is_step = start.size() == 1;
      if (norm < (is_step ? 0.05 : 0.02)) continue;
      compared.insert(tensors[t].name);
      const auto loss_at = [&](double distance) {
        for (std::size_t i = 0; i < start.size(); ++i) {
          tensors[t].values[i] = start[i] + static_cast<float>(distance * double{gradients[t][i]} / norm);
        }
        learned.refresh(0, blocks);
        return learned.step(loss, stream, targets);
      };
      const double distance = is_step ? 5e-4 : 2e-3;
      const double slope = (loss_at(distance) - loss_at(-distance)) / (2 * distance);
      EXPECT_NEAR(slope / norm, 1, 0.05) << c.variant << c.shortcut << c.bits << " tensor " << t << " "
                                         << tensors[t].name << " norm " << norm;
      loss_at(0);
    }
    EXPECT_EQ(compared.size(), 4U) << c.variant << c.shortcut << c.bits;  // every kind of parameter
  }
}

/// AdaRound's regularizer grows along the gradient that it adds, as that says.
TEST(LearnedNetwork, RoundingPressureIsItsGradient) {
  const Quantized q({"he", 8, "A", 4, 4}, 4);
  const int blocks = static_cast<int>(q.network.blocks.size());
  LearnedNetwork learned(q.network, q.folded, q.nearest.parameters, Rounding::adaptive);
  const auto pressure = [&] { return learned.add_rounding_pressure(0, blocks, 0.5, 4); };
  pressure();
  std::vector<std::pair<OptimizedTensor, std::vector<float>>> all;  // with the gradient of one call
  for (const OptimizedTensor& tensor : learned.tensors(0, blocks, false, {})) {
    if (tensor.name != "position") continue;
    all.emplace_back(tensor, std::vector<float>(tensor.gradients.begin(), tensor.gradients.end()));
  }
  ASSERT_FALSE(all.empty());
  for (const auto& [tensor, gradient] : all) {
    const std::vector<float> start(tensor.values.begin(), tensor.values.end());
    double norm = 0;
    for (const float g : gradient) norm += double{g} * double{g};
    norm = std::sqrt(norm);
    ASSERT_GT(norm, 0.01);
    const auto pressure_at = [&](double distance) {
      for (std::size_t i = 0; i < start.size(); ++i) {
        tensor.values[i] = start[i] + static_cast<float>(distance * double{gradient[i]} / norm);
      }
      return pressure();
    };
    EXPECT_NEAR((pressure_at(1e-2) - pressure_at(-1e-2)) / 2e-2 / norm, 1, 0.02);
    pressure_at(0);
  }
}

/// What the network learns is what the integer network computes: the outputs of a step are the simulation's.
TEST(LearnedNetwork, ComputesTheIntegersOfTheExportedNetwork) {
  for (const Case& c :
       {Case{"resnet_344", 0, "", 4, 4}, Case{"he", 20, "A", 2, 2}, Case{"he", 20, "B", 2, 8}}) {
    const Quantized q(c, 4);
    const int blocks = static_cast<int>(q.network.blocks.size());
    LearnedNetwork learned(q.network, q.folded, q.nearest.parameters, Rounding::straight_through);
    const QuantizedParameters exported = learned.result();
    std::vector<std::vector<float>> outputs(static_cast<std::size_t>(blocks));
    Simulation(q.network).run(exported, q.pixels, [&](int convolution, const Integers& output, float scale) {
      for (std::size_t b = 0; b < outputs.size(); ++b) {
        if (q.network.blocks[b].conv2 != convolution) continue;
        for (const std::int16_t value : output) outputs[b].push_back(static_cast<float>(value) * scale);
      }
    });
    LearnedTargets targets;
    for (const auto& output : outputs) targets.blocks.push_back(output.data());
    LearnedLoss loss = whole_network(q.network);
    loss.logits_weight = 0;
    loss.block_weights.assign(outputs.size(), 1.0);
    EXPECT_EQ(learned.step(loss, q.stream(), targets), 0.0) << c.variant << c.shortcut << c.bits;
  }
}

/// Group by group the teacher is the plain float pass.
TEST(LearnedNetwork, FloatBlocksAreTheFloatNetwork) {
  for (const Case& c : {Case{"resnet_344", 0, "", 8, 8}, Case{"he", 20, "A", 8, 8}}) {
    const Quantized q(c, 8);
    FloatBlocks teacher(q.network, q.folded);
    const LearnedTargets targets = teacher.run(q.pixels, static_cast<int>(q.network.blocks.size()));
    FloatPass pass(q.network, q.folded);
    const std::vector<float> logits = pass.run(q.pixels, [](const FloatTap&) {});
    for (std::size_t i = 0; i < logits.size(); ++i) {
      EXPECT_NEAR(targets.logits[i], logits[i], 1e-4F * (1 + std::fabs(logits[i])));
    }
  }
}

TEST(LearnedMethods, StayWithinTheIntegersThatAreAllowed) {
  const Quantized q({"he", 20, "B", 2, 2}, 8);
  for (const char* method : {"adaround", "brecq", "blocks", "distill"}) {
    const QuantizedNetwork learned = q.with(method, 4);
    std::int64_t changed = 0;
    for (std::size_t i = 0; i < learned.parameters.convolutions.size(); ++i) {
      const QuantizedLayer& layer = learned.parameters.convolutions[i];
      const QuantizedLayer& before = q.nearest.parameters.convolutions[i];
      for (std::size_t w = 0; w < layer.weights.size(); ++w) {
        if (layer.weight_bits == 2) {
          ASSERT_NE(std::find(layer.levels.begin(), layer.levels.end(), layer.weights[w]),
                    layer.levels.end());
        } else {
          ASSERT_LE(std::abs(int{layer.weights[w]}), weight_limit(layer.weight_bits));
        }
        // Rounding up or down is all that AdaRound may do.
        if (method == std::string("brecq") && layer.weight_bits == 2) {
          ASSERT_LE(std::abs(layer.weights[w] - before.weights[w]), 2);
        }
        changed += layer.weights[w] != before.weights[w];
      }
      for (const float scale : layer.weight_scale) ASSERT_GT(scale, 0.0F);
    }
    EXPECT_GT(changed, 0) << method;
  }
}

TEST(LearnedMethods, GiveTheSameNetworkAgainWithAnyNumberOfThreads) {
  const Quantized q({"he", 20, "A", 4, 4}, 8);
  const QuantizedNetwork first = q.with("distill", 3);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(threads == 1 ? 2 : 1);
  const QuantizedNetwork second = q.with("distill", 3);
  omp_set_num_threads(threads);
  for (std::size_t i = 0; i < first.parameters.convolutions.size(); ++i) {
    EXPECT_EQ(first.parameters.convolutions[i].weights, second.parameters.convolutions[i].weights);
    EXPECT_EQ(first.parameters.convolutions[i].weight_scale, second.parameters.convolutions[i].weight_scale);
    EXPECT_EQ(first.parameters.convolutions[i].bias, second.parameters.convolutions[i].bias);
  }
  EXPECT_EQ(first.parameters.linear.weights, second.parameters.linear.weights);
  EXPECT_EQ(first.parameters.linear.weight_scale, second.parameters.linear.weight_scale);
  EXPECT_EQ(first.parameters.linear.bias, second.parameters.linear.bias);
  for (std::size_t b = 0; b < first.parameters.blocks.size(); ++b) {
    EXPECT_EQ(first.parameters.blocks[b].input_scale, second.parameters.blocks[b].input_scale);
    EXPECT_EQ(first.parameters.blocks[b].middle_scale, second.parameters.blocks[b].middle_scale);
    EXPECT_EQ(first.parameters.blocks[b].output_scale, second.parameters.blocks[b].output_scale);
  }
}

/// Its steps are too small to move more than a few weights: the others are where `blocks` left them.
TEST(LearnedMethods, DistillationGoesOnFromWhatTheBlocksLearned) {
  const Quantized q({"he", 8, "A", 2, 2}, 32);
  const QuantizedNetwork blocks = q.with("blocks", 60);
  const auto different = [&](const QuantizedNetwork& other) {
    std::int64_t count = 0;
    for (std::size_t i = 1; i < blocks.parameters.convolutions.size(); ++i) {
      const std::vector<std::int16_t>& weights = blocks.parameters.convolutions[i].weights;
      for (std::size_t w = 0; w < weights.size(); ++w) {
        count += weights[w] != other.parameters.convolutions[i].weights[w];
      }
    }
    return count;
  };
  const std::int64_t learned = different(q.nearest);
  EXPECT_GT(learned, 100);
  EXPECT_LT(different(q.with("distill", 60)), learned / 4);
}

/// Images beyond whole groups are not learned from, but the means at the end are those of all images.
TEST(LearnedMethods, CorrectTheLogitsOfAllImages) {
  const Quantized q({"he", 8, "A", 4, 4}, 7);
  const QuantizedNetwork learned = q.with("brecq", 4);
  const std::vector<float> logits = Simulation(q.network).run(learned.parameters, q.pixels);
  const std::vector<float> wanted = FloatPass(q.network, q.folded).run(q.pixels, [](const FloatTap&) {});
  const auto classes = static_cast<std::size_t>(q.network.classes);
  for (std::size_t c = 0; c < classes; ++c) {
    double error = 0;
    for (std::size_t i = c; i < logits.size(); i += classes) error += double{logits[i]} - double{wanted[i]};
    EXPECT_NEAR(error / 7, 0, 1e-3) << c;
  }
}

TEST(LearnedMethods, ReconstructBetterThanNearestRounding) {
  const Quantized q({"he", 20, "A", 2, 4}, 32);
  const auto sqnr = [&](const QuantizedNetwork& quantized) {
    const Quality quality = measure_quality(q.parameters, quantized, q.pixels);
    return quality.layers[quality.layers.size() - 2].sqnr;  // of the last block
  };
  const double nearest = sqnr(q.nearest);
  EXPECT_GT(sqnr(q.with("blocks", 60)), nearest + 1);
  EXPECT_GT(sqnr(q.with("brecq", 60)), nearest + 0.5);
}

/// Everything that a method that learns writes is computed alike by the simulation and the kernels.
TEST(LearnedMethods, ExportWhatTheKernelsCompute) {
  const NetworkDescription network = describe_network("he", 20, "A");
  const FloatParameters parameters = cases::random_parameters(network, 5);
  QuantizationOptions options = default_options(2, 2);
  options.method = "distill";
  options.learning_steps = 3;
  const QuantizedNetwork quantized =
      quantize(network, parameters, cases::random_pixels(network, 8, 6), options);
  const int count = 40;
  const Dataset images = generated_images(count);
  std::vector<float> logits(static_cast<std::size_t>(count * network.classes));
  IntegerNetwork(quantized, effective_instruction_set()).run(images.pixels.data(), count, logits.data());
  EXPECT_EQ(Simulation(network).run(quantized.parameters, images.pixels), logits);
}

}  // namespace
}  // namespace nibble
