#include "graph/onednn/quantized_training.h"

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

/// visit(place in `before`, place in `after`) for every value that shortcut A passes on, of one tile.
template <typename T, typename Tile, typename Visit>
void for_padded(const Map<T>& before, const Map<T>& after, const Tile& tile, const Visit& visit) {
  const std::size_t size = index(after.size);
  const std::size_t stride = index(before.size / after.size);
  const std::size_t channels = index(before.channels);
  const std::size_t added = (index(after.channels) - channels) / 2;
  for (std::size_t row = tile.first * size; row < (tile.first + tile.valid) * size; ++row) {
    for (std::size_t column = 0; column < size; ++column) {
      const std::size_t from =
          row / size * before.image() + (row % size * index(before.size) + column) * stride * channels;
      const std::size_t to = (row * size + column) * index(after.channels) + added;
      for (std::size_t i = 0; i < channels; ++i) visit(from + i, to + i);
    }
  }
}

template <typename T>
class QuantizedTrainer final : public TiledTraining<T> {
 public:
  QuantizedTrainer(const NetworkDescription& network, const LearnedScales& form, int batch_size);

  std::span<const float> forward(const std::uint8_t* pixels, int count) override;
  void backward(std::span<const float> logit_gradients) override;

 private:
  using Base = TiledTraining<T>;
  using Base::add_gradients;
  using Base::clear_tail;
  using Base::convolve;
  using Base::count_;
  using Base::current_gradient_;
  using Base::feature_unit_;
  using Base::finish_gradient;
  using Base::finish_statistics;
  using Base::for_tiles;
  using Base::gradients;
  using Base::groups;
  using Base::guarded;
  using Base::inner_gradient_;
  using Base::input_;
  using Base::kChannels;
  using Base::kSumStride;
  using Base::layer;
  using Base::layers_;
  using Base::linear_;
  using Base::linear_gradient;
  using Base::linear_weight_;
  using Base::logits_;
  using Base::loops_;
  using Base::main_source;
  using Base::map_gradient_;
  using Base::map_tile;
  using Base::maps_;
  using Base::network_;
  using Base::parallel;
  using Base::pool_and_linear;
  using Base::pool_gradient;
  using Base::projected_source;
  using Base::store_gradient;
  using Base::sums;
  using Base::tiles_of;
  using Base::trainable;
  using Base::weight_gradient;
  using Base::workers_;
  using typename Base::Tile;

  void add_scales();
  void prepare();
  void set_weight(int number);
  void make_map(std::size_t map, int thread, const Tile& tile);
  const T* shortcut_values(std::size_t map, int thread, const Tile& tile);
  void make_input(std::size_t block, const Tile& tile, T* x) const;
  void map_gradient(std::size_t map, int thread, const Tile& tile, const T* d, std::size_t gradient);
  void backward_second(std::size_t block, int thread, const Tile& tile);
  void backward_first(std::size_t block, int thread, const Tile& tile);
  const T* shortcut_gradient(std::size_t block, int thread, const Tile& tile);
  void finish_map_gradient(std::size_t map);
  void finish_scale(std::size_t offset, int slot, std::size_t term, int stage_tile, double values,
                    double largest);
  void weight_gradients(std::size_t weight, std::size_t scale, std::size_t channels, std::size_t taps,
                        int bits, const float* factor);

  void clear_sums(const Tile& tile) {
    std::fill_n(sums(0, tile.index), kSumStride, 0.0);
    std::fill_n(sums(1, tile.index), kSumStride, 0.0);
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
  std::vector<AlignedBuffer<T>> shortcuts_;              // [thread] what a tile adds
  std::vector<std::vector<float>> integers_;             // [thread] weights of a layer
  std::vector<float> linear_values_;
};

template <typename T>
QuantizedTrainer<T>::QuantizedTrainer(const NetworkDescription& network, const LearnedScales& form,
                                      int batch_size)
    : TiledTraining<T>(network, batch_size),
      form_(form),
      quantizers_(quantization_loops<T>()),
      activation_limit_(static_cast<float>(activation_limit(form.activation_bits))) {
  add_scales();
  for (std::size_t i = 0; i < 3; ++i) pixel_factor_[i] = kMeanDeviation / kPixelDeviation[i];
  std::size_t largest = 0;
  for (const TrainingLayer<T>& each : layers_) {
    largest = std::max(largest, static_cast<std::size_t>(each.shape.weight_count()));
  }
  const bool projected = std::any_of(network.blocks.begin(), network.blocks.end(),
                                     [](const Block& block) { return block.projection >= 0; });
  for (auto& gradient : projection_gradient_) gradient.reset(projected ? inner_gradient_.size() : 0);
  for (const TrainingWorker<T>& worker : workers_) {
    inputs_.emplace_back(worker.a.size());
    shortcuts_.emplace_back(worker.a.size());
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
  for (const TrainingLayer<T>& each : layers_) {
    weight_scales_.push_back(add(each.shape.name + ".weight_scale", index(each.shape.output_channels)));
  }
  linear_scales_ = add("linear.weight_scale", index(network_.classes));
  trainable.reset(offset);
  gradients.reset(offset);
}

/// Units of every normalization and the linear layer's weights from the scales as they are now.
template <typename T>
void QuantizedTrainer<T>::prepare() {
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
  TrainingLayer<T>& each = layer(number);
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
const T* QuantizedTrainer<T>::shortcut_values(std::size_t map, int thread, const Tile& tile) {
  const Map<T>& before = maps_[map - 1];
  const Map<T>& after = maps_[map];
  T* values = shortcuts_[index(thread)].data();
  switch (network_.blocks[map - 1].shortcut) {
    case Shortcut::identity:
      return before.x.data() + tile.first * before.image();
    case Shortcut::projection: {
      const TrainingLayer<T>& projection = *projected_source(map);
      const QuantizedRange range = shortcut_range(8);
      quantizers_.quantize(projection.y.data() + tile.first * after.image(), tile.valid * after.pixels(),
                           after.channels, projection.normalization.scale.data(),
                           projection.normalization.shift.data(), static_cast<float>(range.lowest),
                           static_cast<float>(range.highest), values);
      return values;
    }
    case Shortcut::pad_channels: {
      std::memset(static_cast<void*>(values), 0, tile.valid * after.image() * sizeof(T));
      for_padded(before, after, tile, [&](std::size_t from, std::size_t to) {
        values[to - tile.first * after.image()] = before.x.data()[from];
      });
      return values;
    }
  }
  return nullptr;
}

template <typename T>
void QuantizedTrainer<T>::make_map(std::size_t map, int thread, const Tile& tile) {
  Map<T>& target = maps_[map];
  const TrainingLayer<T>& source = main_source(map);
  const Normalization& normalization = source.normalization;
  const std::size_t offset = tile.first * target.image();
  const std::size_t rows = tile.valid * target.pixels();
  const T* y = source.y.data() + offset;
  T* r = target.x.data() + offset;
  if (map == 0) {
    quantizers_.quantize(y, rows, target.channels, normalization.scale.data(), normalization.shift.data(), 0,
                         kStreamLimit, r);
  } else {
    quantizers_.add_quantize(y, rows, target.channels, normalization.scale.data(), normalization.shift.data(),
                             shortcut_values(map, thread, tile), shortcut_ratio(map), kStreamLimit, r);
  }
}

/// x of block `block`, with zeros behind the batch's last image.
template <typename T>
void QuantizedTrainer<T>::make_input(std::size_t block, const Tile& tile, T* x) const {
  const Map<T>& map = maps_[block];
  quantizers_.derive(map.x.data() + tile.first * map.image(), tile.valid * map.pixels(), map.channels,
                     input_ratio(block), input_limit(block), x);
  clear_tail(tile, map_tile(block), map.image(), x);
}

template <typename T>
std::span<const float> QuantizedTrainer<T>::forward(const std::uint8_t* pixels, int count) {
  count_ = count;
  prepare();
  parallel([&](int) {
    const int layers = static_cast<int>(layers_.size());
#pragma omp for schedule(dynamic)
    for (int i = 0; i < layers; ++i) guarded([&] { set_weight(i); });
    TrainingLayer<T>& stem = layers_[0];
    for_tiles(stem.tile, [&](int thread, const Tile& tile) {
      T* x = input_.data() + tile.first * stem.input_image();
      const std::uint8_t* from = pixels + tile.first * stem.input_image();
      for (std::size_t i = 0; i < tile.valid * stem.input_image(); ++i) {
        store_value(static_cast<float>(from[i] - kBorderPixel[i % 3]), x + i);
      }
      clear_tail(tile, stem.tile, stem.input_image(), x);
      convolve(stem, thread, x, tile, 0);
    });
#pragma omp single
    finish_statistics(stem, 0);
    for (std::size_t number = 0; number < network_.blocks.size(); ++number) {
      const Block& block = network_.blocks[number];
      TrainingLayer<T>& first = layer(block.conv1);
      TrainingLayer<T>& second = layer(block.conv2);
      TrainingLayer<T>* projection = block.projection < 0 ? nullptr : &layer(block.projection);
      for_tiles(first.tile, [&](int thread, const Tile& tile) {
        make_map(number, thread, tile);
        T* x = inputs_[index(thread)].data();
        make_input(number, tile, x);
        convolve(first, thread, x, tile, 0);
        if (projection != nullptr) convolve(*projection, thread, x, tile, 1);
      });
#pragma omp single
      {
        finish_statistics(first, 0);
        if (projection != nullptr) finish_statistics(*projection, 1);
      }
      for_tiles(second.tile, [&](int thread, const Tile& tile) {
        T* z = workers_[index(thread)].a.data();
        quantizers_.quantize(first.y.data() + tile.first * first.output_image(),
                             tile.valid * first.output_pixels(), first.shape.output_channels,
                             first.normalization.scale.data(), first.normalization.shift.data(), 0,
                             activation_limit_, z);
        clear_tail(tile, second.tile, first.output_image(), z);
        convolve(second, thread, z, tile, 0);
      });
#pragma omp single
      finish_statistics(second, 0);
    }
    const std::size_t last = maps_.size() - 1;
    for_tiles(map_tile(last), [&](int thread, const Tile& tile) {
      make_map(last, thread, tile);
      for (std::size_t image = tile.first; image < tile.first + tile.valid; ++image) pool_and_linear(image);
    });
  });
  return {logits_.data(), index(count * network_.classes)};
}

/// g of maps_[map] from d = d loss / d integer, and a projection's, with their sums.
template <typename T>
void QuantizedTrainer<T>::map_gradient(std::size_t map, int thread, const Tile& tile, const T* d,
                                       std::size_t gradient) {
  const Map<T>& target = maps_[map];
  const std::size_t offset = tile.first * target.image();
  const std::size_t rows = tile.valid * target.pixels();
  const TrainingLayer<T>& source = main_source(map);
  const Normalization& normalization = source.normalization;
  const T* y = source.y.data() + offset;
  T* g = map_gradient_[gradient].data();
  double* sum = sums(0, tile.index);
  if (map == 0) {
    quantizers_.quantize_gradient(d, 1, y, rows, target.channels, normalization.scale.data(),
                                  normalization.shift.data(), normalization.mean.data(), 0, kStreamLimit,
                                  g + offset, sum, sum + kChannels, sum + 2 * kChannels);
    return;
  }
  quantizers_.add_quantize_gradient(d, y, rows, target.channels, normalization.scale.data(),
                                    normalization.shift.data(), shortcut_values(map, thread, tile),
                                    shortcut_ratio(map), normalization.mean.data(), kStreamLimit, g + offset,
                                    sum, sum + kChannels, sum + 2 * kChannels);
  if (const TrainingLayer<T>* projection = projected_source(map)) {
    const Normalization& projected = projection->normalization;
    const QuantizedRange range = shortcut_range(8);
    double* other = sums(1, tile.index);
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
  for (int tile = 0; tile < tiles_of(stage_tile); ++tile) {
    for (std::size_t i = 0; i < kChannels; ++i) total += sums(slot, tile)[term * kChannels + i];
  }
  gradients.data()[offset] = static_cast<float>(total / double{scale(offset)} / std::sqrt(values * largest));
}

template <typename T>
void QuantizedTrainer<T>::finish_map_gradient(std::size_t map) {
  const int tile = map_tile(map);
  const double values = static_cast<double>(maps_[map].image());
  finish_gradient(main_source(map), 0, 0, tile);
  finish_scale(stream_scale(map), 0, 2, tile, values, double{kStreamLimit});
  if (TrainingLayer<T>* projection = projected_source(map)) {
    finish_gradient(*projection, 1, 1, tile);
    finish_scale(blocks_[map - 1].shortcut, 1, 2, tile, values, shortcut_range(8).highest);
  }
  if (map < blocks_.size()) finish_scale(blocks_[map].input, 0, 3, tile, values, double{activation_limit_});
}

/// Second convolution of a block: g of the block's output -> g between the convolutions.
template <typename T>
void QuantizedTrainer<T>::backward_second(std::size_t number, int thread, const Tile& tile) {
  const Block& block = network_.blocks[number];
  TrainingWorker<T>& worker = workers_[index(thread)];
  TrainingLayer<T>& first = layer(block.conv1);
  TrainingLayer<T>& second = layer(block.conv2);
  const std::size_t offset = tile.first * first.output_image();
  const std::size_t rows = tile.valid * first.output_pixels();
  const Normalization& normalization = first.normalization;
  const T* y = first.y.data() + offset;
  T* z = worker.b.data();
  quantizers_.quantize(y, rows, normalization.channels, normalization.scale.data(),
                       normalization.shift.data(), 0, activation_limit_, z);
  clear_tail(tile, second.tile, first.output_image(), z);
  weight_gradient(second, thread, z, map_gradient_[current_gradient_].data(), 0, tile);
  T* g = inner_gradient_.data() + offset;
  second.data_gradient(thread, worker, worker.a.data(), g);
  clear_sums(tile);
  double* sum = sums(0, tile.index);
  quantizers_.quantize_gradient(g, 1, y, rows, normalization.channels, normalization.scale.data(),
                                normalization.shift.data(), normalization.mean.data(), 0, activation_limit_,
                                g, sum, sum + kChannels, sum + 2 * kChannels);
}

/// d loss / d (what the block adds), one tile; null where that is a projection's.
template <typename T>
const T* QuantizedTrainer<T>::shortcut_gradient(std::size_t block, int thread, const Tile& tile) {
  const Map<T>& before = maps_[block];
  const Map<T>& after = maps_[block + 1];
  const T* gradient = map_gradient_[current_gradient_].data();
  switch (network_.blocks[block].shortcut) {
    case Shortcut::identity:
      return gradient + tile.first * before.image();
    case Shortcut::projection:
      return nullptr;
    case Shortcut::pad_channels: {
      T* values = shortcuts_[index(thread)].data();
      std::memset(static_cast<void*>(values), 0, tile.valid * before.image() * sizeof(T));
      for_padded(before, after, tile, [&](std::size_t from, std::size_t to) {
        values[from - tile.first * before.image()] = gradient[to];
      });
      return values;
    }
  }
  return nullptr;
}

/// First convolution and shortcut of a block: g between the convolutions -> g of the block's input.
template <typename T>
void QuantizedTrainer<T>::backward_first(std::size_t number, int thread, const Tile& tile) {
  const Block& block = network_.blocks[number];
  TrainingWorker<T>& worker = workers_[index(thread)];
  TrainingLayer<T>& first = layer(block.conv1);
  const Map<T>& map = maps_[number];
  T* x = inputs_[index(thread)].data();
  make_input(number, tile, x);
  weight_gradient(first, thread, x, inner_gradient_.data(), 0, tile);
  T* dx = worker.b.data();
  first.data_gradient(thread, worker, worker.a.data(), dx);
  if (block.projection >= 0) {
    TrainingLayer<T>& projection = layer(block.projection);
    weight_gradient(projection, thread, x, projection_gradient_[current_gradient_].data(), 1, tile);
    T* other = worker.c.data();
    projection.data_gradient(thread, worker, worker.a.data(), other);
    for (std::size_t i = 0; i < tile.valid * map.image(); ++i) {
      store_value(to_float(dx[i]) + to_float(other[i]), dx + i);
    }
  }
  clear_sums(tile);
  quantizers_.derive_gradient(dx, map.x.data() + tile.first * map.image(), tile.valid * map.pixels(),
                              map.channels, input_ratio(number), input_limit(number),
                              shortcut_gradient(number, thread, tile), shortcut_ratio(number + 1), dx,
                              sums(0, tile.index) + 3 * kChannels);
  map_gradient(number, thread, tile, dx, 1 - current_gradient_);
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
void QuantizedTrainer<T>::backward(std::span<const float> logit_gradients) {
  parallel([&](int) {
    const std::size_t last = maps_.size() - 1;
    for_tiles(map_tile(last), [&](int thread, const Tile& tile) {
      T* d = workers_[index(thread)].b.data();
      for (std::size_t i = 0; i < tile.valid; ++i) {
        pool_gradient(tile.first + i, logit_gradients.data(), d + i * maps_[last].image());
      }
      clear_sums(tile);
      map_gradient(last, thread, tile, d, current_gradient_);
    });
#pragma omp single
    {
      finish_map_gradient(last);
      linear_gradient(logit_gradients.data());
      // Of scale * integer; by the scale it becomes that of the integer, as the convolutions' are.
      const std::size_t features = index(network_.feature_channels);
      for (std::size_t i = 0; i < linear_values_.size(); ++i) {
        gradients.data()[linear_weight_ + i] *= scale(linear_scales_ + i / features);
      }
      weight_gradients(linear_weight_, linear_scales_, index(network_.classes), features, 8, nullptr);
    }
    for (std::size_t number = network_.blocks.size(); number-- > 0;) {
      const Block& block = network_.blocks[number];
      TrainingLayer<T>& first = layer(block.conv1);
      TrainingLayer<T>& second = layer(block.conv2);
      for_tiles(second.tile, [&](int thread, const Tile& tile) { backward_second(number, thread, tile); });
#pragma omp single
      {
        finish_gradient(first, 0, 0, second.tile);
        finish_scale(blocks_[number].middle, 0, 2, second.tile, static_cast<double>(first.output_image()),
                     double{activation_limit_});
      }
      add_gradients(second, 0);
      for_tiles(first.tile, [&](int thread, const Tile& tile) { backward_first(number, thread, tile); });
#pragma omp single
      {
        finish_map_gradient(number);
        current_gradient_ = 1 - current_gradient_;
      }
      add_gradients(first, 0);
      if (block.projection >= 0) add_gradients(layer(block.projection), 1);
    }
    TrainingLayer<T>& stem = layers_[0];
    for_tiles(stem.tile, [&](int thread, const Tile& tile) {
      weight_gradient(stem, thread, input_.data() + tile.first * stem.input_image(),
                      map_gradient_[current_gradient_].data(), 0, tile);
    });
    add_gradients(stem, 0);
    const int layers = static_cast<int>(layers_.size());
#pragma omp for schedule(dynamic)
    for (int i = 0; i < layers; ++i) {
      guarded([&] {
        store_gradient(i);
        const std::size_t channels = index(layer(i).shape.output_channels);
        weight_gradients(layer(i).weight, weight_scales_[index(i)], channels,
                         static_cast<std::size_t>(layer(i).shape.weight_count()) / channels,
                         weight_bits(index(i)), i == 0 ? pixel_factor_.data() : nullptr);
      });
    }
  });
}

std::unique_ptr<TrainingImplementation> make_trainer(const NetworkDescription& network,
                                                     const LearnedScales& form, int batch_size,
                                                     Precision precision) {
  require_precision(precision);
  try {
    if (precision == Precision::bf16) {
      return std::make_unique<QuantizedTrainer<Bfloat16>>(network, form, batch_size);
    }
    return std::make_unique<QuantizedTrainer<float>>(network, form, batch_size);
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN cannot train this network on this CPU: ") + error.what());
  }
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
