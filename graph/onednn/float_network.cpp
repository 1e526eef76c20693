#include "graph/onednn/float_network.h"

#include <omp.h>

#include <algorithm>
#include <array>

#include "graph/network/error.h"
#include "graph/network/fold.h"
#include "graph/network/padded_shortcut.h"
#include "graph/onednn/batch_tiles.h"
#include "graph/onednn/elementwise.h"
#include "graph/onednn/image_team.h"
#include "graph/onednn/pixels.h"
#include "graph/onednn/primitives.h"
#include "graph/onednn/step_times.h"

// A batch runs as batch_tiles.h says. Of a batch of one the threads share the rows of every layer, each with
// a primitive for its own. They wait for each other behind each convolution: the rows that a neighbour needs
// computed twice would cost more than that (int8_network.cpp does so, where a convolution is shorter).

namespace nibble {

struct NetworkImplementation {
  virtual ~NetworkImplementation() = default;
  virtual void run(const std::uint8_t* pixels, int count, float* logits) = 0;

  StepTimes times{omp_get_max_threads()};
  int image_threads = 1;  // that work on a batch of one
  std::vector<std::string> implementations;
};

namespace {

using dnnl::memory;

constexpr int kGroup = 8;

std::size_t index(int value) {
  return static_cast<std::size_t>(value);
}

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

struct Layer {
  Convolution shape;
  std::size_t step;
  std::array<Variant, kForms> variants;
  std::vector<RowsVariant> rows;  // by thread, of a batch of one; empty where it has one thread
  WeightCopies weights;
  AlignedBuffer<float> bias;
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
    GroupMaps<T> maps;
  };

  void make_layer(const Convolution& shape, const FoldedConvolution& folded, bool sum, bool relu);
  Variant make_variant(Layer& layer, const OnednnConvolution& geometry, const std::vector<float>& weight,
                       const dnnl::primitive_attr& attributes, int threads);
  RowsVariant make_rows(Layer& layer, int first, int end, const std::vector<float>& weight,
                        const dnnl::primitive_attr& attributes);
  void run_group(int thread, const std::uint8_t* pixels, int count, float* logits);
  void run_image(const std::uint8_t* pixels, float* logits);
  void run_rows(ImageTeam& team, int thread, const std::uint8_t* pixels, float* logits);
  void run_stem(int thread, Form form, const std::uint8_t* pixels, int images, T* x);
  void convolve(int number, int thread, Form form, const T* x, T* y);
  void execute(const Layer& layer, const Variant& variant, int memories, int thread, const T* x, T* y);
  void pad_shortcut(int thread, const Block& block, int first_row, int end_row, const T* x, T* shortcut);
  void pool_and_linear(int thread, int images, const T* x, float* logits);

  NetworkDescription network_;
  int threads_;
  int group_;  // images in a group, at most
  std::vector<Layer> layers_;
  std::vector<Stage> stages_;
  std::vector<Worker> workers_;
  std::size_t normalize_step_, classify_step_, shortcut_step_, wait_step_;
  PixelNormalization pixel_normalization_;
  std::vector<float> linear_weight_, linear_bias_;
  Turns turns_{kMostImageThreads};
};

template <typename T>
Runner<T>::Runner(const NetworkDescription& network, const FloatParameters& parameters, int max_batch)
    : network_(network),
      threads_(omp_get_max_threads()),
      group_(std::clamp((max_batch + threads_ - 1) / threads_, 1, kGroup)),
      workers_(index(threads_)) {
  const FoldedParameters folded = fold_batch_normalization(network, parameters);
  linear_weight_ = folded.linear_weight;
  linear_bias_ = folded.linear_bias;

  std::vector<bool> second(network.convolutions.size()), projection(network.convolutions.size());
  for (const Block& block : network.blocks) {
    second[index(block.conv2)] = true;
    if (block.projection >= 0) projection[index(block.projection)] = true;
  }
  const SingleThreadedCreation single;
  normalize_step_ = times.add("normalize", 0);
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    make_layer(network.convolutions[i], folded.convolutions[i], second[i], !projection[i]);
  }
  classify_step_ =
      times.add("pool and linear", static_cast<double>(network.feature_channels * network.classes));
  shortcut_step_ = times.add("padded shortcuts", 0);
  wait_step_ = times.add("waits", 0);
  stages_ = divide_into_stages<T>(network, kGroup);
  for (Worker& worker : workers_) worker.maps.reset(network, group_);
}

template <typename T>
void Runner<T>::make_layer(const Convolution& shape, const FoldedConvolution& folded, bool sum, bool relu) {
  Layer& layer = layers_.emplace_back();
  layer.shape = shape;
  layer.step = times.add(shape.name, static_cast<double>(shape.multiply_accumulates()));
  layer.bias.reset(folded.bias.size());
  std::copy(folded.bias.begin(), folded.bias.end(), layer.bias.data());
  dnnl::post_ops after;
  if (sum) after.append_sum(1.0F);  // the shortcut already lies where the output goes
  if (relu) after.append_eltwise(dnnl::algorithm::eltwise_relu, 0.0F, 0.0F);
  dnnl::primitive_attr attributes = user_scratchpad();
  attributes.set_post_ops(after);
  layer.variants = {make_variant(layer, {shape, tile_images<T>(shape, kGroup), onednn_type<T>()},
                                 folded.weight, attributes, threads_),
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
  variant.weight = layer.weights.in(description.weights_desc(), geometry.master_weight, weight.data());
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
  times.mark(thread, layer.step);
}

template <typename T>
void Runner<T>::pad_shortcut(int thread, const Block& block, int first_row, int end_row, const T* x,
                             T* shortcut) {
  pad_shortcut_rows(network_.convolutions[index(block.conv1)], index(first_row), index(end_row), x, shortcut);
  times.mark(thread, shortcut_step_);
}

template <typename T>
void Runner<T>::run_stem(int thread, Form form, const std::uint8_t* pixels, int images, T* x) {
  T* input = workers_[index(thread)].maps.inner.data();
  const Convolution& stem = network_.convolutions[0];
  pixel_normalization_.apply(pixels, index(images * stem.input_height * stem.input_width), input);
  times.mark(thread, normalize_step_);
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
  times.mark(thread, classify_step_);
}

template <typename T>
void Runner<T>::run_group(int thread, const std::uint8_t* pixels, int count, float* logits) {
  times.begin(thread);
  const GroupMaps<T>& maps = workers_[index(thread)].maps;
  const Convolution& stem = network_.convolutions[0];
  for_tiles(count, tile_images<T>(stem, kGroup), [&](Form form, int image, int images) {
    run_stem(thread, form, pixels + index(image) * input_size(stem), images,
             maps.x.data() + index(image) * output_size(stem));
  });
  const T* features = run_blocks(
      network_, stages_, count, maps,
      [&](int number, Form form, int, const T* from, T* to) { convolve(number, thread, form, from, to); },
      [&](const Block& block, int images, const T* from, T* to) {
        const Convolution& shape = network_.convolutions[index(block.conv1)];
        pad_shortcut(thread, block, 0, images * shape.output_height(), from, to);
      });
  pool_and_linear(thread, count, features, logits);
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
  T* const inner = workers_[0].maps.inner.data();
  T* x = workers_[0].maps.x.data();
  T* next = workers_[0].maps.next_x.data();
  /// work(part) for the thread's parts of a layer; then all wait.
  const auto for_parts = [&](int number, const auto& work) {
    team.step(layers_[index(number)].rows, work);
    times.mark(thread, wait_step_);
  };
  const auto convolve_rows = [&](int number, const RowsVariant& rows, const T* from, T* to) {
    const Layer& layer = layers_[index(number)];
    execute(layer, rows.variant, 0, thread, from + rows.input_offset, to + rows.output_offset);
    times.mark(thread, layer.step);
  };
  times.begin(thread);
  for_parts(0, [&](const RowsVariant& rows) {
    T* const input = workers_[index(thread)].maps.next_x.data();
    pixel_normalization_.apply(pixels + rows.input_offset, rows.input_size / 3, input + rows.input_offset);
    times.mark(thread, normalize_step_);
    convolve_rows(0, rows, input, x);
  });
  for (const Block& block : network_.blocks) {
    T* const to = block.shortcut == Shortcut::identity ? x : next;
    for_parts(block.conv1, [&](const RowsVariant& rows) { convolve_rows(block.conv1, rows, x, inner); });
    for_parts(block.conv2, [&](const RowsVariant& rows) {
      if (block.shortcut == Shortcut::projection) {
        convolve_rows(block.projection, layers_[index(block.projection)].rows[rows.part], x, to);
      } else if (block.shortcut == Shortcut::pad_channels) {
        pad_shortcut(thread, block, rows.first, rows.end, x, to);
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
  const std::size_t image = input_size(network_.convolutions[0]);
  for_groups(threads_, group_, count, [&](int thread, int first, int images) {
    run_group(thread, pixels + index(first) * image, images, logits + index(first * network_.classes));
  });
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
  const int busy = count == 1 ? implementation_->image_threads : count;
  return implementation_->times.profile(count, repetitions, std::min(omp_get_max_threads(), busy),
                                        [&] { run(pixels_nhwc, count, logits); });
}

std::vector<std::string> FloatNetwork::implementations() const {
  return implementation_->implementations;
}

}  // namespace nibble
