#include "quant/calibration.h"

#include <algorithm>

#include "graph/data/random.h"
#include "graph/data/sha256.h"
#include "graph/network/error.h"
#include "kernels/requantize.h"
#include "quant/float_pass.h"

namespace nibble {

void ChannelMoments::add(std::span<const float> values, int images) {
  const std::size_t channels = sums_.size();
  const auto image_count = static_cast<std::size_t>(images);
  const std::size_t image_values = values.size() / image_count;
  std::vector<double> sums(image_count * channels);
  std::vector<double> squares(image_count * channels);
#pragma omp parallel for
  for (std::size_t image = 0; image < image_count; ++image) {
    double* sum = &sums[image * channels];
    double* square = &squares[image * channels];
    const float* value = &values[image * image_values];
    for (std::size_t i = 0; i < image_values; i += channels) {
      for (std::size_t channel = 0; channel < channels; ++channel) {
        const double v = double{value[i + channel]};
        sum[channel] += v;
        square[channel] += v * v;
      }
    }
  }
  for (std::size_t i = 0; i < sums.size(); ++i) {
    sums_[i % channels] += sums[i];
    squares_[i % channels] += squares[i];
  }
  count_ += static_cast<std::int64_t>(values.size() / channels);
}

double ChannelMoments::mean(std::size_t channel) const {
  return count_ == 0 ? 0 : sums_[channel] / static_cast<double>(count_);
}

double ChannelMoments::variance(std::size_t channel) const {
  if (count_ == 0) return 0;
  return std::max(0.0, squares_[channel] / static_cast<double>(count_) - mean(channel) * mean(channel));
}

Calibration calibrate(const NetworkDescription& network, const FoldedParameters& parameters,
                      std::span<const std::uint8_t> pixels_nhwc) {
  Calibration calibration;
  calibration.outputs.resize(network.convolutions.size());
  for (const Convolution& convolution : network.convolutions) {
    calibration.sums.emplace_back(static_cast<std::size_t>(convolution.output_channels));
  }
  FloatPass pass(network, parameters);
  const std::vector<float> logits = pass.run(pixels_nhwc, [&](const FloatTap& tap) {
    const auto index = static_cast<std::size_t>(tap.convolution);
    calibration.outputs[index].add(tap.output);
    calibration.sums[index].add(tap.sums, tap.images);
  });
  const auto classes = static_cast<std::size_t>(network.classes);
  calibration.logits = ChannelMoments(classes);
  calibration.logits.add(logits, static_cast<int>(logits.size() / classes));
  return calibration;
}

void choose_activation_scales(const NetworkDescription& network, const Calibration& calibration,
                              const Observer& observer, const std::function<int(std::size_t block)>& bits_of,
                              QuantizedParameters& frame) {
  const int stream_limit = activation_limit(frame.residual_bits());
  const auto scale = [&](int convolution, int highest) {
    return choose_scale(observer, calibration.outputs[static_cast<std::size_t>(convolution)], highest);
  };
  int producer = 0;  // of the stream
  float stream_scale = scale(0, stream_limit);
  frame.first_output_scale = stream_scale;
  for (std::size_t i = 0; i < network.blocks.size(); ++i) {
    const Block& shape = network.blocks[i];
    QuantizedBlock block{};
    block.input_bits = block.middle_bits = bits_of(i);
    const int limit = activation_limit(block.middle_bits);
    block.input_scale = block.input_bits >= 8 ? stream_scale : scale(producer, limit);
    block.middle_scale = scale(shape.conv1, limit);
    block.shortcut_scale = 1;
    if (shape.shortcut == Shortcut::projection) {
      block.shortcut_scale = scale(shape.projection, shortcut_range(frame.residual_bits()).highest);
    }
    block.output_scale = scale(shape.conv2, stream_limit);
    stream_scale = block.output_scale;
    producer = shape.conv2;
    frame.blocks.push_back(block);
  }
}

void correct_logit_means(const Calibration& calibration, std::span<const float> logits,
                         QuantizedLayer& linear) {
  const std::size_t classes = linear.bias.size();
  ChannelMoments found(classes);
  found.add(logits, static_cast<int>(logits.size() / classes));
  for (std::size_t c = 0; c < classes; ++c) {
    const double error = found.mean(c) - calibration.logits.mean(c);
    linear.bias[c] = static_cast<float>(double{linear.bias[c]} - error);
  }
}

std::vector<std::uint32_t> calibration_indices(int available, int count, std::uint64_t seed) {
  if (count < 1 || count > available) {
    throw InputError("calibration with " + std::to_string(count) + " images is not possible: there are " +
                     std::to_string(available) + " training images; choose 1 to " +
                     std::to_string(available) + " with --calibration-images");
  }
  std::vector<std::uint32_t> indices = shuffled_order(available, seed, 0);
  indices.resize(static_cast<std::size_t>(count));
  return indices;
}

std::string index_list_sha256(std::span<const std::uint32_t> indices) {
  return sha256_of({reinterpret_cast<const char*>(indices.data()), indices.size_bytes()});
}

CalibrationImages choose_calibration_images(const Dataset& training, int count, std::uint64_t seed) {
  const std::vector<std::uint32_t> indices = calibration_indices(training.count(), count, seed);
  CalibrationImages images;
  for (const std::uint32_t index : indices) {
    const auto image = training.image(index);
    images.pixels.insert(images.pixels.end(), image.begin(), image.end());
  }
  images.provenance = {{"calibration_seed", std::to_string(seed)},
                       {"calibration_count", std::to_string(count)},
                       {"calibration_sha256", index_list_sha256(indices)}};
  return images;
}

}  // namespace nibble
