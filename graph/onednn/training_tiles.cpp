#include "graph/onednn/training_tiles.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include "graph/network/error.h"
#include "graph/network/padded_shortcut.h"

namespace nibble {

template <typename T, typename Sum>
TiledTraining<T, Sum>::TiledTraining(const NetworkDescription& network, int batch_size, bool exact)
    : network_(network),
      loops_(elementwise_loops<T>()),
      sum_loops_(elementwise_loops<Sum>()),
      workers_(index(omp_get_max_threads())),
      threads_(omp_get_max_threads()) {
  for (const Convolution& convolution : network_.convolutions) layers_.emplace_back(convolution, exact);
  // Convolutions that read or write the same map in one stage use one tile.
  for (const Block& block : network_.blocks) {
    if (block.projection >= 0) layer(block.projection).tile = layer(block.conv1).tile;
  }
  lay_out_parameters();

  int largest_tile = 1;
  std::size_t largest_map = 0;
  std::size_t largest_tile_values = 0;
  for (const Layer& each : layers_) {
    largest_tile = std::max(largest_tile, each.tile);
    largest_map = std::max({largest_map, each.output_image()});
    largest_tile_values =
        std::max({largest_tile_values, index(each.tile) * std::max(each.output_image(), each.input_image())});
  }
  const std::size_t images = index((batch_size + largest_tile - 1) / largest_tile * largest_tile);

  SingleThreadedCreation single;
  std::size_t partials = 0;
  for (Layer& each : layers_) {
    each.make_primitives(workers_);
    each.y.reset(images * each.output_image());
    partials = std::max(partials, each.gradient_count * (images / index(each.tile)));
  }
  const Convolution& stem = network_.convolutions[0];
  input_.reset(images * layers_[0].input_image());
  maps_.push_back(
      {AlignedBuffer<T>(images * layers_[0].output_image()), stem.output_channels, stem.output_height()});
  for (const Block& block : network_.blocks) {
    const Layer& last = layer(block.conv2);
    maps_.push_back({AlignedBuffer<T>(images * last.output_image()), last.shape.output_channels,
                     last.shape.output_height()});
  }
  for (auto& gradient : map_gradient_) gradient.reset(images * largest_map);
  inner_gradient_.reset(images * largest_map);
  for (auto& values : sums_) values.resize(images * kSumStride);
  for (auto& values : weight_partials_) values.reset(partials);
  for (TrainingWorker<T>& worker : workers_) {
    worker.a.reset(largest_tile_values);
    worker.b.reset(largest_tile_values);
    worker.c.reset(largest_tile_values);
  }
  features_.reset(images * index(network_.feature_channels));
  logits_.resize(index(batch_size * network_.classes));
}

template <typename T, typename Sum>
void TiledTraining<T, Sum>::lay_out_parameters() {
  std::size_t offset = 0;
  const auto add = [&](const std::string& name, ParameterKind kind, std::size_t count) {
    groups.push_back({name, kind, offset, count});
    offset += count;
    return offset - count;
  };
  for (Layer& each : layers_) {
    const std::string& name = each.shape.name;
    const std::size_t channels = index(each.shape.output_channels);
    each.weight = add(name + ".weight", ParameterKind::convolution_weight,
                      static_cast<std::size_t>(each.shape.weight_count()));
    each.normalization.gamma = add(name + ".gamma", ParameterKind::batch_norm_scale, channels);
    each.normalization.beta = add(name + ".beta", ParameterKind::batch_norm_shift, channels);
  }
  linear_weight_ =
      add("linear.weight", ParameterKind::linear_weight, index(network_.classes * network_.feature_channels));
  linear_bias_ = add("linear.bias", ParameterKind::linear_bias, index(network_.classes));
  trainable.reset(offset);
  gradients.reset(offset);
}

template <typename T, typename Sum>
void TiledTraining<T, Sum>::set_parameters(const FloatParameters& parameters) {
  const auto copy = [&](const std::vector<float>& from, std::size_t to) {
    std::copy(from.begin(), from.end(), trainable.data() + to);
  };
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const FloatConvolution& source = parameters.convolutions[i];
    Layer& each = layers_[i];
    copy(source.weight, each.weight);
    copy(source.gamma, each.normalization.gamma);
    copy(source.beta, each.normalization.beta);
    each.normalization.running_mean = source.running_mean;
    each.normalization.running_variance = source.running_variance;
  }
  copy(parameters.linear_weight, linear_weight_);
  copy(parameters.linear_bias, linear_bias_);
}

template <typename T, typename Sum>
FloatParameters TiledTraining<T, Sum>::parameters() const {
  FloatParameters result = make_parameters(network_);
  const auto copy = [&](std::size_t from, std::vector<float>& to) {
    std::copy_n(trainable.data() + from, to.size(), to.begin());
  };
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Layer& each = layers_[i];
    FloatConvolution& target = result.convolutions[i];
    copy(each.weight, target.weight);
    copy(each.normalization.gamma, target.gamma);
    copy(each.normalization.beta, target.beta);
    target.running_mean = each.normalization.running_mean;
    target.running_variance = each.normalization.running_variance;
  }
  copy(linear_weight_, result.linear_weight);
  copy(linear_bias_, result.linear_bias);
  return result;
}

template <typename T, typename Sum>
template <typename Body>
void TiledTraining<T, Sum>::parallel(const Body& body) {
  failure_.reset();
  for (TrainingWorker<T>& worker : workers_) {
    worker.queue = 0;
    for (std::atomic<int>& taken : worker.taken) taken.store(0, std::memory_order_relaxed);
  }
#pragma omp parallel num_threads(threads_)
  body(omp_get_thread_num());
  try {
    failure_.rethrow();
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN failed in a training step: ") + error.what());
  }
}

template <typename T, typename Sum>
template <typename Task>
void TiledTraining<T, Sum>::for_tiles(int images, const Task& task) {
  const int tiles = tiles_of(images);
  const int team = omp_get_num_threads();
  const int thread = omp_get_thread_num();
  TrainingWorker<T>& worker = workers_[index(thread)];
  const std::size_t queue = worker.queue;
  for (int turn = 0; turn < team; ++turn) {
    const int owner = (thread + turn) % team;
    const int end = (owner + 1) * tiles / team;
    std::atomic<int>& taken = workers_[index(owner)].taken[queue];
    for (int tile; (tile = owner * tiles / team + taken.fetch_add(1, std::memory_order_relaxed)) < end;) {
      const int first = tile * images;
      failure_.guard([&] {
        task(Tile{thread, tile, index(first), index(std::min(images, count_ - first))});
      });
    }
  }
  // The other queue is that of the stage before, which all have left, and of the next one.
  worker.queue = 1 - queue;
  worker.taken[worker.queue].store(0, std::memory_order_relaxed);
#pragma omp barrier
}

template <typename T, typename Sum>
template <typename Task>
void TiledTraining<T, Sum>::for_layers(const Task& task) {
  const int count = static_cast<int>(layers_.size());
#pragma omp for schedule(dynamic)
  for (int number = 0; number < count; ++number) failure_.guard([&] { task(number); });
}

/// Images of the tile behind the batch's last one must be zero where convolutions read them.
template <typename T, typename Sum>
void TiledTraining<T, Sum>::clear_tail(const Tile& tile, int images, std::size_t image_values,
                                       T* values) const {
  const std::size_t empty = index(images) - tile.valid;
  if (empty == 0) return;
  std::memset(static_cast<void*>(values + tile.valid * image_values), 0, empty * image_values * sizeof(T));
}

/// y of the layer, and its sums into the tile's place in `slot`.
template <typename T, typename Sum>
void TiledTraining<T, Sum>::convolve(Layer& layer, const T* x, const Tile& tile, int slot) {
  Sum* y = layer.y.data() + tile.first * layer.output_image();
  layer.forward(tile.thread, worker(tile), x, y);
  double* sum = sums(slot, tile);
  std::fill_n(sum, kSumStride, 0.0);
  sum_loops_.statistics(y, tile.valid * layer.output_pixels(), layer.shape.output_channels,
                        layer.normalization.center.data(), sum, sum + kChannels);
}

template <typename T, typename Sum>
void TiledTraining<T, Sum>::finish_statistics(Layer& layer, int slot) {
  Normalization& normalization = layer.normalization;
  const int tiles = tiles_of(layer.tile);
  const double pixels = static_cast<double>(index(count_) * layer.output_pixels());
  for (std::size_t i = 0; i < index(normalization.channels); ++i) {
    double sum = 0;
    double square = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      sum += sums_of(slot, tile)[i];
      square += sums_of(slot, tile)[kChannels + i];
    }
    normalization.take_statistics(i, sum, square, pixels, trainable.data()[normalization.gamma + i],
                                  trainable.data()[normalization.beta + i]);
  }
}

template <typename T, typename Sum>
void TiledTraining<T, Sum>::pool_and_linear(std::size_t image) {
  const Map<T>& map = maps_.back();
  const std::size_t channels = index(map.channels);
  const T* x = map.x.data() + image * map.image();
  float* feature = features_.data() + image * channels;
  std::fill_n(feature, channels, 0.0F);
  for (std::size_t pixel = 0; pixel < map.pixels(); ++pixel) {
    for (std::size_t i = 0; i < channels; ++i) feature[i] += to_float(x[pixel * channels + i]);
  }
  for (std::size_t i = 0; i < channels; ++i) feature[i] /= static_cast<float>(map.pixels()) / feature_unit_;
  const float* weight = linear_;
  const float* bias = trainable.data() + linear_bias_;
  const std::size_t classes = index(network_.classes);
  for (std::size_t k = 0; k < classes; ++k) {
    float sum = bias[k];
    for (std::size_t i = 0; i < channels; ++i) sum += weight[k * channels + i] * feature[i];
    logits_[image * classes + k] = sum;
  }
}

/// d loss / d x of the last map, for one image.
template <typename T, typename Sum>
void TiledTraining<T, Sum>::pool_gradient(std::size_t image, const float* logit_gradients, T* d) const {
  const Map<T>& map = maps_.back();
  const std::size_t channels = index(map.channels);
  const std::size_t classes = index(network_.classes);
  const float* weight = linear_;
  std::array<float, kChannels> feature{};
  for (std::size_t k = 0; k < classes; ++k) {
    const float gradient =
        logit_gradients[image * classes + k] / (static_cast<float>(map.pixels()) / feature_unit_);
    for (std::size_t i = 0; i < channels; ++i) feature[i] += gradient * weight[k * channels + i];
  }
  for (std::size_t pixel = 0; pixel < map.pixels(); ++pixel) {
    for (std::size_t i = 0; i < channels; ++i) store_value(feature[i], d + pixel * channels + i);
  }
}

template <typename T, typename Sum>
void TiledTraining<T, Sum>::linear_gradient(const float* logit_gradients) {
  const std::size_t channels = index(network_.feature_channels);
  const std::size_t classes = index(network_.classes);
  float* weight = gradients.data() + linear_weight_;
  float* bias = gradients.data() + linear_bias_;
  std::fill_n(weight, classes * channels, 0.0F);
  std::fill_n(bias, classes, 0.0F);
  for (std::size_t image = 0; image < index(count_); ++image) {
    const float* feature = features_.data() + image * channels;
    for (std::size_t k = 0; k < classes; ++k) {
      const float gradient = logit_gradients[image * classes + k];
      bias[k] += gradient;
      for (std::size_t i = 0; i < channels; ++i) weight[k * channels + i] += gradient * feature[i];
    }
  }
}

template <typename T, typename Sum>
void TiledTraining<T, Sum>::finish_gradient(Layer& layer, int sum_slot, int slot, int stage_tile) {
  Normalization& normalization = layer.normalization;
  const int tiles = tiles_of(stage_tile);
  const double pixels = static_cast<double>(index(count_) * layer.output_pixels());
  for (std::size_t i = 0; i < index(normalization.channels); ++i) {
    double sum = 0;
    double product = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      sum += sums_of(sum_slot, tile)[i];
      product += sums_of(slot, tile)[kChannels + i];
    }
    gradients.data()[normalization.gamma + i] = static_cast<float>(
        normalization.take_gradient(i, sum, product, pixels, trainable.data()[normalization.gamma + i]));
    gradients.data()[normalization.beta + i] = static_cast<float>(sum / double{normalization.output_unit});
  }
}

/// dy of the layer from g, in worker.a, and the tile's weight gradient.
template <typename T, typename Sum>
void TiledTraining<T, Sum>::weight_gradient(Layer& layer, const T* x, const T* g, int slot,
                                            const Tile& tile) {
  T* dy = worker(tile).a.data();
  const std::size_t offset = tile.first * layer.output_image();
  const Normalization& normalization = layer.normalization;
  const auto input_gradient = [&] {
    if constexpr (std::is_same_v<T, Sum>) {
      return loops_.input_gradient;
    } else {
      return loops_.input_gradient_of_sums;
    }
  }();
  input_gradient(g + offset, layer.y.data() + offset, tile.valid * layer.output_pixels(),
                 layer.shape.output_channels, normalization.a.data(), normalization.b.data(),
                 normalization.c.data(), dy);
  clear_tail(tile, layer.tile, layer.output_image(), dy);
  float* partial = weight_partials_[index(slot)].data() + index(tile.index) * layer.gradient_count;
  layer.weight_gradient(tile.thread, worker(tile), x, dy, partial);
}

/// The weight gradient of the layer: its tiles' gradients added in order. Shared by all threads.
template <typename T, typename Sum>
void TiledTraining<T, Sum>::add_gradients(Layer& layer, int slot) {
  constexpr std::size_t piece = 1024;
  const int tiles = tiles_of(layer.tile);
  const std::size_t count = layer.gradient_count;
  const int pieces = static_cast<int>((count + piece - 1) / piece);
#pragma omp for schedule(static)
  for (int number = 0; number < pieces; ++number) {
    const std::size_t first = index(number) * piece;
    const std::size_t values = std::min(piece, count - first);
    float* total = layer.gradient.data() + first;
    std::fill_n(total, values, 0.0F);
    for (int tile = 0; tile < tiles; ++tile) {
      const float* partial = weight_partials_[index(slot)].data() + index(tile) * count + first;
      for (std::size_t i = 0; i < values; ++i) total[i] += partial[i];
    }
  }
}

template <typename T, typename Sum>
const T* TiledTraining<T, Sum>::padded_shortcut(std::size_t map, const Tile& tile) {
  const Map<T>& before = maps_[map - 1];
  const Map<T>& after = maps_[map];
  const T* from = before.x.data() + tile.first * before.image();
  T* values = worker(tile).c.data();
  std::memset(static_cast<void*>(values), 0, tile.valid * after.image() * sizeof(T));
  for_padded(layer(network_.blocks[map - 1].conv1).shape, tile.valid,
             [&](std::size_t source, std::size_t target) { values[target] = from[source]; });
  return values;
}

template <typename T, typename Sum>
const T* TiledTraining<T, Sum>::padded_gradient(std::size_t block, const Tile& tile) {
  const Map<T>& before = maps_[block];
  const Map<T>& after = maps_[block + 1];
  const T* from = map_gradient_[current_gradient_].data() + tile.first * after.image();
  T* values = worker(tile).c.data();
  std::memset(static_cast<void*>(values), 0, tile.valid * before.image() * sizeof(T));
  for_padded(layer(network_.blocks[block].conv1).shape, tile.valid,
             [&](std::size_t source, std::size_t target) { values[source] = from[target]; });
  return values;
}

/// x of a block's convolutions.
template <typename T, typename Sum>
const T* TiledTraining<T, Sum>::input_of(std::size_t block, const Tile& tile) {
  T* x = block_input(block, tile);
  clear_tail(tile, map_tile(block), maps_[block].image(), x);
  return x;
}

/// x of a block's second convolution, in `z`.
template <typename T, typename Sum>
void TiledTraining<T, Sum>::middle_of(const Block& block, const Tile& tile, T* z) {
  const Layer& first = layer(block.conv1);
  make_middle(first, tile, z);
  clear_tail(tile, layer(block.conv2).tile, first.output_image(), z);
}

template <typename T, typename Sum>
std::span<const float> TiledTraining<T, Sum>::forward(const std::uint8_t* pixels, int count) {
  count_ = count;
  begin();
  parallel([&](int) {
    for_layers([&](int number) { set_weight(number); });
    Layer& stem = layers_[0];
    for_tiles(stem.tile, [&](const Tile& tile) {
      T* x = input_.data() + tile.first * stem.input_image();
      take_pixels(pixels + tile.first * stem.input_image(), tile.valid * stem.input_image() / 3, x);
      clear_tail(tile, stem.tile, stem.input_image(), x);
      convolve(stem, x, tile, 0);
    });
#pragma omp single
    finish_statistics(stem, 0);
    for (std::size_t number = 0; number < network_.blocks.size(); ++number) {
      const Block& block = network_.blocks[number];
      Layer& first = layer(block.conv1);
      Layer& second = layer(block.conv2);
      Layer* projection = projected_source(number + 1);
      for_tiles(first.tile, [&](const Tile& tile) {
        make_map(number, tile);
        const T* x = input_of(number, tile);
        convolve(first, x, tile, 0);
        if (projection != nullptr) convolve(*projection, x, tile, 1);
      });
#pragma omp single
      {
        finish_statistics(first, 0);
        if (projection != nullptr) finish_statistics(*projection, 1);
      }
      for_tiles(second.tile, [&](const Tile& tile) {
        T* z = worker(tile).a.data();
        middle_of(block, tile, z);
        convolve(second, z, tile, 0);
      });
#pragma omp single
      finish_statistics(second, 0);
    }
    const std::size_t last = maps_.size() - 1;
    for_tiles(map_tile(last), [&](const Tile& tile) {
      make_map(last, tile);
      for (std::size_t image = tile.first; image < tile.first + tile.valid; ++image) pool_and_linear(image);
    });
  });
  return {logits_.data(), index(count * network_.classes)};
}

/// Second convolution of a block: g of the block's output -> g between the convolutions.
template <typename T, typename Sum>
void TiledTraining<T, Sum>::backward_second(const Block& block, const Tile& tile) {
  Layer& first = layer(block.conv1);
  Layer& second = layer(block.conv2);
  T* z = worker(tile).b.data();
  middle_of(block, tile, z);
  weight_gradient(second, z, map_gradient_[current_gradient_].data(), 0, tile);
  T* g = inner_gradient_.data() + tile.first * first.output_image();
  second.data_gradient(tile.thread, worker(tile), worker(tile).a.data(), g);
  middle_gradient(first, tile, g);
}

/// First convolution and shortcut of a block: g between the convolutions -> g of the block's input.
template <typename T, typename Sum>
void TiledTraining<T, Sum>::backward_first(std::size_t number, const Tile& tile) {
  TrainingWorker<T>& own = worker(tile);
  Layer& first = layer(network_.blocks[number].conv1);
  const T* x = input_of(number, tile);
  weight_gradient(first, x, inner_gradient_.data(), 0, tile);
  first.data_gradient(tile.thread, own, own.a.data(), own.b.data());
  Layer* projection = projected_source(number + 1);
  if (projection != nullptr) {
    weight_gradient(*projection, x, projection_gradient(), 1, tile);
    projection->data_gradient(tile.thread, own, own.a.data(), own.c.data());
  }
  block_gradient(number, tile, own.b.data(), projection == nullptr ? nullptr : own.c.data());
}

template <typename T, typename Sum>
void TiledTraining<T, Sum>::backward(std::span<const float> logit_gradients) {
  parallel([&](int) {
    const std::size_t last = maps_.size() - 1;
    for_tiles(map_tile(last), [&](const Tile& tile) {
      T* d = worker(tile).b.data();
      for (std::size_t i = 0; i < tile.valid; ++i) {
        pool_gradient(tile.first + i, logit_gradients.data(), d + i * maps_[last].image());
      }
      last_gradient(tile, d);
    });
#pragma omp single
    {
      finish_map(last);
      linear_gradient(logit_gradients.data());
      finish_linear();
    }
    for (std::size_t number = network_.blocks.size(); number-- > 0;) {
      const Block& block = network_.blocks[number];
      Layer& first = layer(block.conv1);
      Layer& second = layer(block.conv2);
      for_tiles(second.tile, [&](const Tile& tile) { backward_second(block, tile); });
#pragma omp single
      {
        finish_gradient(first, 0, 0, second.tile);
        finish_middle(number);
      }
      add_gradients(second, 0);
      for_tiles(first.tile, [&](const Tile& tile) { backward_first(number, tile); });
#pragma omp single
      {
        finish_map(number);
        current_gradient_ = 1 - current_gradient_;
      }
      add_gradients(first, 0);
      if (block.projection >= 0) add_gradients(layer(block.projection), 1);
    }
    Layer& stem = layers_[0];
    for_tiles(stem.tile, [&](const Tile& tile) {
      weight_gradient(stem, input_.data() + tile.first * stem.input_image(),
                      map_gradient_[current_gradient_].data(), 0, tile);
    });
    add_gradients(stem, 0);
    for_layers([&](int number) {
      const int thread = omp_get_thread_num();
      layer(number).store_gradient(thread, workers_[index(thread)], gradients.data() + layer(number).weight);
      finish_weight(number);
    });
  });
}

template class TiledTraining<float>;
template class TiledTraining<Bfloat16>;
template class TiledTraining<Bfloat16, float>;

}  // namespace nibble
