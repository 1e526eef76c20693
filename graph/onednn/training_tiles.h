#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/error.h"
#include "graph/network/first_failure.h"
#include "graph/network/float_parameters.h"
#include "graph/onednn/elementwise.h"
#include "graph/onednn/float_training.h"
#include "graph/onednn/primitives.h"
#include "graph/onednn/training_layer.h"

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
// step better in nChw8c, less than the reorders that it would need). No activation is ever reordered; our
// weight gradient in BF16 interleaves a few rows of two images while they are in the cache. Weights are
// reordered, from the master copy once a step into what the forward pass and the data gradient want
// (winograd.h has both where it is quicker); so are gradients back. For `resnet_344` these are 50 reorders a
// step (25 + 24, and the first convolution's gradient), 0.3 % of a step of 64 images.

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

/// A step: the layers, their maps and gradients, and the way through them. What lies between the convolutions
/// is the derived class's.
template <typename T, typename Sum = T>
class TiledTraining : public TrainingImplementation {
 public:
  using Layer = TrainingLayer<T, Sum>;

  /// `exact`: convolutions of small integers come out exact where Sum is float.
  TiledTraining(const NetworkDescription& network, int batch_size, bool exact = false);

  std::span<const float> forward(const std::uint8_t* pixels, int count) final;
  void backward(std::span<const float> logit_gradients) final;
  void set_parameters(const FloatParameters& parameters) final;
  FloatParameters parameters() const final;

 protected:
  struct Tile {
    int thread;
    int index;
    std::size_t first;  // image
    std::size_t valid;  // images of the batch in it
  };

  // What a derived class defines. A worker's a, b and c are its own until the function that is called
  // returns, except where an argument lies in them.

  /// Before a step, on one thread: centers of the normalizations, linear_.
  virtual void begin() = 0;
  /// Takes over the layer's weight.
  virtual void set_weight(int number) = 0;
  /// x of the first convolution.
  virtual void take_pixels(const std::uint8_t* pixels, std::size_t count, T* x) const = 0;
  /// maps_[map], from the convolutions before it.
  virtual void make_map(std::size_t map, const Tile& tile) = 0;
  /// x of the convolutions that read maps_[map]; images behind the batch's last one need not be zero.
  virtual T* block_input(std::size_t map, const Tile& tile) = 0;
  /// x of a block's second convolution from the first one's y.
  virtual void make_middle(const Layer& first, const Tile& tile, T* z) const = 0;

  /// In place, g of the first convolution from d loss / d (what make_middle made), and its sums.
  virtual void middle_gradient(const Layer& first, const Tile& tile, T* g) = 0;
  /// g of the last map from `d` into map_gradient_[current_gradient_], and its sums.
  virtual void last_gradient(const Tile& tile, const T* d) = 0;
  /// g of maps_[block] from its convolutions' gradients, `d` and the projection's `projected` or null, and
  /// the shortcut's, into map_gradient_[1 - current_gradient_], and its sums. `d` may be overwritten.
  virtual void block_gradient(std::size_t block, const Tile& tile, T* d, const T* projected) = 0;
  /// g of what a block's projection gave.
  virtual const T* projection_gradient() const { return map_gradient_[current_gradient_].data(); }
  /// From the sums of maps_[map]'s g: the gradients of the normalizations before it.
  virtual void finish_map(std::size_t map) = 0;
  /// What else becomes of sums and gradients, once those of the float network are made.
  virtual void finish_middle(std::size_t /*block*/) {}
  virtual void finish_linear() {}
  virtual void finish_weight(int /*number*/) {}

  // What it may use.

  /// The values that shortcut A adds to maps_[map], one tile, in worker.c.
  const T* padded_shortcut(std::size_t map, const Tile& tile);
  /// The gradient of maps_[block] through shortcut A, one tile, in worker.c.
  const T* padded_gradient(std::size_t block, const Tile& tile);
  /// The sum of g lies in `sum_slot`, the sum of g * (y - mean) in `slot`.
  void finish_gradient(Layer& layer, int sum_slot, int slot, int stage_tile);

  int tiles_of(int images) const { return (count_ + images - 1) / images; }
  double* sums(int slot, const Tile& tile) { return sums_of(slot, tile.index); }
  double* sums_of(int slot, int tile) { return sums_[index(slot)].data() + index(tile) * kSumStride; }
  TrainingWorker<T>& worker(const Tile& tile) { return workers_[index(tile.thread)]; }
  Layer& layer(int number) { return layers_[index(number)]; }
  /// The convolutions that read map `block`, which is made from block - 1's outputs or the first
  /// convolution's.
  Layer& main_source(std::size_t map) {
    return map == 0 ? layers_[0] : layer(network_.blocks[map - 1].conv2);
  }
  Layer* projected_source(std::size_t map) {
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
  const ElementwiseLoops<T>& loops_;
  const ElementwiseLoops<Sum>& sum_loops_;
  std::vector<Layer> layers_;
  std::vector<Map<T>> maps_;  // maps_[k] enters block k; the last one is pooled
  std::vector<TrainingWorker<T>> workers_;
  std::array<AlignedBuffer<T>, 2> map_gradient_;  // g of a block's output, of its input
  std::size_t current_gradient_ = 0;
  const float* linear_ = nullptr;  // the linear layer's weights in forward and backward
  float feature_unit_ = 1;         // what 1 in the last map stands for
  std::size_t linear_weight_ = 0;  // offsets
  std::size_t linear_bias_ = 0;

 private:
  void lay_out_parameters();

  /// Calls task(tile) for every tile of `images` images, from within a parallel region; a barrier.
  template <typename Task>
  void for_tiles(int images, const Task& task);
  /// Calls task(number) for every layer, the same way.
  template <typename Task>
  void for_layers(const Task& task);
  /// Runs `body` on all threads, each once; passes on the first exception.
  template <typename Body>
  void parallel(const Body& body);

  void convolve(Layer& layer, const T* x, const Tile& tile, int slot);
  void clear_tail(const Tile& tile, int images, std::size_t image_values, T* values) const;
  const T* input_of(std::size_t block, const Tile& tile);
  void middle_of(const Block& block, const Tile& tile, T* z);
  void finish_statistics(Layer& layer, int slot);
  void pool_and_linear(std::size_t image);
  void pool_gradient(std::size_t image, const float* logit_gradients, T* d) const;
  void linear_gradient(const float* logit_gradients);
  void weight_gradient(Layer& layer, const T* x, const T* g, int slot, const Tile& tile);
  void add_gradients(Layer& layer, int slot);
  void backward_second(const Block& block, const Tile& tile);
  void backward_first(std::size_t number, const Tile& tile);

  int threads_;
  AlignedBuffer<T> input_;                   // what the first convolution reads
  AlignedBuffer<T> inner_gradient_;          // g between a block's convolutions
  std::array<std::vector<double>, 2> sums_;  // [tile][kSumStride]: the main path's and the projection's
  std::array<AlignedBuffer<float>, 2> weight_partials_;
  int count_ = 0;
  AlignedBuffer<float> features_;  // [image][feature channel], averaged
  std::vector<float> logits_;

  FirstFailure failure_;
};

extern template class TiledTraining<float>;
extern template class TiledTraining<Bfloat16>;
extern template class TiledTraining<Bfloat16, float>;

/// A derived class's make_unique<Training>(arguments), with an error in our words.
template <typename Training, typename... Arguments>
std::unique_ptr<TrainingImplementation> make_training(const Arguments&... arguments) {
  try {
    return std::make_unique<Training>(arguments...);
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN cannot train this network on this CPU: ") + error.what());
  }
}

}  // namespace nibble
