#include "quant/float_blocks.h"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "graph/network/first_failure.h"
#include "graph/onednn/pixels.h"
#include "quant/image_groups.h"

namespace nibble {
namespace {

using Values = std::vector<float>;

std::size_t at(int index) {
  return static_cast<std::size_t>(index);
}

}  // namespace

struct FloatBlocks::Implementation {
  NetworkDescription network;
  FoldedParameters folded;
  PixelNormalization normalization;
  std::vector<TrainingWorker<float>> workers;
  std::vector<std::unique_ptr<TrainingLayer<float>>> layers;
  struct Memory {
    AlignedBuffer<float> pixels, stream, sums, middle, shortcut;
  };
  std::vector<Memory> memory;
  std::vector<Values> outputs;
  Values logits;

  Implementation(const NetworkDescription& description, const FoldedParameters& parameters)
      : network(description), folded(parameters), workers(at(omp_get_max_threads())) {
    std::size_t largest = 0;
    for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
      layers.push_back(make_group_layer(network.convolutions[i], workers));
      layers[i]->set_weight(0, workers[0], folded.convolutions[i].weight.data());
      largest = std::max({largest, layers[i]->output_image(), layers[i]->input_image()});
    }
    memory.resize(workers.size());
    for (Memory& each : memory) {
      for (auto* values : {&each.pixels, &each.stream, &each.sums, &each.middle, &each.shortcut}) {
        values->reset(largest * kGroupImages);
      }
    }
    outputs.resize(network.blocks.size());
  }

  /// output = convolution + bias (+ residual), then ReLU if asked.
  void convolve(int thread, int convolution, const float* input, const float* residual, bool relu,
                float* output) {
    Memory& own = memory[at(thread)];
    const TrainingLayer<float>& layer = *layers[at(convolution)];
    layer.forward(thread, workers[at(thread)], input, own.sums.data());
    const std::size_t count = layer.output_image() * kGroupImages;
    const Values& bias = folded.convolutions[at(convolution)].bias;
    const float lowest = relu ? 0.0F : -HUGE_VALF;
    for (std::size_t pixel = 0; pixel < count; pixel += bias.size()) {
      for (std::size_t c = 0; c < bias.size(); ++c) {
        float value = own.sums.data()[pixel + c] + bias[c];
        if (residual != nullptr) value += residual[pixel + c];
        output[pixel + c] = std::max(value, lowest);
      }
    }
  }

  void group(int thread, std::size_t number, std::span<const std::uint8_t> pixels, std::size_t blocks) {
    Memory& own = memory[at(thread)];
    const std::size_t group_pixels = layers[0]->input_image() * kGroupImages;
    normalization.apply(&pixels[number * group_pixels], group_pixels / 3, own.pixels.data());
    convolve(thread, 0, own.pixels.data(), nullptr, true, own.stream.data());
    const float* stream = own.stream.data();
    for (std::size_t b = 0; b < blocks; ++b) {
      const Block& block = network.blocks[b];
      const float* residual = stream;
      if (block.shortcut == Shortcut::projection) {
        convolve(thread, block.projection, stream, nullptr, false, own.shortcut.data());
        residual = own.shortcut.data();
      } else if (block.shortcut == Shortcut::pad_channels) {
        std::fill_n(own.shortcut.data(), own.shortcut.size(), 0.0F);
        pad_group(network.convolutions[at(block.conv1)], stream, own.shortcut.data());
        residual = own.shortcut.data();
      }
      convolve(thread, block.conv1, stream, nullptr, true, own.middle.data());
      float* output = &outputs[b][number * layers[at(block.conv2)]->output_image() * kGroupImages];
      convolve(thread, block.conv2, own.middle.data(), residual, true, output);
      stream = output;
    }
    if (blocks < network.blocks.size()) return;
    const auto features = at(network.feature_channels);
    const auto area = at(network.feature_size * network.feature_size);
    for (std::size_t image = 0; image < kGroupImages; ++image) {
      std::vector<double> mean(features);
      for (std::size_t i = 0; i < area * features; ++i) {
        mean[i % features] += double{stream[image * area * features + i]} / static_cast<double>(area);
      }
      for (std::size_t c = 0; c < folded.linear_bias.size(); ++c) {
        double sum = double{folded.linear_bias[c]};
        for (std::size_t f = 0; f < features; ++f) {
          sum += double{folded.linear_weight[c * features + f]} * mean[f];
        }
        logits[(number * kGroupImages + image) * folded.linear_bias.size() + c] = static_cast<float>(sum);
      }
    }
  }

  LearnedTargets run(std::span<const std::uint8_t> pixels, std::size_t blocks) {
    const std::size_t images = pixels.size() / layers[0]->input_image();
    for (std::size_t b = 0; b < outputs.size(); ++b) {
      outputs[b].resize(images * layers[at(network.blocks[b].conv2)]->output_image());
    }
    logits.resize(images * folded.linear_bias.size());
    FirstFailure failure;
#pragma omp parallel for schedule(dynamic)
    for (std::size_t number = 0; number < images / kGroupImages; ++number) {
      failure.guard([&] { group(omp_get_thread_num(), number, pixels, blocks); });
    }
    failure.rethrow();
    LearnedTargets targets;
    for (const Values& output : outputs) targets.blocks.push_back(output.data());
    targets.logits = logits.data();
    return targets;
  }
};

FloatBlocks::FloatBlocks(const NetworkDescription& network, const FoldedParameters& folded)
    : implementation_(std::make_unique<Implementation>(network, folded)) {}

FloatBlocks::~FloatBlocks() = default;

LearnedTargets FloatBlocks::run(std::span<const std::uint8_t> pixels, int blocks) {
  return implementation_->run(pixels, at(blocks));
}

}  // namespace nibble
