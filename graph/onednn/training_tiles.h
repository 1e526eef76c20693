#pragma once

#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "graph/network/error.h"
#include "graph/onednn/elementwise.h"
#include "graph/onednn/float_training.h"
#include "graph/onednn/primitives.h"
#include "graph/onednn/training_layer.h"

//
// The batch is cut into tiles of a few images. On a tile a thread does all the work that lies between two
// batch statistics (one "stage") while the tile is in the core's own cache. Each thread begins with its own
// share of the images, the same in every stage, for what it wrote may still be near (up to 6 % of a step of
// 64 images on two cores); then it takes what others have left over:
//
//   forward    y[k-1] -> batch norm, shortcut, ReLU -> x -> convolution k -> y[k], sums of y[k]
//   backward   g[k] -> batch norm's gradient -> dy[k] -> weight gradient of the tile
//                                                     -> data gradient -> masked by ReLU g[k-1], its sums
//
// Between stages one thread turns the sums into the batch's mean and variance. Only convolution outputs y and
// the inputs of blocks x are kept from forward to backward; the map between a block's two convolutions is
// computed again from y, which is cheaper than storing and loading it. Each tile has sums and weight
// gradients of its own, added in the order of the tiles, so which thread took a tile changes no bit. A last
// tile that is not full computes on zeros, which add nothing to gradients.
//
// Layout: nhwc for activations in all three passes (measured on Zen 3, two threads: forward 80..105 GMAC/s
// against 70..83 in nChw8c, data gradient and weight gradient equal within noise except stride 2, 0.4 ms of a
// step better in nChw8c, less than the reorders that it would need). No activation is ever reordered. Weights
// are, from the master copy once a step into what oneDNN's forward and its data gradient want; so are
// gradients back, where oneDNN computes them. For `resnet_344` these are 50 reorders a step (25 + 24, and the
// first convolution's gradient), 0.3 % of a step of 64 images.

namespace nibble {

inline std::size_t index(int value) {
  return static_cast<std::size_t>(value);
}

/// The map that enters a block, or the last one.
template <typename T>
struct Map {
  AlignedBuffer<T> x;
  int channels;
  int size;
  std::size_t pixels() const { return index(size * size); }
  std::size_t image() const { return pixels() * index(channels); }
};

struct TrainingImplementation {
  virtual ~TrainingImplementation() = default;
  virtual std::span<const float> forward(const std::uint8_t* pixels, int count) = 0;
  virtual void backward(std::span<const float> logit_gradients) = 0;
  virtual void set_parameters(const FloatParameters& parameters) = 0;
  virtual FloatParameters parameters() const = 0;

  AlignedBuffer<float> trainable;
  AlignedBuffer<float> gradients;
  std::vector<ParameterGroup> groups;
};

/// What every training has: the layers, their maps and gradients, and the tiles that the threads work on.
/// What lies between the convolutions is the derived class's.
template <typename T>
class TiledTraining : public TrainingImplementation {
 public:
  TiledTraining(const NetworkDescription& network, int batch_size);

  void set_parameters(const FloatParameters& parameters) override;
  FloatParameters parameters() const override;

 protected:
  struct Tile {
    int index;
    std::size_t first;  // image
    std::size_t valid;  // images of the batch in it
  };

  void lay_out_parameters();

  /// Calls task(thread, tile) for every tile of `images` images, from within a parallel region; a barrier.
  template <typename Task>
  void for_tiles(int images, const Task& task);
  /// Runs `body` on all threads, each once; passes on the first exception.
  template <typename Body>
  void parallel(const Body& body);
  template <typename Body>
  void guarded(const Body& body);

  void convolve(TrainingLayer<T>& layer, int thread, const T* x, const Tile& tile, int slot);
  void clear_tail(const Tile& tile, int images, std::size_t image_values, T* values) const;
  void finish_statistics(TrainingLayer<T>& layer, int slot);
  /// Layer i's gradients in the checkpoint's layout, into gradients.
  void store_gradient(int i);
  /// The sum of g lies in `sum_slot`, the sum of g * (y - mean) in `slot`.
  void finish_gradient(TrainingLayer<T>& layer, int sum_slot, int slot, int stage_tile);
  void pool_and_linear(std::size_t image);
  void pool_gradient(std::size_t image, const float* logit_gradients, T* d) const;
  void linear_gradient(const float* logit_gradients);
  void weight_gradient(TrainingLayer<T>& layer, int thread, const T* x, const T* dy, int slot,
                       const Tile& tile);
  void add_gradients(TrainingLayer<T>& layer, int slot);

  int tiles_of(int images) const { return (count_ + images - 1) / images; }
  double* sums(int slot, int tile) { return sums_[index(slot)].data() + index(tile) * kSumStride; }
  TrainingLayer<T>& layer(int number) { return layers_[index(number)]; }
  /// The convolutions that read map `block`, which is made from block - 1's outputs or the first
  /// convolution's.
  TrainingLayer<T>& main_source(std::size_t map) {
    return map == 0 ? layers_[0] : layer(network_.blocks[map - 1].conv2);
  }
  TrainingLayer<T>* projected_source(std::size_t map) {
    const int projection = map == 0 ? -1 : network_.blocks[map - 1].projection;
    return projection < 0 ? nullptr : &layer(projection);
  }
  int map_tile(std::size_t map) const {
    return map == network_.blocks.size() ? layers_[index(network_.blocks[map - 1].conv2)].tile
                                         : layers_[index(network_.blocks[map].conv1)].tile;
  }

  static constexpr std::size_t kChannels = 64;  // the most that a layer has
  static constexpr std::size_t kSumStride = 4 * kChannels;

  NetworkDescription network_;
  int threads_;
  const ElementwiseLoops<T>& loops_;
  std::vector<TrainingLayer<T>> layers_;
  std::vector<Map<T>> maps_;  // maps_[k] enters block k; the last one is pooled
  AlignedBuffer<T> input_;    // what the first convolution reads
  std::vector<TrainingWorker<T>> workers_;

  std::array<AlignedBuffer<T>, 2> map_gradient_;  // g of a block's output, of its input
  AlignedBuffer<T> inner_gradient_;               // g between a block's convolutions
  std::size_t current_gradient_ = 0;
  std::array<std::vector<double>, 2> sums_;  // [tile][kSumStride]: the main path's and the projection's
  std::array<AlignedBuffer<float>, 2> weight_partials_;
  int count_ = 0;

  AlignedBuffer<float> features_;  // [image][feature channel], averaged
  std::vector<float> logits_;
  const float* linear_ = nullptr;  // the linear layer's weights in forward and backward
  float feature_unit_ = 1;         // what 1 in the last map stands for
  std::size_t linear_weight_ = 0;
  std::size_t linear_bias_ = 0;

  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
};

template <typename T>
TiledTraining<T>::TiledTraining(const NetworkDescription& network, int batch_size)
    : network_(network),
      threads_(omp_get_max_threads()),
      loops_(elementwise_loops<T>()),
      workers_(index(threads_)) {
  for (const Convolution& convolution : network_.convolutions) layers_.emplace_back(convolution);
  // Convolutions that read or write the same map in one stage use one tile.
  for (const Block& block : network_.blocks) {
    if (block.projection >= 0) layer(block.projection).tile = layer(block.conv1).tile;
  }
  lay_out_parameters();

  int largest_tile = 1;
  std::size_t largest_map = 0;
  std::size_t largest_tile_values = 0;
  for (const TrainingLayer<T>& each : layers_) {
    largest_tile = std::max(largest_tile, each.tile);
    largest_map = std::max({largest_map, each.output_image()});
    largest_tile_values =
        std::max({largest_tile_values, index(each.tile) * std::max(each.output_image(), each.input_image())});
  }
  const std::size_t images = index((batch_size + largest_tile - 1) / largest_tile * largest_tile);

  SingleThreadedCreation single;
  std::size_t partials = 0;
  for (TrainingLayer<T>& each : layers_) {
    each.make_primitives(workers_);
    each.y.reset(images * each.output_image());
    partials = std::max(partials, each.gradient_count * (images / index(each.tile)));
  }
  const Convolution& stem = network_.convolutions[0];
  input_.reset(images * layers_[0].input_image());
  maps_.push_back(
      {AlignedBuffer<T>(images * layers_[0].output_image()), stem.output_channels, stem.output_height()});
  for (const Block& block : network_.blocks) {
    const TrainingLayer<T>& last = layer(block.conv2);
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

template <typename T>
void TiledTraining<T>::lay_out_parameters() {
  std::size_t offset = 0;
  const auto add = [&](const std::string& name, ParameterKind kind, std::size_t count) {
    groups.push_back({name, kind, offset, count});
    offset += count;
    return offset - count;
  };
  for (TrainingLayer<T>& each : layers_) {
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

template <typename T>
void TiledTraining<T>::set_parameters(const FloatParameters& parameters) {
  const auto copy = [&](const std::vector<float>& from, std::size_t to) {
    std::copy(from.begin(), from.end(), trainable.data() + to);
  };
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const FloatConvolution& source = parameters.convolutions[i];
    TrainingLayer<T>& each = layers_[i];
    copy(source.weight, each.weight);
    copy(source.gamma, each.normalization.gamma);
    copy(source.beta, each.normalization.beta);
    each.normalization.running_mean = source.running_mean;
    each.normalization.running_variance = source.running_variance;
  }
  copy(parameters.linear_weight, linear_weight_);
  copy(parameters.linear_bias, linear_bias_);
}

template <typename T>
FloatParameters TiledTraining<T>::parameters() const {
  FloatParameters result = make_parameters(network_);
  const auto copy = [&](std::size_t from, std::vector<float>& to) {
    std::copy_n(trainable.data() + from, to.size(), to.begin());
  };
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const TrainingLayer<T>& each = layers_[i];
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

template <typename T>
template <typename Body>
void TiledTraining<T>::guarded(const Body& body) {
  // No exception may leave a parallel region; after one the other threads only pass the barriers.
  if (failed_.load(std::memory_order_relaxed)) return;
  try {
    body();
  } catch (...) {
    if (!failed_.exchange(true)) failure_ = std::current_exception();
  }
}

template <typename T>
template <typename Body>
void TiledTraining<T>::parallel(const Body& body) {
  failed_ = false;
  for (TrainingWorker<T>& worker : workers_) {
    worker.queue = 0;
    for (std::atomic<int>& taken : worker.taken) taken.store(0, std::memory_order_relaxed);
  }
#pragma omp parallel num_threads(threads_)
  body(omp_get_thread_num());
  if (!failed_) return;
  try {
    std::rethrow_exception(failure_);
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN failed in a training step: ") + error.what());
  }
}

template <typename T>
template <typename Task>
void TiledTraining<T>::for_tiles(int images, const Task& task) {
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
      guarded([&] { task(thread, Tile{tile, index(first), index(std::min(images, count_ - first))}); });
    }
  }
  // The other queue is that of the stage before, which all have left, and of the next one.
  worker.queue = 1 - queue;
  worker.taken[worker.queue].store(0, std::memory_order_relaxed);
#pragma omp barrier
}

/// Images of the tile behind the batch's last one must be zero where convolutions read them.
template <typename T>
void TiledTraining<T>::clear_tail(const Tile& tile, int images, std::size_t image_values, T* values) const {
  const std::size_t empty = index(images) - tile.valid;
  if (empty == 0) return;
  std::memset(static_cast<void*>(values + tile.valid * image_values), 0, empty * image_values * sizeof(T));
}

/// y of the layer, and its sums into the tile's place in `slot`.
template <typename T>
void TiledTraining<T>::convolve(TrainingLayer<T>& layer, int thread, const T* x, const Tile& tile, int slot) {
  T* y = layer.y.data() + tile.first * layer.output_image();
  layer.forward(thread, workers_[index(thread)], x, y);
  double* sum = sums(slot, tile.index);
  std::fill_n(sum, kSumStride, 0.0);
  loops_.statistics(y, tile.valid * layer.output_pixels(), layer.shape.output_channels,
                    layer.normalization.center.data(), sum, sum + kChannels);
}

template <typename T>
void TiledTraining<T>::finish_statistics(TrainingLayer<T>& layer, int slot) {
  Normalization& normalization = layer.normalization;
  const int tiles = tiles_of(layer.tile);
  const double pixels = static_cast<double>(index(count_) * layer.output_pixels());
  for (std::size_t i = 0; i < index(normalization.channels); ++i) {
    double sum = 0;
    double square = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      sum += sums(slot, tile)[i];
      square += sums(slot, tile)[kChannels + i];
    }
    normalization.take_statistics(i, sum, square, pixels, trainable.data()[normalization.gamma + i],
                                  trainable.data()[normalization.beta + i]);
  }
}

template <typename T>
void TiledTraining<T>::pool_and_linear(std::size_t image) {
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
template <typename T>
void TiledTraining<T>::pool_gradient(std::size_t image, const float* logit_gradients, T* d) const {
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

template <typename T>
void TiledTraining<T>::linear_gradient(const float* logit_gradients) {
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

template <typename T>
void TiledTraining<T>::finish_gradient(TrainingLayer<T>& layer, int sum_slot, int slot, int stage_tile) {
  Normalization& normalization = layer.normalization;
  const int tiles = tiles_of(stage_tile);
  const double pixels = static_cast<double>(index(count_) * layer.output_pixels());
  for (std::size_t i = 0; i < index(normalization.channels); ++i) {
    double sum = 0;
    double product = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      sum += sums(sum_slot, tile)[i];
      product += sums(slot, tile)[kChannels + i];
    }
    gradients.data()[normalization.gamma + i] = static_cast<float>(
        normalization.take_gradient(i, sum, product, pixels, trainable.data()[normalization.gamma + i]));
    gradients.data()[normalization.beta + i] = static_cast<float>(sum / double{normalization.output_unit});
  }
}

/// dy of the layer from g, in worker.a, and the tile's weight gradient.
template <typename T>
void TiledTraining<T>::weight_gradient(TrainingLayer<T>& layer, int thread, const T* x, const T* g, int slot,
                                       const Tile& tile) {
  TrainingWorker<T>& worker = workers_[index(thread)];
  T* dy = worker.a.data();
  const std::size_t offset = tile.first * layer.output_image();
  const Normalization& normalization = layer.normalization;
  loops_.input_gradient(g + offset, layer.y.data() + offset, tile.valid * layer.output_pixels(),
                        layer.shape.output_channels, normalization.a.data(), normalization.b.data(),
                        normalization.c.data(), dy);
  clear_tail(tile, layer.tile, layer.output_image(), dy);
  float* partial = weight_partials_[index(slot)].data() + index(tile.index) * layer.gradient_count;
  layer.weight_gradient(thread, worker, x, dy, partial);
}

/// The weight gradient of the layer: its tiles' gradients added in order. Shared by all threads.
template <typename T>
void TiledTraining<T>::add_gradients(TrainingLayer<T>& layer, int slot) {
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

template <typename T>
void TiledTraining<T>::store_gradient(int i) {
  const int thread = omp_get_thread_num();
  layer(i).store_gradient(thread, workers_[index(thread)], gradients.data() + layer(i).weight);
}

}  // namespace nibble
