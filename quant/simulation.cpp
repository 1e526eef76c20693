#include "quant/simulation.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <utility>

#include "graph/network/convolution_shape.h"
#include "graph/network/error.h"
#include "kernels/cpu.h"
#include "kernels/reference.h"
#include "kernels/requantize.h"

namespace nibble {
namespace {

struct MapRequantization {
  std::span<const float> scale;
  std::span<const float> offset;
  float residual_ratio;
  QuantizedRange range;
};

/// One image; the accumulators are integers in float32 already, the rest is kernels/requantize.h.
[[gnu::always_inline]] inline void requantize_any(const float* sums, std::size_t count,
                                                  const MapRequantization& map, const std::int16_t* residual,
                                                  std::int16_t* output) {
  const std::size_t channels = map.scale.size();
  for (std::size_t pixel = 0; pixel < count; pixel += channels) {
    for (std::size_t c = 0; c < channels; ++c) {
      const float product = sums[pixel + c] * map.scale[c];
      float y = product + map.offset[c];
      if (residual != nullptr) y = std::fma(static_cast<float>(residual[pixel + c]), map.residual_ratio, y);
      output[pixel + c] = static_cast<std::int16_t>(round_to_range(y, map.range));
    }
  }
}

/// The same where rounding and fma are instructions instead of calls.
[[gnu::target("avx2,fma")]] void requantize_avx2(const float* sums, std::size_t count,
                                                 const MapRequantization& map, const std::int16_t* residual,
                                                 std::int16_t* output) {
  if (residual == nullptr) {
    requantize_any(sums, count, map, nullptr, output);
  } else {
    requantize_any(sums, count, map, residual, output);
  }
}

void requantize_map(const float* sums, std::size_t count, const MapRequantization& map,
                    const std::int16_t* residual, std::int16_t* output) {
  if (has_avx2()) {
    requantize_avx2(sums, count, map, residual, output);
  } else {
    requantize_any(sums, count, map, residual, output);
  }
}

}  // namespace

Integers bordered_pixels(const NetworkDescription& network, std::span<const std::uint8_t> pixels_nhwc) {
  const int size = network.image_size;
  const auto image_values = static_cast<std::size_t>(size * size * network.image_channels);
  const auto bordered_values = static_cast<std::size_t>((size + 2) * (size + 2) * network.image_channels);
  const std::size_t images = pixels_nhwc.size() / image_values;
  Integers result(images * bordered_values);
  for (std::size_t image = 0; image < images; ++image) {
    reference_bordered_image(size, size, pixels_nhwc.subspan(image * image_values, image_values),
                             std::span(result).subspan(image * bordered_values, bordered_values));
  }
  return result;
}

Simulation::Simulation(const NetworkDescription& network, int chunk) : network_(network), chunk_(chunk) {}

std::size_t Simulation::input_size(int convolution) const {
  const Convolution shape = computed_shape(network_, convolution);
  return static_cast<std::size_t>(shape.input_height * shape.input_width * shape.input_channels);
}

std::size_t Simulation::output_size(int convolution) const {
  const Convolution shape = computed_shape(network_, convolution);
  return static_cast<std::size_t>(shape.output_height() * shape.output_width() * shape.output_channels);
}

namespace {

/// float32 holds the sums exactly where a_max * sum |w_q[c]| < 2^24 for every output channel.
void require_exact_sums(const Convolution& shape, std::span<const std::int16_t> weights,
                        const Integers& inputs) {
  const int largest_input = inputs.empty() ? 0 : *std::max_element(inputs.begin(), inputs.end());
  const auto magnitude = [](std::int16_t weight) { return std::abs(int{weight}); };
  const bool wide = largest_input > activation_limit(8) ||
                    std::any_of(weights.begin(), weights.end(),
                                [&](std::int16_t weight) { return magnitude(weight) > weight_limit(8); });
  if (wide) return;
  const std::size_t taps = weights.size() / static_cast<std::size_t>(shape.output_channels);
  for (std::size_t first = 0; first < weights.size(); first += taps) {
    const std::int64_t sum =
        std::transform_reduce(weights.begin() + static_cast<std::ptrdiff_t>(first),
                              weights.begin() + static_cast<std::ptrdiff_t>(first + taps), std::int64_t{0},
                              std::plus<>(), magnitude);
    if (sum * largest_input < 1 << 24) continue;
    throw RunError(
        shape.name + ": sums of output channel " + std::to_string(first / taps) +
        " can reach 2^24, which float32 does not hold exactly; use narrower weights or activations");
  }
}

}  // namespace

void Simulation::accumulate(int convolution, std::span<const std::int16_t> weights, const Integers& inputs,
                            const SeeSums& see) {
  const Convolution shape = computed_shape(network_, convolution);
  const auto key = std::make_tuple(shape.input_channels, shape.output_channels, shape.kernel, shape.stride,
                                   shape.input_height);
  auto& runner = runners_.try_emplace(key, shape, chunk_).first->second;
  require_exact_sums(shape, weights, inputs);
  runner.set_weights(std::vector<float>(weights.begin(), weights.end()));

  const std::size_t input_values = input_size(convolution);
  const auto images = static_cast<int>(inputs.size() / input_values);
  std::vector<float> source(input_values * static_cast<std::size_t>(chunk_));
  std::vector<float> sums(output_size(convolution) * static_cast<std::size_t>(chunk_));
  for (int first = 0; first < images; first += chunk_) {
    const int count = std::min(chunk_, images - first);
    const auto values = static_cast<std::size_t>(count) * input_values;
    std::copy_n(inputs.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(first) * input_values),
                values, source.begin());
    runner.run(source, count, sums);
    see(first, count, std::span(sums).first(static_cast<std::size_t>(count) * output_size(convolution)));
  }
}

Integers Simulation::convolve(int convolution, const QuantizedLayer& layer, const Integers& inputs,
                              const Requantization& requantization, const Integers& residual) {
  const std::size_t channels = layer.weight_scale.size();
  std::vector<float> scale(channels);
  std::vector<float> offset(channels);
  for (std::size_t c = 0; c < channels; ++c) {
    scale[c] =
        requantize_scale(requantization.input_scale, layer.weight_scale[c], requantization.output_scale);
    offset[c] = scale_ratio(layer.bias[c], requantization.output_scale);
  }
  const MapRequantization map{
      scale, offset, requantization.residual_ratio, {requantization.lowest, requantization.highest}};
  const std::size_t image_values = output_size(convolution);
  Integers output(inputs.size() / input_size(convolution) * image_values);
  accumulate(convolution, layer.weights, inputs, [&](int first, int count, std::span<const float> sums) {
#pragma omp parallel for
    for (int image = 0; image < count; ++image) {
      const std::size_t begin = static_cast<std::size_t>(first + image) * image_values;
      requantize_map(sums.data() + static_cast<std::size_t>(image) * image_values, image_values, map,
                     residual.empty() ? nullptr : residual.data() + begin, output.data() + begin);
    }
  });
  return output;
}

Integers Simulation::block_input(const QuantizedBlock& block, const Integers& stream,
                                 float stream_scale) const {
  if (block.input_bits >= 8) return stream;
  const float ratio = scale_ratio(stream_scale, block.input_scale);
  Integers result(stream.size());
  std::transform(stream.begin(), stream.end(), result.begin(), [&](std::int16_t value) {
    return static_cast<std::int16_t>(derive_input(value, ratio, block.input_bits));
  });
  return result;
}

Integers Simulation::pad_channels(const Block& block, const Integers& stream) const {
  const Convolution& shape = network_.convolutions[static_cast<std::size_t>(block.conv1)];
  const auto input_values =
      static_cast<std::size_t>(shape.input_height * shape.input_width * shape.input_channels);
  const auto output_values =
      static_cast<std::size_t>(shape.output_height() * shape.output_width() * shape.output_channels);
  const std::size_t images = stream.size() / input_values;
  Integers result(images * output_values);
  for (std::size_t image = 0; image < images; ++image) {
    reference_pad_channels(shape.input_height, shape.input_width, shape.input_channels, shape.output_channels,
                           std::span(stream).subspan(image * input_values, input_values),
                           std::span(result).subspan(image * output_values, output_values));
  }
  return result;
}

std::vector<float> Simulation::classify(const QuantizedLayer& linear, const Integers& stream,
                                        float stream_scale) const {
  const auto pixels = static_cast<std::size_t>(network_.feature_size * network_.feature_size);
  const auto classes = static_cast<std::size_t>(network_.classes);
  const std::size_t image_values = pixels * static_cast<std::size_t>(network_.feature_channels);
  const std::size_t images = stream.size() / image_values;
  std::vector<float> scale;
  for (const float weight_scale : linear.weight_scale) {
    scale.push_back(requantize_scale(stream_scale, weight_scale, 1.0F) / static_cast<float>(pixels));
  }
  std::vector<float> logits(images * classes);
  for (std::size_t image = 0; image < images; ++image) {
    reference_pool_linear<std::int64_t>(std::span(stream).subspan(image * image_values, image_values),
                                        network_.feature_channels, linear.weights, scale, linear.bias,
                                        std::span(logits).subspan(image * classes, classes));
  }
  return logits;
}

namespace {

float stream_scale_before(const QuantizedParameters& parameters, std::size_t block) {
  return block == 0 ? parameters.first_output_scale : parameters.blocks[block - 1].output_scale;
}

}  // namespace

Integers Simulation::first_stream(const QuantizedParameters& parameters,
                                  std::span<const std::uint8_t> pixels_nhwc, const Convolve& convolve) const {
  return convolve(0, bordered_pixels(network_, pixels_nhwc),
                  {1.0F, parameters.first_output_scale, 0, activation_limit(parameters.residual_bits())}, {});
}

Integers Simulation::run_block(const QuantizedParameters& parameters, std::size_t index, Integers stream,
                               const Convolve& convolve) const {
  const Block& shape = network_.blocks[index];
  const QuantizedBlock& block = parameters.blocks[index];
  const float stream_scale = stream_scale_before(parameters, index);
  Integers input = block_input(block, stream, stream_scale);
  const Integers middle =
      convolve(shape.conv1, input,
               {block.input_scale, block.middle_scale, 0, activation_limit(block.middle_bits)}, {});
  Integers shortcut;
  float shortcut_scale = stream_scale;
  if (shape.shortcut == Shortcut::projection) {
    shortcut_scale = block.shortcut_scale;
    const QuantizedRange range = shortcut_range(parameters.residual_bits());
    shortcut = convolve(shape.projection, input,
                        {block.input_scale, shortcut_scale, range.lowest, range.highest}, {});
  } else if (shape.shortcut == Shortcut::pad_channels) {
    shortcut = pad_channels(shape, stream);
  } else {
    shortcut = std::move(stream);
  }
  input = {};
  return convolve(shape.conv2, middle,
                  {block.middle_scale, block.output_scale, 0, activation_limit(parameters.residual_bits()),
                   scale_ratio(shortcut_scale, block.output_scale)},
                  shortcut);
}

Simulation::Convolve Simulation::layers_of(const QuantizedParameters& parameters) {
  return [&](int convolution, const Integers& inputs, const Requantization& requantization,
             const Integers& residual) {
    return convolve(convolution, parameters.convolutions[static_cast<std::size_t>(convolution)], inputs,
                    requantization, residual);
  };
}

std::vector<float> Simulation::run(const QuantizedParameters& parameters,
                                   std::span<const std::uint8_t> pixels_nhwc, const SeeOutput& see) {
  const Convolve compute = layers_of(parameters);
  const Convolve convolve = [&](int convolution, const Integers& inputs, const Requantization& requantization,
                                const Integers& residual) {
    Integers output = compute(convolution, inputs, requantization, residual);
    if (see) see(convolution, output, requantization.output_scale);
    return output;
  };
  const auto image_values =
      static_cast<std::size_t>(network_.image_channels * network_.image_size * network_.image_size);
  const std::size_t step = image_values * static_cast<std::size_t>(chunk_);
  std::vector<float> logits;
  for (std::size_t first = 0; first < pixels_nhwc.size(); first += step) {
    const auto pixels = pixels_nhwc.subspan(first, std::min(step, pixels_nhwc.size() - first));
    Integers stream = first_stream(parameters, pixels, convolve);
    for (std::size_t block = 0; block < network_.blocks.size(); ++block) {
      stream = run_block(parameters, block, std::move(stream), convolve);
    }
    const std::vector<float> chunk_logits =
        classify(parameters.linear, stream, stream_scale_before(parameters, network_.blocks.size()));
    logits.insert(logits.end(), chunk_logits.begin(), chunk_logits.end());
  }
  return logits;
}

}  // namespace nibble
