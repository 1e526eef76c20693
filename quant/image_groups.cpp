#include "quant/image_groups.h"

#include "graph/network/error.h"

namespace nibble {
namespace {

/// Calls take(place in small, place in large) for the first of each position's channels.
template <typename Take>
void for_padded(const Convolution& conv1, const Take& take) {
  const auto inner = static_cast<std::size_t>(conv1.input_channels);
  const auto outer = static_cast<std::size_t>(conv1.output_channels);
  const auto stride = static_cast<std::size_t>(conv1.stride);
  const auto rows = static_cast<std::size_t>(conv1.output_height());
  const auto columns = static_cast<std::size_t>(conv1.output_width());
  const auto input_rows = static_cast<std::size_t>(conv1.input_height);
  const auto input_columns = static_cast<std::size_t>(conv1.input_width);
  for (std::size_t image = 0; image < kGroupImages; ++image) {
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t column = 0; column < columns; ++column) {
        take(((image * input_rows + row * stride) * input_columns + column * stride) * inner,
             ((image * rows + row) * columns + column) * outer + (outer - inner) / 2);
      }
    }
  }
}

}  // namespace

std::unique_ptr<TrainingLayer<float>> make_group_layer(const Convolution& shape,
                                                       std::vector<TrainingWorker<float>>& workers) {
  const SingleThreadedCreation single;
  auto layer = std::make_unique<TrainingLayer<float>>(shape);
  layer->tile = static_cast<int>(kGroupImages);
  layer->weight = 1;  // 0 would mean: reads the pixels, no data gradient
  try {
    layer->make_primitives(workers);
  } catch (const dnnl::error& error) {
    throw RunError("oneDNN has no float convolution for '" + shape.name + "': " + error.what());
  }
  return layer;
}

void pad_group(const Convolution& conv1, const float* small, float* large) {
  for_padded(conv1, [&](std::size_t narrow, std::size_t wide) {
    for (int c = 0; c < conv1.input_channels; ++c)
      large[wide + static_cast<std::size_t>(c)] = small[narrow + static_cast<std::size_t>(c)];
  });
}

void add_padded_group(const Convolution& conv1, const float* large, float* small) {
  for_padded(conv1, [&](std::size_t narrow, std::size_t wide) {
    for (int c = 0; c < conv1.input_channels; ++c)
      small[narrow + static_cast<std::size_t>(c)] += large[wide + static_cast<std::size_t>(c)];
  });
}

}  // namespace nibble
