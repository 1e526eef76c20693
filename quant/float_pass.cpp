#include "quant/float_pass.h"

#include <algorithm>

#include "graph/network/padded_shortcut.h"
#include "graph/onednn/pixels.h"

namespace nibble {
namespace {

/// Shortcut A of a block that `first` begins.
std::vector<float> pad_channels(std::span<const float> input, int images, const Convolution& first) {
  const auto count = static_cast<std::size_t>(images);
  std::vector<float> result(
      count * static_cast<std::size_t>(first.output_height() * first.output_width() * first.output_channels));
  for_padded(first, count, [&](std::size_t from, std::size_t to) { result[to] = input[from]; });
  return result;
}

}  // namespace

FloatPass::FloatPass(const NetworkDescription& network, const FoldedParameters& parameters, int chunk)
    : network_(network), parameters_(parameters), chunk_(chunk) {
  for (std::size_t i = 0; i < network_.convolutions.size(); ++i) {
    runners_.emplace_back(network_.convolutions[i], chunk);
    runners_.back().set_weights(parameters_.convolutions[i].weight);
  }
}

void FloatPass::convolve(int convolution, std::span<const float> input, int images,
                         std::vector<float>& sums) {
  const auto index = static_cast<std::size_t>(convolution);
  const Convolution& shape = network_.convolutions[index];
  const auto channels = static_cast<std::size_t>(shape.output_channels);
  sums.resize(static_cast<std::size_t>(images) * shape.output_height() * shape.output_width() * channels);
  runners_[index].run(input, images, sums);
  const std::vector<float>& bias = parameters_.convolutions[index].bias;
  for (std::size_t i = 0; i < sums.size(); i += channels) {
    for (std::size_t channel = 0; channel < channels; ++channel) sums[i + channel] += bias[channel];
  }
}

std::vector<float> FloatPass::run(std::span<const std::uint8_t> pixels_nhwc,
                                  const std::function<void(const FloatTap&)>& see) {
  const auto image_values =
      static_cast<std::size_t>(network_.image_channels * network_.image_size * network_.image_size);
  const auto total = static_cast<int>(pixels_nhwc.size() / image_values);
  const auto classes = static_cast<std::size_t>(network_.classes);
  std::vector<float> logits(static_cast<std::size_t>(total) * classes);
  const PixelNormalization normalization;
  std::vector<float> normalized;
  std::vector<float> sums;
  std::vector<float> stream;
  std::vector<float> middle;
  std::vector<float> shortcut;
  const auto relu = [](float value) { return std::max(value, 0.0F); };

  for (int first = 0; first < total; first += chunk_) {
    const int images = std::min(chunk_, total - first);
    const auto pixels = pixels_nhwc.subspan(static_cast<std::size_t>(first) * image_values,
                                            static_cast<std::size_t>(images) * image_values);
    normalized.resize(pixels.size());
    normalization.apply(pixels.data(), pixels.size() / 3, normalized.data());
    convolve(0, normalized, images, sums);
    stream.resize(sums.size());
    std::transform(sums.begin(), sums.end(), stream.begin(), relu);
    see({0, images, sums, stream});

    for (const Block& block : network_.blocks) {
      convolve(block.conv1, stream, images, sums);
      middle.resize(sums.size());
      std::transform(sums.begin(), sums.end(), middle.begin(), relu);
      see({block.conv1, images, sums, middle});
      const Convolution& shape = network_.convolutions[static_cast<std::size_t>(block.conv1)];
      if (block.shortcut == Shortcut::projection) {
        convolve(block.projection, stream, images, shortcut);
        see({block.projection, images, shortcut, shortcut});
      } else if (block.shortcut == Shortcut::pad_channels) {
        shortcut = pad_channels(stream, images, shape);
      } else {
        shortcut = stream;
      }
      convolve(block.conv2, middle, images, sums);
      stream.resize(sums.size());
      std::transform(sums.begin(), sums.end(), shortcut.begin(), stream.begin(),
                     [&](float a, float b) { return relu(a + b); });
      see({block.conv2, images, sums, stream});
    }

    const auto features = static_cast<std::size_t>(network_.feature_channels);
    const auto area = static_cast<std::size_t>(network_.feature_size * network_.feature_size);
    std::vector<double> mean(features);
    for (int image = 0; image < images; ++image) {
      std::fill(mean.begin(), mean.end(), 0.0);
      const float* map = &stream[static_cast<std::size_t>(image) * area * features];
      for (std::size_t i = 0; i < area * features; ++i) mean[i % features] += double{map[i]};
      for (std::size_t c = 0; c < classes; ++c) {
        double sum = double{parameters_.linear_bias[c]};
        for (std::size_t i = 0; i < features; ++i) {
          sum += double{parameters_.linear_weight[c * features + i]} * mean[i] / static_cast<double>(area);
        }
        logits[(static_cast<std::size_t>(first + image)) * classes + c] = static_cast<float>(sum);
      }
    }
  }
  return logits;
}

}  // namespace nibble
