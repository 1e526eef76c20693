#include "graph/onednn/float_training.h"

#include <algorithm>
#include <array>
#include <string>

#include "graph/network/error.h"
#include "graph/onednn/elementwise.h"
#include "graph/onednn/pixels.h"
#include "graph/onednn/training_tiles.h"

namespace nibble {
namespace {

template <typename T>
class Trainer final : public TiledTraining<T> {
 public:
  using TiledTraining<T>::TiledTraining;

  std::span<const float> forward(const std::uint8_t* pixels, int count) override;
  void backward(std::span<const float> logit_gradients) override;

 private:
  using Base = TiledTraining<T>;
  using Base::add_gradients;
  using Base::clear_tail;
  using Base::convolve;
  using Base::count_;
  using Base::current_gradient_;
  using Base::finish_gradient;
  using Base::finish_statistics;
  using Base::for_tiles;
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
  using Base::trainable;
  using Base::weight_gradient;
  using Base::workers_;
  using typename Base::Tile;

  void reorder_weights();
  void make_block_input(std::size_t block, const Tile& tile);
  void finish_map_gradient(std::size_t map);
  void mask_map(std::size_t block, const T* d, const T* shortcut, const Tile& tile, T* g);
  void backward_second(std::size_t block, int thread, const Tile& tile);
  void backward_first(std::size_t block, int thread, const Tile& tile);

  PixelNormalization pixel_normalization_;
};

template <typename T>
void Trainer<T>::reorder_weights() {
  const int count = static_cast<int>(layers_.size());
#pragma omp for schedule(dynamic)
  for (int i = 0; i < count; ++i) {
    guarded([&] {
      const int thread = omp_get_thread_num();
      layer(i).set_weight(thread, workers_[index(thread)], trainable.data() + layer(i).weight);
    });
  }
}

/// x of maps_[map], from the convolutions before it.
template <typename T>
void Trainer<T>::make_block_input(std::size_t map, const Tile& tile) {
  Map<T>& target = maps_[map];
  const TrainingLayer<T>& source = main_source(map);
  const Normalization& normalization = source.normalization;
  const std::size_t offset = tile.first * target.image();
  const std::size_t rows = tile.valid * target.pixels();
  T* x = target.x.data() + offset;
  const T* y = source.y.data() + offset;
  const float* scale = normalization.scale.data();
  const float* shift = normalization.shift.data();
  if (map == 0) {
    loops_.normalize_relu(y, rows, target.channels, scale, shift, x);
    return;
  }
  const Map<T>& before = maps_[map - 1];
  switch (network_.blocks[map - 1].shortcut) {
    case Shortcut::identity:
      loops_.normalize_add_relu(y, rows, target.channels, scale, shift, before.x.data() + offset, x);
      break;
    case Shortcut::projection: {
      const TrainingLayer<T>& projection = *projected_source(map);
      std::array<float, kChannels> both;
      for (std::size_t i = 0; i < index(target.channels); ++i) {
        both[i] = shift[i] + projection.normalization.shift[i];
      }
      loops_.normalize_project_relu(y, rows, target.channels, scale, both.data(),
                                    projection.y.data() + offset, projection.normalization.scale.data(), x);
      break;
    }
    case Shortcut::pad_channels: {
      const std::size_t channels = index(target.channels);
      const std::size_t added = (channels - index(before.channels)) / 2;
      const std::size_t size = index(target.size);
      const std::size_t stride = index(before.size / target.size);
      for (std::size_t row = 0; row < tile.valid * size; ++row) {
        const std::size_t image = tile.first + row / size;
        const T* from = before.x.data() + image * before.image() +
                        row % size * stride * index(before.size * before.channels);
        for (std::size_t column = 0; column < size; ++column) {
          T* to = x + (row * size + column) * channels;
          const T* output = y + (row * size + column) * channels;
          for (std::size_t i = 0; i < channels; ++i) {
            const bool real = i >= added && i < added + index(before.channels);
            const float shortcut =
                real ? to_float(from[column * stride * index(before.channels) + i - added]) : 0.0F;
            store_value(std::max(to_float(output[i]) * scale[i] + shift[i] + shortcut, 0.0F), to + i);
          }
        }
      }
      break;
    }
  }
}

template <typename T>
std::span<const float> Trainer<T>::forward(const std::uint8_t* pixels, int count) {
  count_ = count;
  linear_ = trainable.data() + linear_weight_;
  for (TrainingLayer<T>& each : layers_) each.normalization.center = each.normalization.running_mean;
  parallel([&](int) {
    reorder_weights();
    TrainingLayer<T>& stem = layers_[0];
    for_tiles(stem.tile, [&](int thread, const Tile& tile) {
      T* x = input_.data() + tile.first * stem.input_image();
      const std::uint8_t* from = pixels + tile.first * stem.input_image();
      pixel_normalization_.apply(from, tile.valid * stem.input_image() / 3, x);
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
        make_block_input(number, tile);
        T* x = maps_[number].x.data() + tile.first * maps_[number].image();
        clear_tail(tile, first.tile, maps_[number].image(), x);
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
        loops_.normalize_relu(first.y.data() + tile.first * first.output_image(),
                              tile.valid * first.output_pixels(), first.shape.output_channels,
                              first.normalization.scale.data(), first.normalization.shift.data(), z);
        clear_tail(tile, second.tile, first.output_image(), z);
        convolve(second, thread, z, tile, 0);
      });
#pragma omp single
      finish_statistics(second, 0);
    }
    const std::size_t last = maps_.size() - 1;
    for_tiles(map_tile(last), [&](int, const Tile& tile) {
      make_block_input(last, tile);
      for (std::size_t image = tile.first; image < tile.first + tile.valid; ++image) pool_and_linear(image);
    });
  });
  return {logits_.data(), index(count * network_.classes)};
}

template <typename T>
void Trainer<T>::finish_map_gradient(std::size_t map) {
  const int tile = map_tile(map);
  finish_gradient(main_source(map), 0, 0, tile);
  if (TrainingLayer<T>* projection = projected_source(map)) finish_gradient(*projection, 0, 1, tile);
}

/// g of maps_[map] from d and the shortcut's gradient, with the sums that the normalizations before it need.
template <typename T>
void Trainer<T>::mask_map(std::size_t map, const T* d, const T* shortcut, const Tile& tile, T* g) {
  const Map<T>& target = maps_[map];
  const std::size_t offset = tile.first * target.image();
  const std::size_t rows = tile.valid * target.pixels();
  const TrainingLayer<T>& source = main_source(map);
  double* sum = sums(0, tile.index);
  std::fill_n(sum, kSumStride, 0.0);
  loops_.mask_by_sign(d, shortcut, target.x.data() + offset, source.y.data() + offset, rows, target.channels,
                      source.normalization.mean.data(), g + offset, sum, sum + kChannels);
  if (const TrainingLayer<T>* projection = projected_source(map)) {
    double* product = sums(1, tile.index) + kChannels;
    std::fill_n(product, kChannels, 0.0);
    loops_.gradient_product(g + offset, projection->y.data() + offset, rows, target.channels,
                            projection->normalization.mean.data(), product);
  }
}

/// Second convolution of a block: g of the block's output -> g between the convolutions.
template <typename T>
void Trainer<T>::backward_second(std::size_t number, int thread, const Tile& tile) {
  const Block& block = network_.blocks[number];
  TrainingWorker<T>& worker = workers_[index(thread)];
  TrainingLayer<T>& first = layer(block.conv1);
  TrainingLayer<T>& second = layer(block.conv2);
  const std::size_t offset = tile.first * first.output_image();
  const std::size_t rows = tile.valid * first.output_pixels();
  const Normalization& normalization = first.normalization;
  const T* y = first.y.data() + offset;
  T* z = worker.b.data();
  loops_.normalize_relu(y, rows, normalization.channels, normalization.scale.data(),
                        normalization.shift.data(), z);
  clear_tail(tile, second.tile, first.output_image(), z);
  weight_gradient(second, thread, z, map_gradient_[current_gradient_].data(), 0, tile);
  T* g = inner_gradient_.data() + offset;
  second.data_gradient(thread, worker, worker.a.data(), g);
  double* sum = sums(0, tile.index);
  std::fill_n(sum, kSumStride, 0.0);
  loops_.mask_by_output(g, y, rows, normalization.channels, normalization.scale.data(),
                        normalization.shift.data(), normalization.mean.data(), g, sum, sum + kChannels);
}

/// First convolution and shortcut of a block: g between the convolutions -> g of the block's input.
template <typename T>
void Trainer<T>::backward_first(std::size_t number, int thread, const Tile& tile) {
  const Block& block = network_.blocks[number];
  TrainingWorker<T>& worker = workers_[index(thread)];
  TrainingLayer<T>& first = layer(block.conv1);
  const Map<T>& map = maps_[number];
  const T* x = map.x.data() + tile.first * map.image();
  weight_gradient(first, thread, x, inner_gradient_.data(), 0, tile);
  T* d = worker.b.data();
  first.data_gradient(thread, worker, worker.a.data(), d);

  const T* output_gradient = map_gradient_[current_gradient_].data();
  T* g = map_gradient_[1 - current_gradient_].data();
  switch (block.shortcut) {
    case Shortcut::identity:
      mask_map(number, d, output_gradient + tile.first * map.image(), tile, g);
      break;
    case Shortcut::projection: {
      TrainingLayer<T>& projection = layer(block.projection);
      weight_gradient(projection, thread, x, output_gradient, 1, tile);
      projection.data_gradient(thread, worker, worker.a.data(), worker.c.data());
      mask_map(number, d, worker.c.data(), tile, g);
      break;
    }
    case Shortcut::pad_channels: {
      const Map<T>& after = maps_[number + 1];
      const std::size_t size = index(after.size);
      const std::size_t stride = index(map.size / after.size);
      const std::size_t channels = index(map.channels);
      const std::size_t added = (index(after.channels) - channels) / 2;
      for (std::size_t row = 0; row < tile.valid * size; ++row) {
        T* to = d + row / size * map.image() + row % size * stride * index(map.size) * channels;
        const T* from =
            output_gradient + tile.first * after.image() + row * size * index(after.channels) + added;
        for (std::size_t column = 0; column < size; ++column) {
          for (std::size_t i = 0; i < channels; ++i) {
            T* value = to + column * stride * channels + i;
            store_value(to_float(*value) + to_float(from[column * index(after.channels) + i]), value);
          }
        }
      }
      mask_map(number, d, nullptr, tile, g);
      break;
    }
  }
}

template <typename T>
void Trainer<T>::backward(std::span<const float> logit_gradients) {
  parallel([&](int) {
    const std::size_t last = maps_.size() - 1;
    for_tiles(map_tile(last), [&](int thread, const Tile& tile) {
      T* d = workers_[index(thread)].b.data();
      for (std::size_t i = 0; i < tile.valid; ++i) {
        pool_gradient(tile.first + i, logit_gradients.data(), d + i * maps_[last].image());
      }
      mask_map(last, d, nullptr, tile, map_gradient_[current_gradient_].data());
    });
#pragma omp single
    {
      finish_map_gradient(last);
      linear_gradient(logit_gradients.data());
    }
    for (std::size_t number = network_.blocks.size(); number-- > 0;) {
      const Block& block = network_.blocks[number];
      for_tiles(layer(block.conv2).tile,
                [&](int thread, const Tile& tile) { backward_second(number, thread, tile); });
#pragma omp single
      finish_gradient(layer(block.conv1), 0, 0, layer(block.conv2).tile);
      add_gradients(layer(block.conv2), 0);
      for_tiles(layer(block.conv1).tile,
                [&](int thread, const Tile& tile) { backward_first(number, thread, tile); });
#pragma omp single
      {
        finish_map_gradient(number);
        current_gradient_ = 1 - current_gradient_;
      }
      add_gradients(layer(block.conv1), 0);
      if (block.projection >= 0) add_gradients(layer(block.projection), 1);
    }
    TrainingLayer<T>& stem = layers_[0];
    for_tiles(stem.tile, [&](int thread, const Tile& tile) {
      weight_gradient(stem, thread, input_.data() + tile.first * stem.input_image(),
                      map_gradient_[current_gradient_].data(), 0, tile);
    });
    add_gradients(stem, 0);
    const int count = static_cast<int>(layers_.size());
#pragma omp for schedule(dynamic)
    for (int i = 0; i < count; ++i) {
      guarded([&] { store_gradient(i); });
    }
  });
}

std::unique_ptr<TrainingImplementation> make_trainer(const NetworkDescription& network, int batch_size,
                                                     Precision precision) {
  require_precision(precision);
  try {
    if (precision == Precision::bf16) return std::make_unique<Trainer<Bfloat16>>(network, batch_size);
    return std::make_unique<Trainer<float>>(network, batch_size);
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN cannot train this network on this CPU: ") + error.what());
  }
}

}  // namespace

FloatTraining::FloatTraining(const NetworkDescription& network, int batch_size, Precision precision)
    : implementation_(make_trainer(network, batch_size, precision)) {}
FloatTraining::FloatTraining(std::unique_ptr<TrainingImplementation> implementation)
    : implementation_(std::move(implementation)) {}
FloatTraining::FloatTraining(FloatTraining&&) noexcept = default;
FloatTraining& FloatTraining::operator=(FloatTraining&&) noexcept = default;
FloatTraining::~FloatTraining() = default;

void FloatTraining::set_parameters(const FloatParameters& parameters) {
  implementation_->set_parameters(parameters);
}

FloatParameters FloatTraining::parameters() const {
  return implementation_->parameters();
}

std::span<float> FloatTraining::trainable() {
  return {implementation_->trainable.data(), implementation_->trainable.size()};
}

std::span<const float> FloatTraining::trainable() const {
  return {implementation_->trainable.data(), implementation_->trainable.size()};
}

std::span<const float> FloatTraining::gradients() const {
  return {implementation_->gradients.data(), implementation_->gradients.size()};
}

const std::vector<ParameterGroup>& FloatTraining::groups() const {
  return implementation_->groups;
}

std::span<const float> FloatTraining::forward(std::span<const std::uint8_t> pixels_nhwc, int count) {
  return implementation_->forward(pixels_nhwc.data(), count);
}

void FloatTraining::backward(std::span<const float> logit_gradients) {
  implementation_->backward(logit_gradients);
}

}  // namespace nibble
