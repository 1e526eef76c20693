#include "graph/onednn/int8_network.h"

#include <omp.h>

#include <algorithm>
#include <array>

#include "graph/network/convolution_shape.h"
#include "graph/network/error.h"
#include "graph/network/factors.h"
#include "graph/network/padded_shortcut.h"
#include "graph/onednn/batch_tiles.h"
#include "graph/onednn/image_team.h"
#include "graph/onednn/own_convolution.h"
#include "graph/onednn/primitives.h"
#include "graph/onednn/step_times.h"
#include "kernels/features.h"
#include "kernels/requantize.h"

// A batch runs as batch_tiles.h says. Of a batch of one the threads share the rows, each with a primitive for
// its own. Between the convolutions of a block a thread computes the rows that it needs of its neighbours'
// itself, so that threads wait for each other once in a block:
//
//   2 threads, 32x32:   x rows 0..17  -> inner rows 0..16  -> output rows 0..15
//                       x rows 14..31 -> inner rows 15..31 -> output rows 16..31
//
// What a primitive computes is docs/formats.md's formula and nothing else: the weights' scale is S, the bias
// is B, the sum post-op's scale is s_r / s_out, the residual is read where the output goes, and the
// saturation to u8 is the ReLU. There are no source or destination scales and no zero points.

namespace nibble {
namespace {

using dnnl::memory;
using Type = memory::data_type;
using Tag = memory::format_tag;

constexpr int kGroup = 16;
constexpr int kScalesArgument = DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS;

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
  std::size_t input_offset, input_size, output_offset, output_size;  // of these rows in the maps
};

/// One thread's part of a block.
struct BlockRows {
  RowsVariant conv1, conv2, projection;
};

struct Layer {
  Convolution shape;  // of what is computed: the first one reads the bordered image
  std::size_t step;
  const QuantizedLayer* quantized;
  dnnl::primitive_attr attributes;
  bool is_signed = false;                // the output
  std::array<Variant, kForms> variants;  // empty where our own kernel runs
  WeightCopies weights;
  AlignedBuffer<float> scale, offset;

  std::unique_ptr<OwnConvolution> own;  // instead of the variants where oneDNN would saturate
};

/// Without VNNI oneDNN's vpmaddubsw adds the products of input channels 2 i and 2 i + 1 of a tap in 16 bits.
bool pairs_are_proved(const QuantizedLayer& layer, const Convolution& shape) {
  const auto channels = index(shape.input_channels);
  for (std::size_t tap = 0; tap < layer.weights.size(); tap += channels) {
    for (std::size_t i = 0; i < channels; i += 2) {
      const int first = layer.weights[tap + i];
      const int second = i + 1 < channels ? layer.weights[tap + i + 1] : 0;
      if ((std::max(first, 0) + std::max(second, 0)) * 255 > 32767) return false;
      if ((std::min(first, 0) + std::min(second, 0)) * 255 < -32768) return false;
    }
  }
  return true;
}

void require_8_bits(const QuantizedNetwork& quantized) {
  const QuantizedParameters& parameters = quantized.parameters;
  bool narrow = parameters.weight_bits == 8 && parameters.activation_bits == 8;
  for (const QuantizedLayer& layer : parameters.convolutions) narrow = narrow && layer.weight_bits == 8;
  for (const QuantizedBlock& block : parameters.blocks) {
    narrow = narrow && block.input_bits == 8 && block.middle_bits == 8;
  }
  if (!narrow) {
    throw InputError("oneDNN runs networks of 8-bit weights and activations only, this one has " +
                     std::to_string(parameters.weight_bits) + " and " +
                     std::to_string(parameters.activation_bits) + " bits; use the integer network");
  }
}

}  // namespace

bool onednn_has_vnni() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::isa_default:
    case dnnl::cpu_isa::sse41:
    case dnnl::cpu_isa::avx:
    case dnnl::cpu_isa::avx2:
    case dnnl::cpu_isa::avx512_core:
      return false;
    default:
      return true;
  }
}

bool onednn_is_exact(const QuantizedNetwork& quantized) {
  if (onednn_has_vnni()) return true;
  for (std::size_t i = 0; i < quantized.network.convolutions.size(); ++i) {
    if (!pairs_are_proved(quantized.parameters.convolutions[i], quantized.network.convolutions[i])) {
      return false;
    }
  }
  return true;
}

struct Int8Network::Implementation {
  Implementation(const QuantizedNetwork& quantized, int max_batch, UnprovedLayers unproved);
  void run(const std::uint8_t* pixels, int count, float* logits);

  StepTimes times{omp_get_max_threads()};
  int image_threads = 1;  // that work on a batch of one
  std::vector<std::string> implementations;
  bool own_kernels = false;

 private:
  struct Worker {
    dnnl::stream stream{cpu_engine()};
    AlignedBuffer<std::byte> scratchpad;
    AlignedBuffer<std::uint8_t> own;    // scratch memory of our own kernels
    AlignedBuffer<std::uint8_t> image;  // a tile's pixels with their border
    GroupMaps<std::uint8_t> maps;
    std::vector<std::int32_t> sums;
  };

  void make_layer(std::size_t number, const LayerFactors& factors, Residual residual, float ratio,
                  bool is_signed, UnprovedLayers unproved);
  Variant make_variant(Layer& layer, const OnednnConvolution& geometry, int threads);
  RowsVariant make_rows(Layer& layer, int first, int end);
  void divide_image();

  void run_group(int thread, const std::uint8_t* pixels, int count, float* logits);
  void run_image(const std::uint8_t* pixels, float* logits);
  void run_rows(ImageTeam& team, int thread, const std::uint8_t* pixels, float* logits);
  void run_block_rows(std::size_t number, const BlockRows& part, int thread, const std::uint8_t* x,
                      std::uint8_t* to);
  void add_border(int thread, const std::uint8_t* pixels, int images);
  void execute(const Layer& layer, const Variant& variant, int memories, int thread, const std::uint8_t* x,
               std::uint8_t* y);
  void convolve(int number, int thread, Form form, int images, const std::uint8_t* x, std::uint8_t* y);
  void convolve_own(const Layer& layer, int thread, int images, const std::uint8_t* x, std::uint8_t* y);
  void pad_shortcut(int thread, const Block& block, std::size_t first_row, std::size_t end_row,
                    const std::uint8_t* x, std::uint8_t* shortcut);
  void classify(int thread, int images, const std::uint8_t* x, float* logits);

  QuantizedNetwork quantized_;
  NetworkFactors factors_;
  int threads_;
  int group_;  // images in a group, at most
  std::vector<Layer> layers_;
  std::vector<Stage> stages_;
  std::vector<Worker> workers_;
  std::size_t border_step_, classify_step_, shortcut_step_, wait_step_;

  // Of a batch of one, by thread; empty where it has one thread.
  std::vector<RowsVariant> first_rows_;
  std::vector<std::vector<BlockRows>> block_rows_;
  Turns turns_{kMostImageThreads};
};

Int8Network::Implementation::Implementation(const QuantizedNetwork& quantized, int max_batch,
                                            UnprovedLayers unproved)
    : quantized_(quantized),
      factors_(make_factors(quantized)),
      threads_(omp_get_max_threads()),
      group_(std::clamp((max_batch + threads_ - 1) / threads_, 1, kGroup)),
      workers_(index(threads_)) {
  const NetworkDescription& network = quantized_.network;
  std::vector<Residual> residual(network.convolutions.size(), Residual::none);
  std::vector<float> ratio(network.convolutions.size());
  std::vector<bool> is_signed(network.convolutions.size());
  for (std::size_t i = 0; i < network.blocks.size(); ++i) {
    const Block& block = network.blocks[i];
    const bool projected = block.shortcut == Shortcut::projection;
    residual[index(block.conv2)] = projected ? Residual::projection : Residual::stream;
    ratio[index(block.conv2)] = factors_.blocks[i].residual_ratio;
    if (projected) is_signed[index(block.projection)] = true;
  }
  const SingleThreadedCreation single;
  border_step_ = times.add("border", 0);
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    make_layer(i, factors_.convolutions[i], residual[i], ratio[i], is_signed[i], unproved);
  }
  classify_step_ =
      times.add("pool and linear", static_cast<double>(network.feature_channels * network.classes));
  shortcut_step_ = times.add("padded shortcuts", 0);
  wait_step_ = times.add("waits", 0);
  if (threads_ > 1 && !own_kernels) divide_image();
  stages_ = divide_into_stages<std::uint8_t>(network, kGroup);
  for (Worker& worker : workers_) {
    worker.image.reset(index(kGroup) * input_size(layers_[0].shape));
    for (std::size_t i = 0; i < worker.image.size(); ++i) worker.image.data()[i] = kBorderPixel[i % 3];
    worker.maps.reset(network, group_);
    worker.sums.resize(index(network.feature_channels));
  }
}

void Int8Network::Implementation::make_layer(std::size_t number, const LayerFactors& factors,
                                             Residual residual, float ratio, bool is_signed,
                                             UnprovedLayers unproved) {
  const QuantizedLayer& quantized = quantized_.parameters.convolutions[number];
  Layer& layer = layers_.emplace_back();
  layer.shape = computed_shape(quantized_.network, static_cast<int>(number));
  layer.step = times.add(layer.shape.name,
                         static_cast<double>(quantized_.network.convolutions[number].multiply_accumulates()));
  layer.quantized = &quantized;
  layer.scale.reset(factors.scale.size());
  layer.offset.reset(factors.offset.size());
  std::copy(factors.scale.begin(), factors.scale.end(), layer.scale.data());
  std::copy(factors.offset.begin(), factors.offset.end(), layer.offset.data());

  const bool right = onednn_has_vnni() || pairs_are_proved(quantized, layer.shape);
  if (!right && unproved == UnprovedLayers::exact) {
    // The image's border is not the copy's to make: the kernel's planes have one.
    const bool first = number == 0;
    layer.own = std::make_unique<OwnConvolution>(
        quantized_.network.convolutions[number], quantized, factors, is_signed, residual, ratio,
        first ? std::vector<std::uint8_t>(std::begin(kBorderPixel), std::end(kBorderPixel))
              : std::vector<std::uint8_t>());
    for (Worker& worker : workers_) {
      if (worker.own.size() < layer.own->scratch_bytes()) worker.own.reset(layer.own->scratch_bytes());
    }
    implementations.push_back(layer.shape.name + " " + layer.own->kernel_name());
    own_kernels = true;
    return;
  }
  dnnl::primitive_attr attributes = user_scratchpad();
  attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1);
  if (residual != Residual::none) {
    dnnl::post_ops after;
    after.append_sum(ratio, 0, residual == Residual::projection ? Type::s8 : Type::u8);
    attributes.set_post_ops(after);
  }
  layer.attributes = attributes;
  layer.is_signed = is_signed;
  layer.variants = {
      make_variant(layer, {layer.shape, tile_images<std::uint8_t>(layer.shape, kGroup), Type::u8}, threads_),
      make_variant(layer, {layer.shape, 1, Type::u8}, threads_)};
  implementations.push_back(layer.shape.name + " " + layer.variants[0].implementation);
}

Variant Int8Network::Implementation::make_variant(Layer& layer, const OnednnConvolution& geometry,
                                                  int threads) {
  using namespace dnnl;
  const memory::desc weight(geometry.weight_dims, Type::s8, Tag::any);
  const memory::desc bias({layer.shape.output_channels}, Type::f32, Tag::a);
  const memory::desc destination(geometry.destination.get_dims(), layer.is_signed ? Type::s8 : Type::u8,
                                 Tag::nhwc);
  const auto description = quickest([&] {
    return convolution_forward::primitive_desc(cpu_engine(), prop_kind::forward_inference,
                                               algorithm::convolution_direct, geometry.source, weight, bias,
                                               destination, geometry.strides, geometry.padding_before,
                                               geometry.padding_after, layer.attributes);
  });
  const memory::desc scratchpad = description.scratchpad_desc();
  for (Worker& worker : workers_) {
    if (worker.scratchpad.size() < scratchpad.get_size()) worker.scratchpad.reset(scratchpad.get_size());
  }
  Variant variant;
  const std::vector<std::int8_t> integers(layer.quantized->weights.begin(), layer.quantized->weights.end());
  variant.weight = layer.weights.in(description.weights_desc(), {geometry.weight_dims, Type::s8, Tag::ohwi},
                                    integers.data());
  variant.implementation = description.impl_info_str();
  variant.primitive = SharedPrimitive(convolution_forward(description),
                                      {{DNNL_ARG_SRC, geometry.source},
                                       {DNNL_ARG_WEIGHTS, description.weights_desc()},
                                       {DNNL_ARG_BIAS, bias},
                                       {DNNL_ARG_DST, destination},
                                       {DNNL_ARG_SCRATCHPAD, scratchpad},
                                       {kScalesArgument, bias}},
                                      threads);
  return variant;
}

RowsVariant Int8Network::Implementation::make_rows(Layer& layer, int first, int end) {
  OnednnConvolution geometry(layer.shape, 1, Type::u8);
  const std::size_t input_row = index(layer.shape.input_width * layer.shape.input_channels);
  const std::size_t output_row = index(layer.shape.output_width() * layer.shape.output_channels);
  const int first_input = geometry.take_rows(layer.shape, first, end);
  const auto input_rows = static_cast<std::size_t>(geometry.source.get_dims()[2]);
  return {make_variant(layer, geometry, 1), index(first_input) * input_row, input_rows * input_row,
          index(first) * output_row, index(end - first) * output_row};
}

/// Makes the primitives of a batch of one.
void Int8Network::Implementation::divide_image() {
  image_threads = divide_rows(layers_[0].shape.output_height(), threads_, [&](int first, int end) {
    first_rows_.push_back(make_rows(layers_[0], first, end));
  });
  for (const Block& block : quantized_.network.blocks) {
    std::vector<BlockRows>& parts = block_rows_.emplace_back();
    Layer& conv1 = layers_[index(block.conv1)];
    Layer& conv2 = layers_[index(block.conv2)];
    divide_rows(conv2.shape.output_height(), threads_, [&](int first, int end) {
      BlockRows part;
      part.conv2 = make_rows(conv2, first, end);
      const std::size_t row = index(conv2.shape.input_width * conv2.shape.input_channels);
      const auto first_inner = static_cast<int>(part.conv2.input_offset / row);
      const auto end_inner = first_inner + static_cast<int>(part.conv2.input_size / row);
      part.conv1 = make_rows(conv1, first_inner, end_inner);
      if (block.shortcut == Shortcut::projection) {
        part.projection = make_rows(layers_[index(block.projection)], first, end);
      }
      parts.push_back(std::move(part));
    });
  }
}

void Int8Network::Implementation::convolve_own(const Layer& layer, int thread, int images,
                                               const std::uint8_t* x, std::uint8_t* y) {
  const Convolution& shape = layer.shape;
  const std::size_t row = index(shape.input_width * shape.input_channels);
  // The first layer's maps have their border around them; the kernel's planes bring their own.
  const std::size_t inside = &layer == layers_.data() ? row + index(shape.input_channels) : 0;
  for (int image = 0; image < images; ++image) {
    layer.own->run(x + index(image) * input_size(shape) + inside, row, y + index(image) * output_size(shape),
                   workers_[index(thread)].own.data());
  }
}

/// `memories`: which of the primitive's sets of memories.
void Int8Network::Implementation::execute(const Layer& layer, const Variant& variant, int memories,
                                          int thread, const std::uint8_t* x, std::uint8_t* y) {
  const Worker& worker = workers_[index(thread)];
  variant.primitive.run(
      memories, worker.stream,
      {x, variant.weight, layer.offset.data(), y, worker.scratchpad.data(), layer.scale.data()});
}

void Int8Network::Implementation::convolve(int number, int thread, Form form, int images,
                                           const std::uint8_t* x, std::uint8_t* y) {
  const Layer& layer = layers_[index(number)];
  if (layer.own != nullptr) {
    convolve_own(layer, thread, images, x, y);
  } else {
    execute(layer, layer.variants[static_cast<std::size_t>(form)], thread, thread, x, y);
  }
  times.mark(thread, layer.step);
}

void Int8Network::Implementation::pad_shortcut(int thread, const Block& block, std::size_t first_row,
                                               std::size_t end_row, const std::uint8_t* x,
                                               std::uint8_t* shortcut) {
  pad_shortcut_rows(quantized_.network.convolutions[index(block.conv1)], first_row, end_row, x, shortcut);
  times.mark(thread, shortcut_step_);
}

/// The images with their border into the thread's own buffer.
void Int8Network::Implementation::add_border(int thread, const std::uint8_t* pixels, int images) {
  std::uint8_t* bordered = workers_[index(thread)].image.data();
  const Convolution& shape = quantized_.network.convolutions[0];
  const std::size_t border = index(shape.padding);
  const std::size_t channels = index(shape.input_channels);
  const std::size_t row_bytes = index(shape.input_width) * channels;
  const std::size_t rows = index(shape.input_height);
  const std::size_t bordered_row = row_bytes + 2 * border * channels;
  for (std::size_t row = 0; row < index(images) * rows; ++row) {
    const std::size_t image_row = row / rows * (rows + 2 * border) + row % rows + border;
    std::copy_n(pixels + row * row_bytes, row_bytes, bordered + image_row * bordered_row + border * channels);
  }
  times.mark(thread, border_step_);
}

void Int8Network::Implementation::classify(int thread, int images, const std::uint8_t* x, float* logits) {
  const NetworkDescription& network = quantized_.network;
  const int positions = network.feature_size * network.feature_size;
  const int channels = network.feature_channels;
  std::int32_t* sums = workers_[index(thread)].sums.data();
  for (int image = 0; image < images; ++image) {
    // To the pool a channel is a lane: nhwc has the channels innermost.
    pool_image_lanes(x + index(image) * index(positions * channels), positions, 1, channels, sums);
    linear<std::int32_t>(sums, channels, 1, 1, quantized_.parameters.linear.weights, factors_.linear.scale,
                         factors_.linear.offset, logits + index(image) * index(network.classes));
  }
  times.mark(thread, classify_step_);
}

void Int8Network::Implementation::run_group(int thread, const std::uint8_t* pixels, int count,
                                            float* logits) {
  times.begin(thread);
  const NetworkDescription& network = quantized_.network;
  const Worker& worker = workers_[index(thread)];
  const Convolution& first = network.convolutions[0];
  for_tiles(count, tile_images<std::uint8_t>(first, kGroup), [&](Form form, int image, int images) {
    add_border(thread, pixels + index(image) * input_size(first), images);
    convolve(0, thread, form, images, worker.image.data(),
             worker.maps.x.data() + index(image) * output_size(first));
  });
  const std::uint8_t* features = run_blocks(
      network, stages_, count, worker.maps,
      [&](int number, Form form, int images, const std::uint8_t* from, std::uint8_t* to) {
        convolve(number, thread, form, images, from, to);
      },
      [&](const Block& block, int images, const std::uint8_t* from, std::uint8_t* to) {
        const Convolution& shape = network.convolutions[index(block.conv1)];
        pad_shortcut(thread, block, 0, index(images * shape.output_height()), from, to);
      });
  classify(thread, count, features, logits);
}

void Int8Network::Implementation::run_image(const std::uint8_t* pixels, float* logits) {
  ImageTeam team(turns_);
#pragma omp parallel num_threads(image_threads)
  run_rows(team, omp_get_thread_num(), pixels, logits);
  team.rethrow();
}

/// One thread's part of an image. The maps are the first worker's, but for those inside of blocks.
void Int8Network::Implementation::run_rows(ImageTeam& team, int thread, const std::uint8_t* pixels,
                                           float* logits) {
  const auto for_parts = [&](const auto& parts, const auto& work) {
    team.step(parts, work);
    times.mark(thread, wait_step_);
  };
  std::uint8_t* x = workers_[0].maps.x.data();
  std::uint8_t* next = workers_[0].maps.next_x.data();
  times.begin(thread);
  add_border(thread, pixels, 1);
  for_parts(first_rows_, [&](const RowsVariant& rows) {
    execute(layers_[0], rows.variant, 0, thread, workers_[index(thread)].image.data() + rows.input_offset,
            x + rows.output_offset);
    times.mark(thread, layers_[0].step);
  });
  for (std::size_t number = 0; number < block_rows_.size(); ++number) {
    for_parts(block_rows_[number],
              [&](const BlockRows& part) { run_block_rows(number, part, thread, x, next); });
    std::swap(x, next);
  }
  if (thread == 0) classify(thread, 1, x, logits);
}

/// Reads `x`, writes only its own rows of `to`.
void Int8Network::Implementation::run_block_rows(std::size_t number, const BlockRows& part, int thread,
                                                 const std::uint8_t* x, std::uint8_t* to) {
  const Block& block = quantized_.network.blocks[number];
  const auto run = [&](int convolution, const RowsVariant& rows, const std::uint8_t* from,
                       std::uint8_t* output) {
    const Layer& layer = layers_[index(convolution)];
    execute(layer, rows.variant, 0, thread, from, output);
    times.mark(thread, layer.step);
  };
  std::uint8_t* inner = workers_[index(thread)].maps.inner.data();
  std::uint8_t* output = to + part.conv2.output_offset;
  run(block.conv1, part.conv1, x + part.conv1.input_offset, inner);
  if (block.shortcut == Shortcut::projection) {
    run(block.projection, part.projection, x + part.projection.input_offset, output);
  } else if (block.shortcut == Shortcut::pad_channels) {
    const Convolution& shape = quantized_.network.convolutions[index(block.conv2)];
    const std::size_t row = index(shape.output_width() * shape.output_channels);
    const std::size_t first = part.conv2.output_offset / row;
    pad_shortcut(thread, block, first, first + part.conv2.output_size / row, x, to);
  } else {
    // Neighbours still read x.
    std::copy_n(x + part.conv2.output_offset, part.conv2.output_size, output);
  }
  run(block.conv2, part.conv2, inner, output);
}

void Int8Network::Implementation::run(const std::uint8_t* pixels, int count, float* logits) {
  if (count == 1 && !first_rows_.empty()) return run_image(pixels, logits);
  const std::size_t image = input_size(quantized_.network.convolutions[0]);
  for_groups(threads_, group_, count, [&](int thread, int first, int images) {
    run_group(thread, pixels + index(first) * image, images,
              logits + index(first * quantized_.network.classes));
  });
}

Int8Network::Int8Network(const QuantizedNetwork& quantized, int max_batch, UnprovedLayers unproved) {
  require_8_bits(quantized);
  try {
    implementation_ = std::make_unique<Implementation>(quantized, max_batch, unproved);
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN cannot run this 8-bit network on this CPU: ") + error.what());
  }
}
Int8Network::Int8Network(Int8Network&&) noexcept = default;
Int8Network& Int8Network::operator=(Int8Network&&) noexcept = default;
Int8Network::~Int8Network() = default;

void Int8Network::run(std::span<const std::uint8_t> pixels_nhwc, int count, std::span<float> logits) {
  try {
    implementation_->run(pixels_nhwc.data(), count, logits.data());
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN failed to run the 8-bit network: ") + error.what());
  }
}

std::vector<LayerTime> Int8Network::profile(std::span<const std::uint8_t> pixels_nhwc, int count,
                                            int repetitions) {
  std::vector<float> logits(pixels_nhwc.size());  // more than enough for `count` images' classes
  const int busy = count == 1 ? implementation_->image_threads : count;
  return implementation_->times.profile(count, repetitions, std::min(omp_get_max_threads(), busy),
                                        [&] { run(pixels_nhwc, count, logits); });
}

std::string Int8Network::engine() const {
  return implementation_->own_kernels ? "onednn+nibble" : "onednn";
}

std::vector<std::string> Int8Network::implementations() const {
  return implementation_->implementations;
}

}  // namespace nibble
