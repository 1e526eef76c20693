#include "graph/onednn/int8_unfused_network.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "graph/network/convolution_shape.h"
#include "graph/network/error.h"
#include "graph/network/float_parameters.h"
#include "graph/network/padded_shortcut.h"
#include "graph/onednn/primitives.h"
#include "graph/onednn/step_times.h"
#include "kernels/requantize.h"

// A list of operations, each a primitive of its own that uses all threads, as an engine does that knows
// nothing of fusion; tensors are s8 and live in buffers of `tile` images. Batches are cut into tiles so that
// the tensors stay in the caches; images that do not fill a tile run one by one on primitives for one image.
//
// All scales of an operation are multiplied beforehand: a convolution's weights have the scale S = s_in * s_w
// / s_out, its bias is in units of the output; batch normalization's statistics and shift are in units of the
// integers; an addition has one ratio for each source.

namespace nibble {
namespace {

using dnnl::memory;
using Type = memory::data_type;
using Tag = memory::format_tag;

constexpr int kTile = 16;

std::size_t index(int value) {
  return static_cast<std::size_t>(value);
}

/// One primitive with everything it needs; addresses are set once.
struct Operation {
  std::size_t step;  // of StepTimes
  dnnl::primitive primitive;
  std::vector<dnnl_exec_arg_t> arguments;
};

/// Operations and buffers for one number of images.
struct Program {
  int images = 0;
  AlignedBuffer<std::uint8_t> pixels;               // bordered
  std::vector<AlignedBuffer<std::int8_t>> buffers;  // maps: stream, convolution, middle, shortcut
  std::vector<memory> memories;                     // what the operations' arguments point to
  std::vector<Operation> operations;
  struct Padding {
    std::size_t before_operation;
    int block;
  };
  std::vector<Padding> paddings;  // shortcuts A
};

}  // namespace

struct Int8UnfusedNetwork::Implementation {
  Implementation(const UnfusedNetwork& unfused, int max_batch);
  void run(const std::uint8_t* pixels, int count, float* logits);

  StepTimes times{1};
  std::vector<std::string> implementations;

 private:
  enum Buffer { stream, sums, middle, shortcut, buffer_count };

  const UnfusedNetwork unfused_;
  const NetworkDescription& network_;
  std::vector<std::shared_ptr<AlignedBuffer<std::byte>>> constants_;
  dnnl::stream order_{cpu_engine()};
  AlignedBuffer<std::byte> scratchpad_;
  std::vector<Program> programs_;  // for a tile, if batches are so large, and for one image
  std::map<std::string, std::size_t> steps_;
  std::size_t border_step_, shortcut_step_, classify_step_;

  std::size_t step_named(const std::string& name, double multiply_accumulates);
  template <typename T>
  void* keep(const std::vector<T>& values);
  void build(Program& program);
  void add(Program& program, std::size_t step, const dnnl::primitive& primitive,
           const std::vector<std::pair<int, memory>>& arguments, const memory::desc& scratchpad);
  void convolution(Program& program, int number, float input_scale, Buffer from, Buffer to);
  void normalization(Program& program, int number, Buffer at);
  void relu(Program& program, std::size_t step, const Convolution& shape, Buffer at);
  void addition(Program& program, int block, Buffer other, float other_scale);
  void pad_shortcut(Program& program, int block) const;
  void run_program(Program& program, const std::uint8_t* pixels, float* logits);
  void classify(const Program& program, float* logits) const;

  memory::desc map(const Program& program, const Convolution& shape) const {
    return {{program.images, shape.output_channels, shape.output_height(), shape.output_width()},
            Type::s8,
            Tag::nhwc};
  }
  memory in(Program& program, const memory::desc& description, Buffer buffer) const {
    return {description, cpu_engine(), program.buffers[buffer].data()};
  }
};

/// Both programs have the same steps.
std::size_t Int8UnfusedNetwork::Implementation::step_named(const std::string& name,
                                                           double multiply_accumulates) {
  const auto known = steps_.find(name);
  if (known != steps_.end()) return known->second;
  return steps_[name] = times.add(name, multiply_accumulates);
}

template <typename T>
void* Int8UnfusedNetwork::Implementation::keep(const std::vector<T>& values) {
  auto& constant =
      constants_.emplace_back(std::make_shared<AlignedBuffer<std::byte>>(values.size() * sizeof(T)));
  std::copy_n(reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(T), constant->data());
  return constant->data();
}

void Int8UnfusedNetwork::Implementation::add(Program& program, std::size_t step,
                                             const dnnl::primitive& primitive,
                                             const std::vector<std::pair<int, memory>>& arguments,
                                             const memory::desc& scratchpad) {
  Operation operation{step, primitive, {}};
  for (const auto& [kind, argument] : arguments) {
    program.memories.push_back(argument);
    operation.arguments.push_back({kind, argument.get()});
  }
  if (scratchpad_.size() < scratchpad.get_size()) scratchpad_.reset(scratchpad.get_size());
  program.memories.push_back(memory(scratchpad, cpu_engine(), DNNL_MEMORY_NONE));
  operation.arguments.push_back({DNNL_ARG_SCRATCHPAD, program.memories.back().get()});
  program.operations.push_back(std::move(operation));
}

void Int8UnfusedNetwork::Implementation::convolution(Program& program, int number, float input_scale,
                                                     Buffer from, Buffer to) {
  using namespace dnnl;
  const bool first = number == 0;
  const Convolution shape = computed_shape(network_, number);
  const UnfusedConvolution& values = unfused_.parameters.convolutions[index(number)];
  const OnednnConvolution geometry(shape, program.images, first ? Type::u8 : Type::s8);
  const memory::desc destination = map(program, shape);
  const memory::desc channels({shape.output_channels}, Type::f32, Tag::a);
  const memory::desc weights(geometry.weight_dims, Type::s8, Tag::any);
  primitive_attr attributes = user_scratchpad();
  attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1);
  const auto description = quickest([&] {
    return convolution_forward::primitive_desc(
        cpu_engine(), prop_kind::forward_inference, algorithm::convolution_direct, geometry.source, weights,
        channels, destination, geometry.strides, geometry.padding_before, geometry.padding_after, attributes);
  });
  if (program.images == 1) implementations.push_back(shape.name + " " + description.impl_info_str());

  std::vector<float> scale;
  std::vector<float> offset(values.weight_scale.size());
  const std::size_t taps = values.weights.size() / offset.size();
  for (std::size_t c = 0; c < offset.size(); ++c) {
    scale.push_back(requantize_scale(input_scale, values.weight_scale[c], values.convolution_scale));
    // The first convolution sees raw pixels instead of pixels - 255 * mean.
    double mean = 0;
    for (std::size_t i = 0; first && i < taps; ++i) {
      mean += 255.0 * double{kPixelMean[i % 3]} * values.weights[c * taps + i];
    }
    offset[c] = static_cast<float>(-mean * double{values.weight_scale[c]} / double{values.convolution_scale});
  }
  std::vector<std::int8_t> integers(values.weights);
  memory plain({geometry.weight_dims, Type::s8, Tag::ohwi}, cpu_engine(), integers.data());
  const memory::desc layout = description.weights_desc();
  memory reordered(layout, cpu_engine(), keep(std::vector<std::byte>(layout.get_size())));
  reorder(plain, reordered).execute(order_, plain, reordered);
  order_.wait();

  const memory source = first ? memory(geometry.source, cpu_engine(), program.pixels.data())
                              : in(program, geometry.source, from);
  add(program,
      step_named(shape.name,
                 static_cast<double>(network_.convolutions[index(number)].multiply_accumulates())),
      convolution_forward(description),
      {{DNNL_ARG_SRC, source},
       {DNNL_ARG_WEIGHTS, reordered},
       {DNNL_ARG_BIAS, memory(channels, cpu_engine(), keep(offset))},
       {DNNL_ARG_DST, in(program, destination, to)},
       {DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, memory(channels, cpu_engine(), keep(scale))}},
      description.scratchpad_desc());
}

void Int8UnfusedNetwork::Implementation::normalization(Program& program, int number, Buffer at) {
  using namespace dnnl;
  const Convolution& shape = network_.convolutions[index(number)];
  const UnfusedConvolution& values = unfused_.parameters.convolutions[index(number)];
  // With x = s_x x_q and y = s_y y_q: gamma (x - mean) / sqrt(variance + epsilon) + beta becomes the same in
  // integers with mean / s_x, variance / s_x^2, epsilon / s_x^2, gamma / s_y and beta / s_y.
  const double input = double{values.convolution_scale};
  const double output = double{values.output_scale};
  std::vector<float> mean, variance, gamma, beta;
  for (std::size_t c = 0; c < values.gamma.size(); ++c) {
    mean.push_back(static_cast<float>(double{values.mean[c]} / input));
    variance.push_back(static_cast<float>(double{values.variance[c]} / (input * input)));
    gamma.push_back(static_cast<float>(double{values.gamma[c]} / output));
    beta.push_back(static_cast<float>(double{values.beta[c]} / output));
  }
  const memory::desc data = map(program, shape);
  const memory::desc channels({shape.output_channels}, Type::f32, Tag::a);
  const batch_normalization_forward::primitive_desc description(
      cpu_engine(), prop_kind::forward_inference, data, data,
      static_cast<float>(kBatchNormalizationEpsilon / (input * input)),
      normalization_flags::use_global_stats | normalization_flags::use_scale | normalization_flags::use_shift,
      user_scratchpad());
  const auto constant = [&](const std::vector<float>& numbers) {
    return memory(channels, cpu_engine(), keep(numbers));
  };
  add(program, step_named(shape.name + " batch normalization", 0), batch_normalization_forward(description),
      {{DNNL_ARG_SRC, in(program, data, at)},
       {DNNL_ARG_MEAN, constant(mean)},
       {DNNL_ARG_VARIANCE, constant(variance)},
       {DNNL_ARG_SCALE, constant(gamma)},
       {DNNL_ARG_SHIFT, constant(beta)},
       {DNNL_ARG_DST, in(program, data, at)}},
      description.scratchpad_desc());
}

void Int8UnfusedNetwork::Implementation::relu(Program& program, std::size_t step, const Convolution& shape,
                                              Buffer at) {
  using namespace dnnl;
  const memory::desc data = map(program, shape);
  const eltwise_forward::primitive_desc description(cpu_engine(), prop_kind::forward_inference,
                                                    algorithm::eltwise_relu, data, data, 0.0F, 0.0F,
                                                    user_scratchpad());
  add(program, step, eltwise_forward(description),
      {{DNNL_ARG_SRC, in(program, data, at)}, {DNNL_ARG_DST, in(program, data, at)}},
      description.scratchpad_desc());
}

/// stream = normalized sums + shortcut, each with its ratio to the block's output scale.
void Int8UnfusedNetwork::Implementation::addition(Program& program, int block, Buffer other,
                                                  float other_scale) {
  using namespace dnnl;
  const int number = network_.blocks[index(block)].conv2;
  const Convolution& shape = network_.convolutions[index(number)];
  const float output_scale = unfused_.parameters.block_scale[index(block)];
  const memory::desc data = map(program, shape);
  const memory::desc one({1}, Type::f32, Tag::a);
  primitive_attr attributes = user_scratchpad();
  attributes.set_scales_mask(DNNL_ARG_SRC_0, 0);
  attributes.set_scales_mask(DNNL_ARG_SRC_1, 0);
  const binary::primitive_desc description(cpu_engine(), algorithm::binary_add, data, data, data, attributes);
  const auto ratio = [&](float scale) {
    return memory(one, cpu_engine(), keep(std::vector<float>{scale_ratio(scale, output_scale)}));
  };
  add(program, step_named("blocks." + std::to_string(block) + " addition", 0), binary(description),
      {{DNNL_ARG_SRC_0, in(program, data, sums)},
       {DNNL_ARG_SRC_1, in(program, data, other)},
       {DNNL_ARG_DST, in(program, data, stream)},
       {DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC_0,
        ratio(unfused_.parameters.convolutions[index(number)].output_scale)},
       {DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC_1, ratio(other_scale)}},
      description.scratchpad_desc());
}

void Int8UnfusedNetwork::Implementation::build(Program& program) {
  const UnfusedParameters& parameters = unfused_.parameters;
  std::size_t largest = 0;
  for (const Convolution& shape : network_.convolutions) {
    largest = std::max(largest, index(shape.output_channels * shape.output_height() * shape.output_width()));
  }
  for (int i = 0; i < buffer_count; ++i) {
    program.buffers.emplace_back(largest * index(program.images));
  }
  const std::size_t side = index(network_.image_size + 2);
  program.pixels.reset(index(program.images) * side * side * 3);
  for (std::size_t i = 0; i < program.pixels.size(); ++i) program.pixels.data()[i] = kBorderPixel[i % 3];

  const auto relu_after = [&](int number, Buffer at) {
    const Convolution& shape = network_.convolutions[index(number)];
    relu(program, step_named(shape.name + " ReLU", 0), shape, at);
  };
  convolution(program, 0, 1.0F, stream, stream);
  normalization(program, 0, stream);
  relu_after(0, stream);
  float stream_scale = parameters.convolutions[0].output_scale;
  for (std::size_t i = 0; i < network_.blocks.size(); ++i) {
    const Block& block = network_.blocks[i];
    convolution(program, block.conv1, stream_scale, stream, middle);
    normalization(program, block.conv1, middle);
    relu_after(block.conv1, middle);
    convolution(program, block.conv2, parameters.convolutions[index(block.conv1)].output_scale, middle, sums);
    normalization(program, block.conv2, sums);
    Buffer other = stream;
    float other_scale = stream_scale;
    if (block.shortcut == Shortcut::projection) {
      other = shortcut;
      convolution(program, block.projection, stream_scale, stream, shortcut);
      normalization(program, block.projection, shortcut);
      other_scale = parameters.convolutions[index(block.projection)].output_scale;
    } else if (block.shortcut == Shortcut::pad_channels) {
      other = shortcut;
      program.paddings.push_back({program.operations.size(), static_cast<int>(i)});
    }
    addition(program, static_cast<int>(i), other, other_scale);
    relu(program, step_named("blocks." + std::to_string(i) + " ReLU", 0),
         network_.convolutions[index(block.conv2)], stream);
    stream_scale = parameters.block_scale[i];
  }
}

Int8UnfusedNetwork::Implementation::Implementation(const UnfusedNetwork& unfused, int max_batch)
    : unfused_(unfused), network_(unfused_.network) {
  border_step_ = step_named("border", 0);
  if (max_batch >= kTile) programs_.emplace_back().images = kTile;
  programs_.emplace_back().images = 1;
  for (Program& program : programs_) build(program);
  shortcut_step_ = step_named("padded shortcuts", 0);
  classify_step_ =
      step_named("pool and linear", static_cast<double>(network_.feature_channels * network_.classes));
  // The largest scratchpad is known now; one serves all operations.
  for (Program& program : programs_) {
    for (Operation& operation : program.operations) {
      dnnl_memory_set_data_handle(operation.arguments.back().memory, scratchpad_.data());
    }
  }
}

void Int8UnfusedNetwork::Implementation::pad_shortcut(Program& program, int block) const {
  const Convolution& shape = network_.convolutions[index(network_.blocks[index(block)].conv1)];
  const std::int8_t* x = program.buffers[stream].data();
  std::int8_t* result = program.buffers[shortcut].data();
#pragma omp parallel for
  for (int row = 0; row < program.images * shape.output_height(); ++row) {
    pad_shortcut_rows(shape, index(row), index(row + 1), x, result);
  }
}

/// Pool and linear layer as in the fused network: exact sums, one scale a class.
void Int8UnfusedNetwork::Implementation::classify(const Program& program, float* logits) const {
  const UnfusedParameters& parameters = unfused_.parameters;
  const std::size_t channels = index(network_.feature_channels);
  const std::size_t pixels = index(network_.feature_size * network_.feature_size);
  const std::size_t classes = index(network_.classes);
  const float stream_scale = parameters.block_scale.empty() ? parameters.convolutions[0].output_scale
                                                            : parameters.block_scale.back();
#pragma omp parallel for
  for (int image = 0; image < program.images; ++image) {
    const std::int8_t* map = program.buffers[stream].data() + index(image) * pixels * channels;
    std::array<std::int32_t, 64> pooled{};
    for (std::size_t i = 0; i < pixels * channels; ++i) pooled[i % channels] += map[i];
    for (std::size_t k = 0; k < classes; ++k) {
      std::int32_t sum = 0;
      for (std::size_t i = 0; i < channels; ++i)
        sum += pooled[i] * parameters.linear_weights[k * channels + i];
      const float scale =
          requantize_scale(stream_scale, parameters.linear_scale[k], 1.0F) / static_cast<float>(pixels);
      logits[index(image) * classes + k] = scaled(sum, scale, parameters.linear_bias[k]);
    }
  }
}

void Int8UnfusedNetwork::Implementation::run_program(Program& program, const std::uint8_t* pixels,
                                                     float* logits) {
  times.begin(0);
  const std::size_t size = index(network_.image_size);
  const std::size_t row_bytes = 3 * size;
  for (std::size_t row = 0; row < index(program.images) * size; ++row) {
    const std::size_t bordered = row / size * (size + 2) + row % size + 1;
    std::copy_n(pixels + row * row_bytes, row_bytes, program.pixels.data() + bordered * (row_bytes + 6) + 3);
  }
  times.mark(0, border_step_);
  auto padding = program.paddings.begin();
  for (std::size_t i = 0; i < program.operations.size(); ++i) {
    if (padding != program.paddings.end() && padding->before_operation == i) {
      pad_shortcut(program, padding++->block);
      times.mark(0, shortcut_step_);
    }
    const Operation& operation = program.operations[i];
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(operation.primitive.get(), order_.get(),
                               static_cast<int>(operation.arguments.size()), operation.arguments.data()),
        "oneDNN could not execute a primitive");
    times.mark(0, operation.step);
  }
  classify(program, logits);
  times.mark(0, classify_step_);
}

void Int8UnfusedNetwork::Implementation::run(const std::uint8_t* pixels, int count, float* logits) {
  const std::size_t image = index(network_.image_size * network_.image_size * network_.image_channels);
  int done = 0;
  for (Program& program : programs_) {
    for (; done + program.images <= count; done += program.images) {
      run_program(program, pixels + index(done) * image, logits + index(done * network_.classes));
    }
  }
}

Int8UnfusedNetwork::Int8UnfusedNetwork(const UnfusedNetwork& unfused, int max_batch) {
  try {
    implementation_ = std::make_unique<Implementation>(unfused, max_batch);
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN cannot run this unfused network on this CPU: ") + error.what());
  }
}
Int8UnfusedNetwork::Int8UnfusedNetwork(Int8UnfusedNetwork&&) noexcept = default;
Int8UnfusedNetwork& Int8UnfusedNetwork::operator=(Int8UnfusedNetwork&&) noexcept = default;
Int8UnfusedNetwork::~Int8UnfusedNetwork() = default;

void Int8UnfusedNetwork::run(std::span<const std::uint8_t> pixels_nhwc, int count, std::span<float> logits) {
  try {
    implementation_->run(pixels_nhwc.data(), count, logits.data());
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN failed to run the unfused network: ") + error.what());
  }
}

std::vector<LayerTime> Int8UnfusedNetwork::profile(std::span<const std::uint8_t> pixels_nhwc, int count,
                                                   int repetitions) {
  std::vector<float> logits(pixels_nhwc.size());  // more than enough for `count` images' classes
  return implementation_->times.profile(count, repetitions, 1, [&] { run(pixels_nhwc, count, logits); });
}

std::vector<std::string> Int8UnfusedNetwork::implementations() const {
  return implementation_->implementations;
}

}  // namespace nibble
