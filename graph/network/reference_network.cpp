#include "graph/network/reference_network.h"

#include <utility>
#include <vector>

#include "graph/network/convolution_shape.h"
#include "graph/network/first_failure.h"
#include "kernels/reference.h"

namespace nibble {
namespace {

using Map = std::vector<std::int16_t>;

template <typename Accumulator>
Map convolve(const ConvolutionShape& shape, const Map& input, const QuantizedLayer& layer,
             const LayerFactors& factors, QuantizedRange range, const Map& residual = {},
             float residual_ratio = 0.0F) {
  std::vector<Accumulator> accumulators(shape.output_size());
  reference_convolution<Accumulator>(shape, input, layer.weights, accumulators);
  Map output(shape.output_size());
  reference_requantize<Accumulator>(accumulators, {factors.scale, factors.offset, range, residual_ratio},
                                    residual, output);
  return output;
}

}  // namespace

ReferenceNetwork::ReferenceNetwork(QuantizedNetwork quantized)
    : quantized_(std::move(quantized)), factors_(make_factors(quantized_)) {}

template <typename Accumulator>
void ReferenceNetwork::run_image(const std::uint8_t* pixels, float* logits) const {
  const NetworkDescription& network = quantized_.network;
  const QuantizedParameters& parameters = quantized_.parameters;
  const int residual_bits = parameters.residual_bits();
  const QuantizedRange stream_range = activation_range(residual_bits);
  const auto convolution = [&](int index, const Map& input, QuantizedRange range, const Map& residual = {},
                               float residual_ratio = 0.0F) {
    const auto i = static_cast<std::size_t>(index);
    return convolve<Accumulator>(shape_of(network.convolutions[i]), input, parameters.convolutions[i],
                                 factors_.convolutions[i], range, residual, residual_ratio);
  };

  const int size = network.image_size;
  const auto pixel_count = static_cast<std::size_t>(size * size * network.image_channels);
  Map bordered(static_cast<std::size_t>((size + 2) * (size + 2) * network.image_channels));
  reference_bordered_image(size, size, {pixels, pixel_count}, bordered);
  Map stream = convolve<Accumulator>(with_border(shape_of(network.convolutions[0])), bordered,
                                     parameters.convolutions[0], factors_.convolutions[0], stream_range);

  for (std::size_t b = 0; b < network.blocks.size(); ++b) {
    const Block& block = network.blocks[b];
    const QuantizedBlock& widths = parameters.blocks[b];
    Map input = stream;
    if (widths.input_bits < 8) {
      reference_derive_input(stream, factors_.blocks[b].input_ratio, widths.input_bits, input);
    }
    const Map middle = convolution(block.conv1, input, activation_range(widths.middle_bits));
    Map shortcut = stream;
    const Convolution& conv1 = network.convolutions[static_cast<std::size_t>(block.conv1)];
    if (block.shortcut == Shortcut::projection) {
      shortcut = convolution(block.projection, input, shortcut_range(residual_bits));
    } else if (block.shortcut == Shortcut::pad_channels) {
      shortcut.resize(shape_of(conv1).output_size());
      reference_pad_channels(conv1.input_height, conv1.input_width, conv1.input_channels,
                             conv1.output_channels, stream, shortcut);
    }
    stream = convolution(block.conv2, middle, stream_range, shortcut, factors_.blocks[b].residual_ratio);
  }

  reference_pool_linear<Accumulator>(stream, network.feature_channels, parameters.linear.weights,
                                     factors_.linear.scale, factors_.linear.offset,
                                     {logits, static_cast<std::size_t>(network.classes)});
}

void ReferenceNetwork::run(const std::uint8_t* pixels, std::int64_t count, float* logits) const {
  const NetworkDescription& network = quantized_.network;
  const std::int64_t image_bytes =
      std::int64_t{network.image_size} * network.image_size * network.image_channels;
  FirstFailure failure;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < count; ++i) {
    failure.guard([&] {
      if (quantized_.parameters.weight_bits == 16) {
        run_image<std::int64_t>(pixels + i * image_bytes, logits + i * network.classes);
      } else {
        run_image<std::int32_t>(pixels + i * image_bytes, logits + i * network.classes);
      }
    });
  }
  failure.rethrow();
}

}  // namespace nibble
