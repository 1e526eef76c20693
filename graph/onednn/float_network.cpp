#include "graph/onednn/float_network.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <limits>

#include "graph/network/error.h"
#include "graph/network/fold.h"
#include "graph/onednn/elementwise.h"
#include "graph/onednn/image_team.h"
#include "graph/onednn/pixels.h"
#include "graph/onednn/primitives.h"

// How a batch runs
//
// Threads take groups of a few images from a queue and run the whole network on a group, so nothing is shared
// and there are no barriers. Within a group the blocks of one resolution ("stage") run on tiles of images
// that fit the core's own cache, all layers of a tile before the next tile:
//
//   group of 8 images:  32x32 x 16: 8 tiles of 1    16x16 x 32: 4 tiles of 2    8x8 x 64: 2 tiles of 4   FP32
//                                   4 tiles of 2                2 tiles of 4              1 tile of 8    BF16
//
// so that the wide layers' weights are read once for several images and the narrow layers' maps never leave
// the cache. Images that do not fill a tile run one by one.
//
// Of a batch of one the threads share the rows of every layer, each with a primitive for its own. They wait
// for each other behind each convolution: the rows that a neighbour needs computed twice would cost more than
// that (int8_network.cpp does so, where a convolution is shorter).

namespace nibble {

struct NetworkImplementation {
  virtual ~NetworkImplementation() = default;
  virtual void run(const std::uint8_t* pixels, int count, float* logits) = 0;

  /// Seconds of each step, added over threads; null when nobody asks.
  std::vector<std::vector<double>>* times = nullptr;  // [thread][step]
  std::vector<LayerTime> steps;                       // names, and multiply-accumulates of one image
  int image_threads = 1;                              // that work on a batch of one
  std::vector<std::string> implementations;
};

namespace {

using dnnl::memory;

constexpr int kGroup = 8;

std::size_t index(int value) {
  return static_cast<std::size_t>(value);
}

/// Weights in the layout of one or more primitives.
struct WeightCopy {
  memory::desc layout;
  AlignedBuffer<std::byte> values;
};

/// A convolution's primitive for one number of images or rows, always for one thread.
struct Variant {
  SharedPrimitive primitive;
  std::string implementation;
  const std::byte* weight = nullptr;
};

/// A convolution on some rows of an image.
struct RowsVariant {
  Variant variant;
  std::size_t part;  // the same in all layers whose outputs have as many rows
  int first, end;    // rows of the output
  std::size_t input_offset, input_size, output_offset;  // of these rows in the maps, in values
};

enum class Form { tile, image };

struct Layer {
  Convolution shape;
  std::array<Variant, 2> variants;  // by Form
  std::vector<RowsVariant> rows;    // by thread, of a batch of one; empty where it has one thread
  std::vector<std::unique_ptr<WeightCopy>> weights;
  AlignedBuffer<float> bias;
};

/// Consecutive blocks whose outputs have one resolution.
struct Stage {
  std::size_t first_block, end_block;
  int tile;
};

template <typename T>
class Runner final : public NetworkImplementation {
 public:
  Runner(const NetworkDescription& network, const FloatParameters& parameters, int max_batch);
  void run(const std::uint8_t* pixels, int count, float* logits) override;

 private:
  struct Worker {
    dnnl::stream stream{cpu_engine()};
    AlignedBuffer<std::byte> scratchpad;
    AlignedBuffer<T> x, next_x;  // a group's map before and after a stage
    AlignedBuffer<T> inner;      // a tile's map between a block's convolutions
  };

  void make_layer(const Convolution& shape, const FoldedConvolution& folded, bool sum, bool relu);
  Variant make_variant(Layer& layer, const OnednnConvolution& geometry, const std::vector<float>& weight,
                       const dnnl::primitive_attr& attributes, int threads);
  const std::byte* weight_in(Layer& layer, const memory::desc& layout, const OnednnConvolution& geometry,
                             const std::vector<float>& weight);
  RowsVariant make_rows(Layer& layer, int first, int end, const std::vector<float>& weight,
                        const dnnl::primitive_attr& attributes);
  void run_group(int thread, const std::uint8_t* pixels, int count, float* logits);
  void run_image(const std::uint8_t* pixels, float* logits);
  void run_rows(ImageTeam& team, int thread, const std::uint8_t* pixels, float* logits);
  void run_stem(int thread, Form form, const std::uint8_t* pixels, int images, T* x);
  void run_stage(const Stage& stage, int thread, Form form, int images, const T* from, T* to);
  void convolve(int number, int thread, Form form, const T* x, T* y);
  void execute(const Layer& layer, const Variant& variant, int memories, int thread, const T* x, T* y);
  void pad_shortcut(const Block& block, std::size_t first_row, std::size_t end_row, const T* x, T* shortcut);
  void pool_and_linear(int thread, int images, const T* x, float* logits);

  /// Adds the time since the last mark to `step`.
  void mark(int thread, std::size_t step);
  std::size_t shortcut_step() const { return steps.size() - 2; }

  NetworkDescription network_;
  int threads_;
  int group_;  // images in a group, at most
  std::vector<Layer> layers_;
  std::vector<Stage> stages_;
  std::vector<Worker> workers_;
  std::vector<std::chrono::steady_clock::time_point> marks_;
  PixelNormalization pixel_normalization_;
  std::vector<float> linear_weight_, linear_bias_;
  Turns turns_{kMostImageThreads};
};

/// A block needs two or three maps of a tile beside its weights: 64 KB each. In FP32 the direct kernels take
/// a third more time for 16 channels where a tile is of two images.
template <typename T>
int tile_images(const Convolution& convolution) {
  constexpr int values = 64 * 1024 / sizeof(T);
  const int image = convolution.output_channels * convolution.output_height() * convolution.output_width();
  return std::clamp(values / image, 1, kGroup);
}

template <typename T>
Runner<T>::Runner(const NetworkDescription& network, const FloatParameters& parameters, int max_batch)
    : network_(network),
      threads_(omp_get_max_threads()),
      group_(std::clamp((max_batch + threads_ - 1) / threads_, 1, kGroup)),
      workers_(index(threads_)),
      marks_(index(threads_)) {
  const FoldedParameters folded = fold_batch_normalization(network, parameters);
  linear_weight_ = folded.linear_weight;
  linear_bias_ = folded.linear_bias;

  std::vector<bool> second(network.convolutions.size()), projection(network.convolutions.size());
  for (const Block& block : network.blocks) {
    second[index(block.conv2)] = true;
    if (block.projection >= 0) projection[index(block.projection)] = true;
  }
  const SingleThreadedCreation single;
  steps.push_back({"normalize", 0, 0});
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& shape = network.convolutions[i];
    make_layer(shape, folded.convolutions[i], second[i], !projection[i]);
    steps.push_back({shape.name, 0, static_cast<double>(shape.multiply_accumulates())});
  }
  steps.push_back({"pool and linear", 0, static_cast<double>(network.feature_channels * network.classes)});
  steps.push_back({"padded shortcuts", 0, 0});
  steps.push_back({"waits", 0, 0});

  for (std::size_t number = 0; number < network.blocks.size(); ++number) {
    const Convolution& shape = network.convolutions[index(network.blocks[number].conv2)];
    const bool same =
        number > 0 && network.convolutions[index(network.blocks[number - 1].conv2)].output_height() ==
                          shape.output_height();
    if (same) {
      stages_.back().end_block = number + 1;
    } else {
      stages_.push_back({number, number + 1, tile_images<T>(shape)});
    }
  }

  std::size_t largest = 0;
  for (const Convolution& shape : network.convolutions) {
    largest = std::max(largest, index(shape.output_channels * shape.output_height() * shape.output_width()));
  }
  for (Worker& worker : workers_) {
    worker.x.reset(index(group_) * largest);
    worker.next_x.reset(index(group_) * largest);
    worker.inner.reset(index(group_) * largest);
  }
}

template <typename T>
void Runner<T>::make_layer(const Convolution& shape, const FoldedConvolution& folded, bool sum, bool relu) {
  Layer& layer = layers_.emplace_back();
  layer.shape = shape;
  layer.bias.reset(folded.bias.size());
  std::copy(folded.bias.begin(), folded.bias.end(), layer.bias.data());
  dnnl::post_ops after;
  if (sum) after.append_sum(1.0F);  // the shortcut already lies where the output goes
  if (relu) after.append_eltwise(dnnl::algorithm::eltwise_relu, 0.0F, 0.0F);
  dnnl::primitive_attr attributes = user_scratchpad();
  attributes.set_post_ops(after);
  layer.variants = {make_variant(layer, {shape, tile_images<T>(shape), onednn_type<T>()}, folded.weight,
                                 attributes, threads_),
                    make_variant(layer, {shape, 1, onednn_type<T>()}, folded.weight, attributes, threads_)};
  implementations.push_back(shape.name + " " + layer.variants[0].implementation);
  if (threads_ == 1) return;
  const int parts = divide_rows(shape.output_height(), threads_, [&](int first, int end) {
    layer.rows.push_back(make_rows(layer, first, end, folded.weight, attributes));
  });
  image_threads = std::max(image_threads, parts);
}

template <typename T>
RowsVariant Runner<T>::make_rows(Layer& layer, int first, int end, const std::vector<float>& weight,
                                 const dnnl::primitive_attr& attributes) {
  const Convolution& shape = layer.shape;
  OnednnConvolution geometry(shape, 1, onednn_type<T>());
  const int first_input = geometry.take_rows(shape, first, end);
  const std::size_t input_row = index(shape.input_width * shape.input_channels);
  const auto input_rows = static_cast<std::size_t>(geometry.source.get_dims()[2]);
  return {make_variant(layer, geometry, weight, attributes, 1),
          layer.rows.size(),
          first,
          end,
          index(first_input) * input_row,
          input_rows * input_row,
          index(first * shape.output_width() * shape.output_channels)};
}

template <typename T>
Variant Runner<T>::make_variant(Layer& layer, const OnednnConvolution& geometry,
                                const std::vector<float>& weight, const dnnl::primitive_attr& attributes,
                                int threads) {
  using namespace dnnl;
  const memory::desc bias({layer.shape.output_channels}, memory::data_type::f32, memory::format_tag::a);
  const auto description = quickest([&] {
    return convolution_forward::primitive_desc(cpu_engine(), prop_kind::forward_inference,
                                               algorithm::convolution_direct, geometry.source,
                                               geometry.weight, bias, geometry.destination, geometry.strides,
                                               geometry.padding_before, geometry.padding_after, attributes);
  });
  Variant variant;
  variant.implementation = description.impl_info_str();
  variant.weight = weight_in(layer, description.weights_desc(), geometry, weight);
  const memory::desc scratchpad = description.scratchpad_desc();
  for (Worker& worker : workers_) {
    if (worker.scratchpad.size() < scratchpad.get_size()) worker.scratchpad.reset(scratchpad.get_size());
  }
  variant.primitive = SharedPrimitive(convolution_forward(description),
                                      {{DNNL_ARG_SRC, geometry.source},
                                       {DNNL_ARG_WEIGHTS, description.weights_desc()},
                                       {DNNL_ARG_BIAS, bias},
                                       {DNNL_ARG_DST, geometry.destination},
                                       {DNNL_ARG_SCRATCHPAD, scratchpad}},
                                      threads);
  return variant;
}

template <typename T>
const std::byte* Runner<T>::weight_in(Layer& layer, const memory::desc& layout,
                                      const OnednnConvolution& geometry, const std::vector<float>& weight) {
  for (const auto& copy : layer.weights) {
    if (copy->layout == layout) return copy->values.data();
  }
  WeightCopy& copy = *layer.weights.emplace_back(
      std::make_unique<WeightCopy>(layout, AlignedBuffer<std::byte>(layout.get_size())));
  memory from(geometry.master_weight, cpu_engine(), const_cast<float*>(weight.data()));
  memory to(layout, cpu_engine(), copy.values.data());
  dnnl::stream order(cpu_engine());
  dnnl::reorder(from, to).execute(order, from, to);
  order.wait();
  return copy.values.data();
}

template <typename T>
void Runner<T>::mark(int thread, std::size_t step) {
  if (times == nullptr) return;
  const auto now = std::chrono::steady_clock::now();
  (*times)[index(thread)][step] += std::chrono::duration<double>(now - marks_[index(thread)]).count();
  marks_[index(thread)] = now;
}

/// `memories`: which of the primitive's sets of memories.
template <typename T>
void Runner<T>::execute(const Layer& layer, const Variant& variant, int memories, int thread, const T* x,
                        T* y) {
  const Worker& worker = workers_[index(thread)];
  variant.primitive.run(memories, worker.stream,
                        {x, variant.weight, layer.bias.data(), y, worker.scratchpad.data()});
}

template <typename T>
void Runner<T>::convolve(int number, int thread, Form form, const T* x, T* y) {
  const Layer& layer = layers_[index(number)];
  execute(layer, layer.variants[static_cast<std::size_t>(form)], thread, thread, x, y);
  mark(thread, index(number) + 1);
}

/// Rows from `first_row` to before `end_row` of the output's images one after the other.
template <typename T>
void Runner<T>::pad_shortcut(const Block& block, std::size_t first_row, std::size_t end_row, const T* x,
                             T* shortcut) {
  const Convolution& first = network_.convolutions[index(block.conv1)];
  const std::size_t channels = index(first.output_channels);
  const std::size_t kept = index(first.input_channels);
  const std::size_t added = (channels - kept) / 2;
  const std::size_t size = index(first.output_height());
  std::fill(shortcut + first_row * size * channels, shortcut + end_row * size * channels, T{});
  for (std::size_t row = first_row; row < end_row; ++row) {
    const T* from = x + (row / size * index(first.input_height) + row % size * index(first.stride)) *
                            index(first.input_width) * kept;
    T* to = shortcut + row * size * channels + added;
    for (std::size_t column = 0; column < size; ++column) {
      std::copy_n(from + column * index(first.stride) * kept, kept, to + column * channels);
    }
  }
}

/// One tile, or one image, through the blocks of a stage. The first block reads `from`; the others work in
/// `to` in place: the second convolution adds to its block's input.
template <typename T>
void Runner<T>::run_stage(const Stage& stage, int thread, Form form, int images, const T* from, T* to) {
  T* inner = workers_[index(thread)].inner.data();
  for (std::size_t number = stage.first_block; number < stage.end_block; ++number) {
    const Block& block = network_.blocks[number];
    const T* x = number == stage.first_block ? from : to;
    convolve(block.conv1, thread, form, x, inner);
    if (block.shortcut == Shortcut::projection) convolve(block.projection, thread, form, x, to);
    if (block.shortcut == Shortcut::pad_channels) {
      const Convolution& shape = network_.convolutions[index(block.conv2)];
      pad_shortcut(block, 0, index(images * shape.output_height()), x, to);
      mark(thread, shortcut_step());
    }
    convolve(block.conv2, thread, form, inner, to);
  }
}

template <typename T>
void Runner<T>::run_stem(int thread, Form form, const std::uint8_t* pixels, int images, T* x) {
  T* input = workers_[index(thread)].inner.data();
  const Convolution& stem = network_.convolutions[0];
  pixel_normalization_.apply(pixels, index(images * stem.input_height * stem.input_width), input);
  mark(thread, 0);
  convolve(0, thread, form, input, x);
}

template <typename T>
void Runner<T>::pool_and_linear(int thread, int images, const T* x, float* logits) {
  const std::size_t channels = index(network_.feature_channels);
  const std::size_t classes = index(network_.classes);
  const std::size_t pixels = index(network_.feature_size * network_.feature_size);
  for (std::size_t image = 0; image < index(images); ++image) {
    std::array<float, 64> feature{};
    for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
      const T* row = x + (image * pixels + pixel) * channels;
      for (std::size_t i = 0; i < channels; ++i) feature[i] += to_float(row[i]);
    }
    for (std::size_t k = 0; k < classes; ++k) {
      float sum = 0;
      for (std::size_t i = 0; i < channels; ++i) sum += linear_weight_[k * channels + i] * feature[i];
      logits[image * classes + k] = sum / static_cast<float>(pixels) + linear_bias_[k];
    }
  }
  mark(thread, steps.size() - 3);
}

template <typename T>
void Runner<T>::run_group(int thread, const std::uint8_t* pixels, int count, float* logits) {
  if (times != nullptr) marks_[index(thread)] = std::chrono::steady_clock::now();
  Worker& worker = workers_[index(thread)];
  T* x = worker.x.data();
  T* next = worker.next_x.data();
  /// step(form, first image, images) for full tiles, then for the images left.
  const auto for_tiles = [&](int tile, const auto& step) {
    int image = 0;
    for (; image + tile <= count && tile > 1; image += tile) step(Form::tile, image, tile);
    for (; image < count; ++image) step(Form::image, image, 1);
  };
  const Convolution& stem = network_.convolutions[0];
  const std::size_t pixel_image = index(stem.input_height * stem.input_width * stem.input_channels);
  std::size_t image_values = index(stem.output_height() * stem.output_width() * stem.output_channels);
  for_tiles(tile_images<T>(stem), [&](Form form, int image, int images) {
    run_stem(thread, form, pixels + index(image) * pixel_image, images, x + index(image) * image_values);
  });
  for (const Stage& stage : stages_) {
    const Block& first = network_.blocks[stage.first_block];
    const Convolution& shape = network_.convolutions[index(first.conv2)];
    const std::size_t output = index(shape.output_height() * shape.output_width() * shape.output_channels);
    const bool in_place = first.shortcut == Shortcut::identity;
    T* to = in_place ? x : next;
    for_tiles(stage.tile, [&](Form form, int image, int images) {
      run_stage(stage, thread, form, images, x + index(image) * image_values, to + index(image) * output);
    });
    if (!in_place) std::swap(x, next);
    image_values = output;
  }
  pool_and_linear(thread, count, x, logits);
}

template <typename T>
void Runner<T>::run_image(const std::uint8_t* pixels, float* logits) {
  ImageTeam team(turns_);
#pragma omp parallel num_threads(image_threads)
  run_rows(team, omp_get_thread_num(), pixels, logits);
  team.rethrow();
}

/// One thread's part of an image. The maps are the first worker's, but for the first convolution's input.
template <typename T>
void Runner<T>::run_rows(ImageTeam& team, int thread, const std::uint8_t* pixels, float* logits) {
  T* const inner = workers_[0].inner.data();
  T* x = workers_[0].x.data();
  T* next = workers_[0].next_x.data();
  /// work(part) for the thread's parts of a layer; then all wait.
  const auto for_parts = [&](int number, const auto& work) {
    team.step(layers_[index(number)].rows, work);
    mark(thread, steps.size() - 1);
  };
  const auto convolve_rows = [&](int number, const RowsVariant& rows, const T* from, T* to) {
    execute(layers_[index(number)], rows.variant, 0, thread, from + rows.input_offset,
            to + rows.output_offset);
    mark(thread, index(number) + 1);
  };
  if (times != nullptr) marks_[index(thread)] = std::chrono::steady_clock::now();
  for_parts(0, [&](const RowsVariant& rows) {
    T* const input = workers_[index(thread)].next_x.data();
    pixel_normalization_.apply(pixels + rows.input_offset, rows.input_size / 3, input + rows.input_offset);
    mark(thread, 0);
    convolve_rows(0, rows, input, x);
  });
  for (const Block& block : network_.blocks) {
    T* const to = block.shortcut == Shortcut::identity ? x : next;
    for_parts(block.conv1, [&](const RowsVariant& rows) { convolve_rows(block.conv1, rows, x, inner); });
    for_parts(block.conv2, [&](const RowsVariant& rows) {
      if (block.shortcut == Shortcut::projection) {
        convolve_rows(block.projection, layers_[index(block.projection)].rows[rows.part], x, to);
      } else if (block.shortcut == Shortcut::pad_channels) {
        pad_shortcut(block, index(rows.first), index(rows.end), x, to);
        mark(thread, shortcut_step());
      }
      convolve_rows(block.conv2, rows, inner, to);
    });
    if (to != x) std::swap(x, next);
  }
  if (thread == 0) pool_and_linear(thread, 1, x, logits);
}

template <typename T>
void Runner<T>::run(const std::uint8_t* pixels, int count, float* logits) {
  if (count == 1 && image_threads > 1) return run_image(pixels, logits);
  const std::size_t pixel_image = index(network_.image_size * network_.image_size * network_.image_channels);
  const int group = std::clamp((count + threads_ - 1) / threads_, 1, group_);
  const int groups = (count + group - 1) / group;
  std::atomic<bool> failed{false};
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
  for (int number = 0; number < groups; ++number) {
    // No exception may leave a parallel region.
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      const int first = number * group;
      run_group(omp_get_thread_num(), pixels + index(first) * pixel_image, std::min(group, count - first),
                logits + index(first * network_.classes));
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  }
  if (failed) std::rethrow_exception(failure);
}

std::unique_ptr<NetworkImplementation> make_runner(const NetworkDescription& network,
                                                   const FloatParameters& parameters, int max_batch,
                                                   Precision precision) {
  require_precision(precision);
  try {
    if (precision == Precision::bf16)
      return std::make_unique<Runner<Bfloat16>>(network, parameters, max_batch);
    return std::make_unique<Runner<float>>(network, parameters, max_batch);
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN cannot run this network on this CPU: ") + error.what());
  }
}

}  // namespace

FloatNetwork::FloatNetwork(const NetworkDescription& network, const FloatParameters& parameters,
                           int max_batch, Precision precision)
    : implementation_(make_runner(network, parameters, max_batch, precision)) {}
FloatNetwork::FloatNetwork(FloatNetwork&&) noexcept = default;
FloatNetwork& FloatNetwork::operator=(FloatNetwork&&) noexcept = default;
FloatNetwork::~FloatNetwork() = default;

void FloatNetwork::run(std::span<const std::uint8_t> pixels_nhwc, int count, std::span<float> logits) {
  try {
    implementation_->run(pixels_nhwc.data(), count, logits.data());
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN failed to run the network: ") + error.what());
  }
}

std::vector<LayerTime> FloatNetwork::profile(std::span<const std::uint8_t> pixels_nhwc, int count,
                                             int repetitions) {
  std::vector<float> logits(pixels_nhwc.size());  // more than enough for `count` images' classes
  const std::size_t steps = implementation_->steps.size();
  const auto threads = static_cast<std::size_t>(omp_get_max_threads());
  std::vector<double> best;
  double best_total = std::numeric_limits<double>::infinity();
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    std::vector<std::vector<double>> times(threads, std::vector<double>(steps));
    implementation_->times = &times;
    run(pixels_nhwc, count, logits);
    implementation_->times = nullptr;
    std::vector<double> seconds(steps);
    double total = 0;
    for (const auto& thread : times) {
      for (std::size_t i = 0; i < steps; ++i) {
        seconds[i] += thread[i];
        total += thread[i];
      }
    }
    if (total < best_total) {
      best_total = total;
      best = seconds;
    }
  }
  const std::size_t busy = count == 1 ? index(implementation_->image_threads) : index(count);
  const auto side_by_side = static_cast<double>(std::min(threads, busy));
  std::vector<LayerTime> result;
  for (std::size_t i = 0; i < steps && !best.empty(); ++i) {
    LayerTime each = implementation_->steps[i];
    each.seconds = best[i] / side_by_side;
    each.multiply_accumulates *= count;
    if (each.seconds > 0) result.push_back(each);
  }
  return result;
}

std::vector<std::string> FloatNetwork::implementations() const {
  return implementation_->implementations;
}

}  // namespace nibble
