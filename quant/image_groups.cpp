#include "quant/image_groups.h"

#include "graph/network/error.h"
#include "graph/network/padded_shortcut.h"

namespace nibble {

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
  for_padded(conv1, kGroupImages, [&](std::size_t from, std::size_t to) { large[to] = small[from]; });
}

void add_padded_group(const Convolution& conv1, const float* large, float* small) {
  for_padded(conv1, kGroupImages, [&](std::size_t to, std::size_t from) { small[to] += large[from]; });
}

}  // namespace nibble
