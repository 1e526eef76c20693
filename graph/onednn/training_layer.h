#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <dnnl.hpp>
#include <optional>
#include <vector>

#include "graph/network/description.h"
#include "graph/onednn/elementwise.h"
#include "graph/onednn/primitives.h"
#include "graph/onednn/weight_gradient.h"
#include "graph/onednn/winograd.h"

namespace nibble {

/// One batch normalization in training: its place among the trained values, its running statistics, and what
/// the last batch gave, laid out for ElementwiseLoops.
struct Normalization {
  explicit Normalization(int count);

  int channels;
  std::size_t gamma = 0;  ///< offsets in the trainable values
  std::size_t beta = 0;
  std::vector<float> running_mean, running_variance;
  /// What 1 in y stands for, and 1 in z: both 1 in float; products of scales where y and z are integers.
  std::vector<float> unit;
  float output_unit = 1;
  std::vector<float> center;  ///< what is subtracted before summing: near the mean of the next batch
  std::vector<float> mean, scale, shift;  ///< z = y * scale + shift
  std::vector<float> a, b, c;             ///< dy = a * g + (b * y + c)

  /// From the sums of y - center and of its square over `pixels` values: scale and shift for this batch, and
  /// the running statistics moved on (momentum 0.1, unbiased variance, as PyTorch keeps them).
  void take_statistics(std::size_t channel, double sum, double square, double pixels, float gamma_value,
                       float beta_value);
  /// From the sums of g and of g * (y - mean): a, b, c (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3).
  /// Returns the gradient of gamma; that of beta is `sum`.
  double take_gradient(std::size_t channel, double sum, double product, double pixels, float gamma_value);

 private:
  std::vector<double> deviation_;  // sqrt(variance + epsilon) of the last batch
};

/// What a thread has to itself.
template <typename T>
struct TrainingWorker {
  dnnl::stream stream{cpu_engine()};
  AlignedBuffer<std::byte> scratchpad;
  AlignedBuffer<T> a, b, c;  ///< a tile's activations or gradients, each

  /// Tiles of this thread's share that are taken, in two stages in turn, and which of them is this stage's.
  alignas(64) std::array<std::atomic<int>, 2> taken{};
  std::size_t queue = 0;
};

/// One convolution in training, on tiles of `tile` images, each run on one thread. Activations and gradients
/// are T, what it gives is Sum: sums of integers want FP32.
template <typename T, typename Sum = T>
class TrainingLayer {
 public:
  /// `exact`: products and sums of small integers come out exact where Sum is float.
  explicit TrainingLayer(const Convolution& convolution, bool exact = true);

  /// Makes the primitives; `tile` is final now. Enlarges the workers' scratchpads to what they need.
  void make_primitives(std::vector<TrainingWorker<T>>& workers);

  /// Takes a new weight, [output channel][row][column][input channel].
  void set_weight(int thread, const TrainingWorker<T>& worker, const float* master);
  void forward(int thread, const TrainingWorker<T>& worker, const T* x, Sum* y) const;
  void data_gradient(int thread, const TrainingWorker<T>& worker, const T* dy, T* dx) const;
  /// `partial`: gradient_count values, in a layout that store_gradient knows.
  void weight_gradient(int thread, const TrainingWorker<T>& worker, const T* x, const T* dy,
                       float* partial) const;
  /// The total in `gradient` to [output channel][row][column][input channel].
  void store_gradient(int thread, const TrainingWorker<T>& worker, float* master) const;

  std::size_t output_pixels() const;
  std::size_t output_image() const;  ///< values
  std::size_t input_image() const;

  Convolution shape;
  int tile;
  std::size_t weight = 0;  ///< offset in the trainable values
  Normalization normalization;
  AlignedBuffer<Sum> y;
  std::size_t gradient_count = 0;
  AlignedBuffer<float> gradient;  ///< the sum of all tiles' weight gradients

 private:
  /// Whether winograd.h takes oneDNN's place in the forward pass and the data gradient.
  bool has_winograd() const;

  bool exact_;
  SharedPrimitive forward_, data_gradient_, weight_gradient_;
  SharedPrimitive to_forward_, to_data_gradient_, from_gradient_;  // reorders
  AlignedBuffer<std::byte> forward_weight_, data_gradient_weight_;
  std::optional<WinogradShape> winograd_, winograd_gradient_;
  AlignedBuffer<float> winograd_weight_, winograd_gradient_weight_;
  std::optional<WeightGradientShape> own_gradient_;  // where weight_gradient.h takes oneDNN's place
  Bf16WeightGradient bf16_gradient_;                 // which of them in BF16
};

extern template class TrainingLayer<float>;
extern template class TrainingLayer<Bfloat16>;
extern template class TrainingLayer<Bfloat16, float>;

}  // namespace nibble
