#include "kernels/reference.h"

#include <algorithm>
#include <vector>

namespace nibble {
namespace {

/// Sum of products of two rows; the compiler turns it into pmaddwd where sums are int32_t.
template <typename Accumulator>
Accumulator dot(const std::int16_t* a, const std::int16_t* b, std::size_t count) {
  Accumulator sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += static_cast<Accumulator>(std::int32_t{a[i]} * b[i]);
  return sum;
}

}  // namespace

template <typename Accumulator>
void reference_convolution(const ConvolutionShape& shape, std::span<const std::int16_t> input,
                           std::span<const std::int16_t> weights, std::span<Accumulator> output) {
  const int channels = shape.input_channels;
  const auto filter_size = static_cast<std::ptrdiff_t>(shape.filter_size());
  Accumulator* next = output.data();
  for (int row = 0; row < shape.output_height(); ++row) {
    for (int column = 0; column < shape.output_width(); ++column) {
      // The kernel's columns first .. last - 1 lie inside the map, and there input and weights are
      // contiguous.
      const int left = column * shape.stride - shape.padding;
      const int first = std::max(0, -left);
      const int last = std::min(shape.kernel, shape.input_width - left);
      const auto count = static_cast<std::size_t>(std::max(0, last - first) * channels);
      for (int o = 0; o < shape.output_channels; ++o) {
        Accumulator sum = 0;
        for (int tap = 0; tap < shape.kernel; ++tap) {
          const int input_row = row * shape.stride - shape.padding + tap;
          if (input_row < 0 || input_row >= shape.input_height || count == 0) continue;
          const std::ptrdiff_t from =
              (std::ptrdiff_t{input_row} * shape.input_width + left + first) * channels;
          const std::ptrdiff_t filter =
              o * filter_size + (std::ptrdiff_t{tap} * shape.kernel + first) * channels;
          sum += dot<Accumulator>(input.data() + from, weights.data() + filter, count);
        }
        *next++ = sum;
      }
    }
  }
}

template <typename Accumulator>
void reference_requantize(std::span<const Accumulator> accumulators, const Requantization& requantization,
                          std::span<const std::int16_t> residual, std::span<std::int16_t> output) {
  const std::size_t channels = requantization.scale.size();
  for (std::size_t i = 0; i < accumulators.size(); ++i) {
    const float scale = requantization.scale[i % channels];
    const float offset = requantization.offset[i % channels];
    output[i] = static_cast<std::int16_t>(
        residual.empty() ? requantize(accumulators[i], scale, offset, requantization.range)
                         : requantize(accumulators[i], scale, offset, residual[i],
                                      requantization.residual_ratio, requantization.range));
  }
}

void reference_derive_input(std::span<const std::int16_t> stream, float ratio, int bits,
                            std::span<std::int16_t> input) {
  for (std::size_t i = 0; i < stream.size(); ++i) {
    input[i] = static_cast<std::int16_t>(derive_input(stream[i], ratio, bits));
  }
}

void reference_pad_channels(int height, int width, int input_channels, int output_channels,
                            std::span<const std::int16_t> input, std::span<std::int16_t> output) {
  const int before = (output_channels - input_channels) / 2;
  std::fill(output.begin(), output.end(), std::int16_t{0});
  std::int16_t* next = output.data();
  for (int row = 0; row < height; row += 2) {
    for (int column = 0; column < width; column += 2) {
      std::copy_n(input.data() + (std::ptrdiff_t{row} * width + column) * input_channels, input_channels,
                  next + before);
      next += output_channels;
    }
  }
}

template <typename Accumulator>
void reference_pool_linear(std::span<const std::int16_t> map, int channels,
                           std::span<const std::int16_t> weights, std::span<const float> scale,
                           std::span<const float> offset, std::span<float> logits) {
  const auto channel_count = static_cast<std::size_t>(channels);
  std::vector<Accumulator> sums(channel_count);
  for (std::size_t i = 0; i < map.size(); ++i) sums[i % channel_count] += map[i];
  for (std::size_t k = 0; k < logits.size(); ++k) {
    Accumulator sum = 0;
    for (std::size_t c = 0; c < channel_count; ++c) sum += sums[c] * weights[k * channel_count + c];
    logits[k] = scaled(sum, scale[k], offset[k]);
  }
}

void reference_bordered_image(int height, int width, std::span<const std::uint8_t> pixels,
                              std::span<std::int16_t> bordered) {
  for (std::size_t i = 0; i < bordered.size(); ++i) bordered[i] = kBorderPixel[i % 3];
  for (int row = 0; row < height; ++row) {
    std::copy_n(pixels.data() + std::ptrdiff_t{row} * width * 3, width * 3,
                bordered.data() + ((std::ptrdiff_t{row} + 1) * (width + 2) + 1) * 3);
  }
}

#define NIBBLE_ACCUMULATOR(T)                                                                               \
  template void reference_convolution<T>(const ConvolutionShape&, std::span<const std::int16_t>,            \
                                         std::span<const std::int16_t>, std::span<T>);                      \
  template void reference_requantize<T>(std::span<const T>, const Requantization&,                          \
                                        std::span<const std::int16_t>, std::span<std::int16_t>);            \
  template void reference_pool_linear<T>(std::span<const std::int16_t>, int, std::span<const std::int16_t>, \
                                         std::span<const float>, std::span<const float>, std::span<float>);
NIBBLE_ACCUMULATOR(std::int32_t)
NIBBLE_ACCUMULATOR(std::int64_t)
#undef NIBBLE_ACCUMULATOR

}  // namespace nibble
