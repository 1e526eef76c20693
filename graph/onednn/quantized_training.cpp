#include "graph/onednn/quantized_training.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "graph/network/error.h"
#include "graph/onednn/fake_quantization.h"
#include "graph/onednn/training_tiles.h"
#include "kernels/requantize.h"

// How a step runs: in the tiles and stages of training_tiles.h, all in units of the integers.
//
//   r[k-1] -> x = derive(r) -> convolution 1 -> y (sum of q_w * q_x) -> quantize(norm(y)) -> convolution 2
//      \---- identity, or quantize(norm(projection(x))) ------------------- add_quantize(norm(y)) -> r[k]
//
// unit[c] = s_in * s_w[c] is what 1 in y stands for; norm(y) comes out in units of the scale that quantizes
// it. A map holds the integers of the stream, everything else between two convolutions is computed again in
// the backward pass. d loss / d integer becomes d loss / d real value by division by the scale, once, on
// sums.

namespace nibble {
namespace {

constexpr std::size_t kNone = static_cast<std::size_t>(-1);
constexpr float kStreamLimit = 255;
constexpr float kSmallestScale = 1e-8F;

/// Offsets of the scales in the trainable values; kNone where there is no such quantizer.
struct BlockOffsets {
  std::size_t input, middle, shortcut, output;
};

template <typename T>
class QuantizedTrainer final : public TiledTraining<T, float> {
 public:
  QuantizedTrainer(const NetworkDescription& network, const LearnedScales& form, int batch_size);

 private:
  using Base = TiledTraining<T, float>;
  using Base::current_gradient_;
  using Base::feature_unit_;
  using Base::finish_gradient;
  using Base::gradients;
  using Base::groups;
  using Base::kChannels;
  using Base::kSumStride;
  using Base::layer;
  using Base::layers_;
  using Base::linear_;
  using Base::linear_weight_;
  using Base::main_source;
  using Base::map_gradient_;
  using Base::map_tile;
  using Base::maps_;
  using Base::network_;
  using Base::projected_source;
  using Base::sums;
  using Base::trainable;
  using Base::worker;
  using Base::workers_;
  using typename Base::Layer;
  using typename Base::Tile;

  void begin() override;
  void set_weight(int number) override;
  void take_pixels(const std::uint8_t* pixels, std::size_t count, T* x) const override {
    for (std::size_t i = 0; i < 3 * count; ++i) {
      store_value(static_cast<float>(pixels[i] - kBorderPixel[i % 3]), x + i);
    }
  }
  void make_map(std::size_t map, const Tile& tile) override;
  T* block_input(std::size_t map, const Tile& tile) override;
  void make_middle(const Layer& first, const Tile& tile, T* z) const override;
  void middle_gradient(const Layer& first, const Tile& tile, T* g) override;
  void last_gradient(const Tile& tile, const T* d) override {
    clear_sums(tile);
    map_gradient(maps_.size() - 1, tile, d, current_gradient_);
  }
  void block_gradient(std::size_t block, const Tile& tile, T* d, const T* projected) override;
  const T* projection_gradient() const override { return projection_gradient_[current_gradient_].data(); }
  void finish_map(std::size_t map) override;
  void finish_middle(std::size_t block) override;
  void finish_linear() override;
  void finish_weight(int number) override;

  void add_scales();
  const T* shortcut_values(std::size_t map, const Tile& tile);
  const T* shortcut_gradient(std::size_t block, const Tile& tile);
  void map_gradient(std::size_t map, const Tile& tile, const T* d, std::size_t gradient);
  void finish_scale(std::size_t offset, int slot, std::size_t term, int stage_tile, double values,
                    double largest);
  void weight_gradients(std::size_t weight, std::size_t scale, std::size_t channels, std::size_t taps,
                        int bits, const float* factor);

  void clear_sums(const Tile& tile) {
    std::fill_n(sums(0, tile), kSumStride, 0.0);
    std::fill_n(sums(1, tile), kSumStride, 0.0);
  }
  float scale(std::size_t offset) const { return trainable.data()[offset]; }
  std::size_t stream_scale(std::size_t map) const {
    return map == 0 ? first_output_ : blocks_[map - 1].output;
  }
  /// s_stream / s_x
  float input_ratio(std::size_t block) const {
    return blocks_[block].input == kNone ? 1.0F : scale(stream_scale(block)) / scale(blocks_[block].input);
  }
  /// Beyond every integer of the stream where x is the stream itself.
  float input_limit(std::size_t block) const {
    return blocks_[block].input == kNone ? kStreamLimit + 1 : activation_limit_;
  }
  /// s_r / s_out of the block before map `map`.
  float shortcut_ratio(std::size_t map) const {
    const BlockOffsets& block = blocks_[map - 1];
    return scale(block.shortcut == kNone ? stream_scale(map - 1) : block.shortcut) / scale(block.output);
  }
  int weight_bits(std::size_t number) const { return trained_weight_bits(form_, number); }

  const LearnedScales form_;
  const QuantizationLoops<T>& quantizers_;
  const float activation_limit_;
  std::vector<std::size_t> weight_scales_;  // offsets, of each convolution
  std::size_t linear_scales_ = 0;
  std::size_t first_output_ = 0;
  std::vector<BlockOffsets> blocks_;
  std::array<float, 3> pixel_factor_;  // first convolution's weights are multiplied with, by input channel
  std::array<AlignedBuffer<T>, 2> projection_gradient_;  // g of a projection's quantizer
  std::vector<AlignedBuffer<T>> inputs_;                 // [thread] x of a tile
  std::vector<std::vector<float>> integers_;             // [thread] weights of a layer
  std::vector<float> linear_values_;
};

template <typename T>
QuantizedTrainer<T>::QuantizedTrainer(const NetworkDescription& network, const LearnedScales& form,
                                      int batch_size)
    : TiledTraining<T, float>(network, batch_size, true),
      form_(form),
      quantizers_(quantization_loops<T>()),
      activation_limit_(static_cast<float>(activation_limit(form.activation_bits))) {
  add_scales();
  for (std::size_t i = 0; i < 3; ++i) pixel_factor_[i] = first_weight_factor(i);
  std::size_t largest = 0;
  for (const Layer& each : layers_) {
    largest = std::max(largest, static_cast<std::size_t>(each.shape.weight_count()));
  }
  const bool projected = std::any_of(network.blocks.begin(), network.blocks.end(),
                                     [](const Block& block) { return block.projection >= 0; });
  for (auto& gradient : projection_gradient_) gradient.reset(projected ? map_gradient_[0].size() : 0);
  for (const TrainingWorker<T>& each : workers_) {
    inputs_.emplace_back(each.a.size());
    integers_.emplace_back(largest);
  }
  linear_values_.resize(index(network.classes * network.feature_channels));
}

/// Groups behind those of the float network.
template <typename T>
void QuantizedTrainer<T>::add_scales() {
  std::size_t offset = trainable.size();
  const auto add = [&](const std::string& name, std::size_t count) {
    groups.push_back({name, ParameterKind::quantizer_scale, offset, count});
    offset += count;
    return offset - count;
  };
  first_output_ = add("first_output_scale", 1);
  for (std::size_t i = 0; i < network_.blocks.size(); ++i) {
    const std::string name = "blocks." + std::to_string(i);
    BlockOffsets block{};
    block.input = form_.activation_bits < 8 ? add(name + ".input_scale", 1) : kNone;
    block.middle = add(name + ".middle_scale", 1);
    block.shortcut = network_.blocks[i].projection >= 0 ? add(name + ".shortcut_scale", 1) : kNone;
    block.output = add(name + ".output_scale", 1);
    blocks_.push_back(block);
  }
  for (const Layer& each : layers_) {
    weight_scales_.push_back(add(each.shape.name + ".weight_scale", index(each.shape.output_channels)));
  }
  linear_scales_ = add("linear.weight_scale", index(network_.classes));
  trainable.reset(offset);
  gradients.reset(offset);
}

/// Units of every normalization and the linear layer's weights from the scales as they are now.
template <typename T>
void QuantizedTrainer<T>::begin() {
  const auto set_units = [&](int number, float input_scale, float output_scale) {
    Normalization& normalization = layer(number).normalization;
    normalization.output_unit = output_scale;
    for (std::size_t i = 0; i < index(normalization.channels); ++i) {
      normalization.unit[i] = input_scale * scale(weight_scales_[index(number)] + i);
      normalization.center[i] = normalization.running_mean[i] / normalization.unit[i];
    }
  };
  set_units(0, 1 / (255 * kMeanDeviation), scale(first_output_));
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const Block& shape = network_.blocks[i];
    const BlockOffsets& block = blocks_[i];
    const float input = scale(block.input == kNone ? stream_scale(i) : block.input);
    set_units(shape.conv1, input, scale(block.middle));
    set_units(shape.conv2, scale(block.middle), scale(block.output));
    if (shape.projection >= 0) set_units(shape.projection, input, scale(block.shortcut));
  }
  const std::size_t features = index(network_.feature_channels);
  for (std::size_t i = 0; i < linear_values_.size(); ++i) {
    const float s = scale(linear_scales_ + i / features);
    linear_values_[i] = s * quantize_weight(trainable.data()[linear_weight_ + i] / s, 8);
  }
  linear_ = linear_values_.data();
  feature_unit_ = scale(stream_scale(blocks_.size()));
}

template <typename T>
void QuantizedTrainer<T>::set_weight(int number) {
  Layer& each = layer(number);
  const int thread = omp_get_thread_num();
  const std::size_t channels = index(each.shape.output_channels);
  const std::size_t taps = static_cast<std::size_t>(each.shape.weight_count()) / channels;
  const float* master = trainable.data() + each.weight;
  float* integers = integers_[index(thread)].data();
  const int bits = weight_bits(index(number));
  for (std::size_t i = 0; i < channels * taps; ++i) {
    const float value = number == 0 ? master[i] * pixel_factor_[i % 3] : master[i];
    integers[i] = quantize_weight(value / scale(weight_scales_[index(number)] + i / taps), bits);
  }
  each.set_weight(thread, workers_[index(thread)], integers);
}

/// What block `map` - 1 adds, for one tile.
template <typename T>
const T* QuantizedTrainer<T>::shortcut_values(std::size_t map, const Tile& tile) {
  const Map<T>& before = maps_[map - 1];
  const Map<T>& after = maps_[map];
  switch (network_.blocks[map - 1].shortcut) {
    case Shortcut::identity:
      return before.x.data() + tile.first * before.image();
    case Shortcut::projection: {
      const Layer& projection = *projected_source(map);
      const QuantizedRange range = shortcut_range(8);
      T* values = worker(tile).c.data();
      quantizers_.quantize(projection.y.data() + tile.first * after.image(), tile.valid * after.pixels(),
                           after.channels, projection.normalization.scale.data(),
                           projection.normalization.shift.data(), static_cast<float>(range.lowest),
                           static_cast<float>(range.highest), values);
      return values;
    }
    case Shortcut::pad_channels:
      return this->padded_shortcut(map, tile);
  }
  return nullptr;
}

template <typename T>
void QuantizedTrainer<T>::make_map(std::size_t map, const Tile& tile) {
  Map<T>& target = maps_[map];
  const Layer& source = main_source(map);
  const Normalization& normalization = source.normalization;
  const std::size_t offset = tile.first * target.image();
  const std::size_t rows = tile.valid * target.pixels();
  const float* y = source.y.data() + offset;
  T* r = target.x.data() + offset;
  if (map == 0) {
    quantizers_.quantize(y, rows, target.channels, normalization.scale.data(), normalization.shift.data(), 0,
                         kStreamLimit, r);
  } else {
    quantizers_.add_quantize(y, rows, target.channels, normalization.scale.data(), normalization.shift.data(),
                             shortcut_values(map, tile), shortcut_ratio(map), kStreamLimit, r);
  }
}

template <typename T>
T* QuantizedTrainer<T>::block_input(std::size_t block, const Tile& tile) {
  const Map<T>& map = maps_[block];
  T* x = inputs_[index(tile.thread)].data();
  quantizers_.derive(map.x.data() + tile.first * map.image(), tile.valid * map.pixels(), map.channels,
                     input_ratio(block), input_limit(block), x);
  return x;
}

template <typename T>
void QuantizedTrainer<T>::make_middle(const Layer& first, const Tile& tile, T* z) const {
  quantizers_.quantize(first.y.data() + tile.first * first.output_image(), tile.valid * first.output_pixels(),
                       first.shape.output_channels, first.normalization.scale.data(),
                       first.normalization.shift.data(), 0, activation_limit_, z);
}

/// g of maps_[map] from d = d loss / d integer, and a projection's, with their sums.
template <typename T>
void QuantizedTrainer<T>::map_gradient(std::size_t map, const Tile& tile, const T* d, std::size_t gradient) {
  const Map<T>& target = maps_[map];
  const std::size_t offset = tile.first * target.image();
  const std::size_t rows = tile.valid * target.pixels();
  const Layer& source = main_source(map);
  const Normalization& normalization = source.normalization;
  const float* y = source.y.data() + offset;
  T* g = map_gradient_[gradient].data();
  double* sum = sums(0, tile);
  if (map == 0) {
    quantizers_.quantize_gradient(d, 1, y, rows, target.channels, normalization.scale.data(),
                                  normalization.shift.data(), normalization.mean.data(), 0, kStreamLimit,
                                  g + offset, sum, sum + kChannels, sum + 2 * kChannels);
    return;
  }
  quantizers_.add_quantize_gradient(d, y, rows, target.channels, normalization.scale.data(),
                                    normalization.shift.data(), shortcut_values(map, tile),
                                    shortcut_ratio(map), normalization.mean.data(), kStreamLimit, g + offset,
                                    sum, sum + kChannels, sum + 2 * kChannels);
  if (const Layer* projection = projected_source(map)) {
    const Normalization& projected = projection->normalization;
    const QuantizedRange range = shortcut_range(8);
    double* other = sums(1, tile);
    quantizers_.quantize_gradient(
        g + offset, shortcut_ratio(map), projection->y.data() + offset, rows, target.channels,
        projected.scale.data(), projected.shift.data(), projected.mean.data(),
        static_cast<float>(range.lowest), static_cast<float>(range.highest),
        projection_gradient_[gradient].data() + offset, other, other + kChannels, other + 2 * kChannels);
  }
}

/// The scale's gradient from the sums in `slot`.
template <typename T>
void QuantizedTrainer<T>::finish_scale(std::size_t offset, int slot, std::size_t term, int stage_tile,
                                       double values, double largest) {
  if (offset == kNone) return;
  double total = 0;
  for (int tile = 0; tile < this->tiles_of(stage_tile); ++tile) {
    for (std::size_t i = 0; i < kChannels; ++i) total += this->sums_of(slot, tile)[term * kChannels + i];
  }
  gradients.data()[offset] = static_cast<float>(total / double{scale(offset)} / std::sqrt(values * largest));
}

template <typename T>
void QuantizedTrainer<T>::finish_map(std::size_t map) {
  const int tile = map_tile(map);
  const double values = static_cast<double>(maps_[map].image());
  finish_gradient(main_source(map), 0, 0, tile);
  finish_scale(stream_scale(map), 0, 2, tile, values, double{kStreamLimit});
  if (Layer* projection = projected_source(map)) {
    finish_gradient(*projection, 1, 1, tile);
    finish_scale(blocks_[map - 1].shortcut, 1, 2, tile, values, shortcut_range(8).highest);
  }
  if (map < blocks_.size()) finish_scale(blocks_[map].input, 0, 3, tile, values, double{activation_limit_});
}

template <typename T>
void QuantizedTrainer<T>::middle_gradient(const Layer& first, const Tile& tile, T* g) {
  const Normalization& normalization = first.normalization;
  clear_sums(tile);
  double* sum = sums(0, tile);
  quantizers_.quantize_gradient(
      g, 1, first.y.data() + tile.first * first.output_image(), tile.valid * first.output_pixels(),
      normalization.channels, normalization.scale.data(), normalization.shift.data(),
      normalization.mean.data(), 0, activation_limit_, g, sum, sum + kChannels, sum + 2 * kChannels);
}

template <typename T>
void QuantizedTrainer<T>::finish_middle(std::size_t block) {
  const Block& shape = network_.blocks[block];
  finish_scale(blocks_[block].middle, 0, 2, layer(shape.conv2).tile,
               static_cast<double>(layer(shape.conv1).output_image()), double{activation_limit_});
}

/// d loss / d (what the block adds), one tile; null where that is a projection's.
template <typename T>
const T* QuantizedTrainer<T>::shortcut_gradient(std::size_t block, const Tile& tile) {
  switch (network_.blocks[block].shortcut) {
    case Shortcut::identity:
      return map_gradient_[current_gradient_].data() + tile.first * maps_[block].image();
    case Shortcut::projection:
      return nullptr;
    case Shortcut::pad_channels:
      return this->padded_gradient(block, tile);
  }
  return nullptr;
}

template <typename T>
void QuantizedTrainer<T>::block_gradient(std::size_t block, const Tile& tile, T* d, const T* projected) {
  const Map<T>& map = maps_[block];
  if (projected != nullptr) {
    for (std::size_t i = 0; i < tile.valid * map.image(); ++i) {
      store_value(to_float(d[i]) + to_float(projected[i]), d + i);
    }
  }
  clear_sums(tile);
  quantizers_.derive_gradient(d, map.x.data() + tile.first * map.image(), tile.valid * map.pixels(),
                              map.channels, input_ratio(block), input_limit(block),
                              shortcut_gradient(block, tile), shortcut_ratio(block + 1), d,
                              sums(0, tile) + 3 * kChannels);
  map_gradient(block, tile, d, 1 - current_gradient_);
}

/// From d loss / d integer to the FP32 weights' gradient, in place, and the scales'.
template <typename T>
void QuantizedTrainer<T>::weight_gradients(std::size_t weight, std::size_t scales, std::size_t channels,
                                           std::size_t taps, int bits, const float* factor) {
  const float clip = weight_clip(bits);
  for (std::size_t c = 0; c < channels; ++c) {
    const float s = scale(scales + c);
    double step = 0;
    for (std::size_t i = 0; i < taps; ++i) {
      const float f = factor == nullptr ? 1.0F : factor[i % 3];
      float& gradient = gradients.data()[weight + c * taps + i];
      const float v = trainable.data()[weight + c * taps + i] * f / s;
      const bool inside = std::fabs(v) < clip;
      const float d = gradient / s;
      step += double{d * (quantize_weight(v, bits) - (inside ? v : 0.0F))};
      gradient = inside ? d * f : 0.0F;
    }
    gradients.data()[scales + c] =
        static_cast<float>(step / std::sqrt(static_cast<double>(taps) * double{clip}));
  }
}

template <typename T>
void QuantizedTrainer<T>::finish_linear() {
  // Of scale * integer; by the scale it becomes that of the integer, as the convolutions' are.
  const std::size_t features = index(network_.feature_channels);
  for (std::size_t i = 0; i < linear_values_.size(); ++i) {
    gradients.data()[linear_weight_ + i] *= scale(linear_scales_ + i / features);
  }
  weight_gradients(linear_weight_, linear_scales_, index(network_.classes), features, 8, nullptr);
}

template <typename T>
void QuantizedTrainer<T>::finish_weight(int number) {
  const Convolution& shape = layer(number).shape;
  const std::size_t channels = index(shape.output_channels);
  weight_gradients(layer(number).weight, weight_scales_[index(number)], channels,
                   static_cast<std::size_t>(shape.weight_count()) / channels, weight_bits(index(number)),
                   number == 0 ? pixel_factor_.data() : nullptr);
}

std::unique_ptr<TrainingImplementation> make_trainer(const NetworkDescription& network,
                                                     const LearnedScales& form, int batch_size,
                                                     Precision precision) {
  require_precision(precision);
  return precision == Precision::bf16 ? make_training<QuantizedTrainer<Bfloat16>>(network, form, batch_size)
                                      : make_training<QuantizedTrainer<float>>(network, form, batch_size);
}

/// visit(group's first value, the scales') for every group of scales, in their order.
template <typename Scales, typename Visit>
void for_groups(const NetworkDescription& network, Scales& scales, const Visit& visit) {
  visit(&scales.first_output);
  for (std::size_t i = 0; i < network.blocks.size(); ++i) {
    if (scales.activation_bits < 8) visit(&scales.blocks[i].input);
    visit(&scales.blocks[i].middle);
    if (network.blocks[i].projection >= 0) visit(&scales.blocks[i].shortcut);
    visit(&scales.blocks[i].output);
  }
  for (auto& layer : scales.weights) visit(layer.data());
  visit(scales.linear.data());
}

}  // namespace

QuantizedTraining::QuantizedTraining(const NetworkDescription& network, const LearnedScales& scales,
                                     int batch_size, Precision precision)
    : FloatTraining(make_trainer(network, scales, batch_size, precision)), network_(network), form_(scales) {
  set_scales(scales);
}

void QuantizedTraining::set_scales(const LearnedScales& scales) {
  auto group = std::find_if(groups().begin(), groups().end(), [](const ParameterGroup& each) {
    return each.kind == ParameterKind::quantizer_scale;
  });
  for_groups(network_, scales, [&](const float* from) {
    std::copy_n(from, group->count, trainable().data() + group->offset);
    ++group;
  });
}

LearnedScales QuantizedTraining::scales() const {
  LearnedScales scales = form_;
  auto group = std::find_if(groups().begin(), groups().end(), [](const ParameterGroup& each) {
    return each.kind == ParameterKind::quantizer_scale;
  });
  for_groups(network_, scales, [&](float* to) {
    std::copy_n(trainable().data() + group->offset, group->count, to);
    ++group;
  });
  return scales;
}

void QuantizedTraining::keep_scales_positive() {
  for (const ParameterGroup& group : groups()) {
    if (group.kind != ParameterKind::quantizer_scale) continue;
    for (float& scale : trainable().subspan(group.offset, group.count))
      scale = std::max(scale, kSmallestScale);
  }
}

}  // namespace nibble
