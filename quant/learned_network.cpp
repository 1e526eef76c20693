#include "quant/learned_network.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "graph/network/error.h"
#include "graph/network/first_failure.h"
#include "graph/network/float_parameters.h"
#include "graph/onednn/training_layer.h"
#include "graph/optimize/loss.h"
#include "kernels/requantize.h"
#include "quant/learned_loops.h"
#include "quant/weight_quantization.h"

namespace nibble {
namespace {

using Worker = TrainingWorker<float>;
using Values = std::vector<float>;

std::size_t at(int index) {
  return static_cast<std::size_t>(index);
}

struct LearnedConvolution : LearnedLayer {
  LearnedConvolution(const QuantizedLayer& layer, std::span<const float> weights, Rounding how,
                     std::unique_ptr<TrainingLayer<float>> with)
      : LearnedLayer(layer, weights, how), training(std::move(with)) {}

  std::unique_ptr<TrainingLayer<float>> training;
  AlignedBuffer<float> partials;  ///< weight gradients of the groups
  Values channel_sums;            ///< [group][offset sums, scale sums]
  std::size_t output_values() const { return training->output_image() * kGroupImages; }
  std::size_t input_values() const { return training->input_image() * kGroupImages; }
};

/// An activation scale.
struct LearnedStep {
  float scale = 1;
  Values log_scale, gradient;    ///< one value each
  std::vector<double> partials;  ///< of the groups

  explicit LearnedStep(float start) : scale(start), log_scale{std::log(start)}, gradient{0} {}
  void refresh() { scale = std::exp(log_scale[0]); }
};

/// What a block keeps of a group between forward and backward.
struct BlockMemory {
  AlignedBuffer<float> input;  ///< x, where it is not the stream
  AlignedBuffer<float> acc1, middle, acc_shortcut, shortcut, acc2, output;
};

/// What a thread has to itself.
struct GroupMemory {
  AlignedBuffer<float> stream;
  std::vector<BlockMemory> blocks;
  AlignedBuffer<float> d_output, d_acc, d_middle, d_input, d_stream;
  Values sums;
};

}  // namespace

struct LearnedNetwork::Implementation {
  NetworkDescription network;
  QuantizedParameters frame;
  Rounding rounding;
  std::vector<Worker> workers;
  std::vector<std::unique_ptr<LearnedConvolution>> convolutions;  ///< [0] is null
  std::unique_ptr<LearnedLayer> linear;
  struct Steps {
    std::unique_ptr<LearnedStep> input;  ///< null where x is the stream
    LearnedStep middle, output;
    std::unique_ptr<LearnedStep> shortcut;
  };
  std::vector<Steps> steps;
  std::vector<GroupMemory> memory;  ///< of the threads
  Values linear_partials;           ///< [group][weights, scales, biases]
  bool round = true;
  float stream_highest = 255;

  const Convolution& shape(int convolution) const { return network.convolutions[at(convolution)]; }
  LearnedConvolution& conv(int index) { return *convolutions[at(index)]; }
  float stream_scale(int block) const {
    return block == 0 ? frame.first_output_scale : steps[at(block - 1)].output.scale;
  }
  float input_scale(int block) const {
    return steps[at(block)].input ? steps[at(block)].input->scale : stream_scale(block);
  }

  Implementation(const NetworkDescription& description, const FoldedParameters& folded,
                 const QuantizedParameters& start, Rounding how)
      : network(description), frame(start), rounding(how), workers(at(omp_get_max_threads())) {
    if (start.weight_bits > 8) {
      throw InputError("learned rounding is for 8, 4 and 2 bits, not for 16; choose --method nearest");
    }
    convolutions.resize(network.convolutions.size());
    for (std::size_t i = 1; i < convolutions.size(); ++i) {
      convolutions[i] =
          std::make_unique<LearnedConvolution>(start.convolutions[i], folded.convolutions[i].weight, rounding,
                                               make_group_layer(network.convolutions[i], workers));
    }
    linear = std::make_unique<LearnedLayer>(start.linear, folded.linear_weight, rounding);
    for (std::size_t i = 0; i < network.blocks.size(); ++i) {
      const QuantizedBlock& block = start.blocks[i];
      Steps each{nullptr, LearnedStep(block.middle_scale), LearnedStep(block.output_scale), nullptr};
      if (block.input_bits < 8) each.input = std::make_unique<LearnedStep>(block.input_scale);
      if (network.blocks[i].shortcut == Shortcut::projection) {
        each.shortcut = std::make_unique<LearnedStep>(block.shortcut_scale);
      }
      steps.push_back(std::move(each));
    }
    make_memory();
  }

  void make_memory() {
    memory.resize(workers.size());
    for (GroupMemory& group : memory) {
      std::size_t largest = 0;
      std::size_t channels = 0;
      for (std::size_t b = 0; b < network.blocks.size(); ++b) {
        const Block& block = network.blocks[b];
        const LearnedConvolution& first = conv(block.conv1);
        const LearnedConvolution& second = conv(block.conv2);
        BlockMemory each;
        if (steps[b].input) each.input.reset(first.input_values());
        each.acc1.reset(first.output_values());
        each.middle.reset(first.output_values());
        each.acc2.reset(second.output_values());
        each.output.reset(second.output_values());
        if (block.shortcut != Shortcut::identity) each.shortcut.reset(second.output_values());
        if (block.shortcut == Shortcut::projection) each.acc_shortcut.reset(second.output_values());
        largest = std::max({largest, first.input_values(), first.output_values()});
        channels = std::max(channels, second.channels);
        group.blocks.push_back(std::move(each));
      }
      for (auto* values :
           {&group.stream, &group.d_output, &group.d_acc, &group.d_middle, &group.d_input, &group.d_stream}) {
        values->reset(largest);
      }
      group.sums.resize(3 * channels);
    }
  }

  void refresh(int first, int last) {
    const Worker& worker = workers[0];
    const auto load = [&](int convolution, float from, float to) {
      LearnedConvolution& each = conv(convolution);
      each.refresh(round, from, to);
      each.training->set_weight(0, worker, each.integers.data());
    };
    for (int i = first; i < last; ++i) {
      Steps& step = steps[at(i)];
      if (step.input) step.input->refresh();
      step.middle.refresh();
      step.output.refresh();
      if (step.shortcut) step.shortcut->refresh();
      const Block& block = network.blocks[at(i)];
      load(block.conv1, input_scale(i), step.middle.scale);
      load(block.conv2, step.middle.scale, step.output.scale);
      if (step.shortcut) load(block.projection, input_scale(i), step.shortcut->scale);
    }
    linear->refresh(round, steps.back().output.scale, 1.0F);
  }

  /// The requantization that follows `convolution`.
  LoopRequantization map_of(const LearnedLayer& layer, float lowest, float highest, float ratio = 0) const {
    return {static_cast<int>(layer.channels),
            layer.scale.data(),
            layer.offset.data(),
            ratio,
            lowest,
            highest,
            round};
  }
  LoopRequantization middle_map(int block) {
    return map_of(conv(network.blocks[at(block)].conv1), 0, highest(frame.blocks[at(block)].middle_bits));
  }
  LoopRequantization shortcut_map(int block) {
    return map_of(conv(network.blocks[at(block)].projection), -128, 127);
  }
  LoopRequantization output_map(int block) {
    return map_of(conv(network.blocks[at(block)].conv2), 0, stream_highest, residual_ratio(block));
  }
  float residual_ratio(int block) const {
    const Steps& step = steps[at(block)];
    return scale_ratio(step.shortcut ? step.shortcut->scale : stream_scale(block), step.output.scale);
  }
  static float highest(int bits) { return static_cast<float>(activation_limit(bits)); }
  float input_ratio(int block) const { return scale_ratio(stream_scale(block), input_scale(block)); }

  const float* stream_of(GroupMemory& group, int block, int first) const {
    return block == first ? group.stream.data() : group.blocks[at(block - 1)].output.data();
  }

  void forward(int thread, GroupMemory& group, int b, int first) {
    const Block& block = network.blocks[at(b)];
    BlockMemory& own = group.blocks[at(b)];
    LearnedConvolution& conv1 = conv(block.conv1);
    LearnedConvolution& conv2 = conv(block.conv2);
    const Worker& worker = workers[at(thread)];
    const float* stream = stream_of(group, b, first);
    const float* input = stream;
    if (steps[at(b)].input) {
      derive_forward(stream, conv1.input_values(), input_ratio(b), highest(frame.blocks[at(b)].input_bits),
                     round, own.input.data());
      input = own.input.data();
    }
    conv1.training->forward(thread, worker, input, own.acc1.data());
    requantize_forward(middle_map(b), own.acc1.data(), nullptr, conv1.output_values(), own.middle.data());
    const float* residual = stream;
    if (block.shortcut == Shortcut::projection) {
      LearnedConvolution& projection = conv(block.projection);
      projection.training->forward(thread, worker, input, own.acc_shortcut.data());
      requantize_forward(shortcut_map(b), own.acc_shortcut.data(), nullptr, projection.output_values(),
                         own.shortcut.data());
      residual = own.shortcut.data();
    } else if (block.shortcut == Shortcut::pad_channels) {
      pad_group(conv1.training->shape, stream, own.shortcut.data());
      residual = own.shortcut.data();
    }
    conv2.training->forward(thread, worker, own.middle.data(), own.acc2.data());
    requantize_forward(output_map(b), own.acc2.data(), residual, conv2.output_values(), own.output.data());
  }

  /// A convolution's backward pass from d, dL/d its integer outputs, which becomes what passes the rounding.
  /// d_input gets the gradient of the integer inputs.
  void layer_backward(int thread, GroupMemory& group, std::size_t number, LearnedConvolution& layer,
                      const LoopRequantization& map, const float* input, const float* acc,
                      const float* residual, LearnedStep& step, float* d, float* d_input) {
    const Worker& worker = workers[at(thread)];
    std::fill(group.sums.begin(), group.sums.end(), 0.0F);
    float* sums = group.sums.data();
    const std::size_t channels = layer.channels;
    requantize_backward(map, acc, residual, d, layer.output_values(), d, group.d_acc.data(), sums,
                        sums + channels, sums + 2 * channels);
    std::copy_n(sums, 2 * channels, &layer.channel_sums[number * 2 * channels]);
    double total = 0;
    for (std::size_t c = 0; c < channels; ++c) total += double{sums[2 * channels + c]};
    step.partials[number] += total;
    layer.training->weight_gradient(thread, worker, input, group.d_acc.data(),
                                    layer.partials.data() + number * layer.training->gradient_count);
    layer.training->data_gradient(thread, worker, group.d_acc.data(), d_input);
  }

  /// group.d_output: dL/d integer output of the block; becomes that of its stream.
  void backward(int thread, GroupMemory& group, std::size_t number, int b, int first) {
    const Block& block = network.blocks[at(b)];
    BlockMemory& own = group.blocks[at(b)];
    Steps& step = steps[at(b)];
    LearnedConvolution& conv1 = conv(block.conv1);
    LearnedConvolution& conv2 = conv(block.conv2);
    const float* stream = stream_of(group, b, first);
    const float* input = step.input ? own.input.data() : stream;
    const float* residual = block.shortcut == Shortcut::identity ? stream : own.shortcut.data();
    float* d = group.d_output.data();
    layer_backward(thread, group, number, conv2, output_map(b), own.middle.data(), own.acc2.data(), residual,
                   step.output, d, group.d_middle.data());
    layer_backward(thread, group, number, conv1, middle_map(b), input, own.acc1.data(), nullptr, step.middle,
                   group.d_middle.data(), group.d_input.data());
    const float ratio = residual_ratio(b);
    const std::size_t outputs = conv2.output_values();
    const std::size_t inputs = conv1.input_values();
    for (std::size_t i = 0; i < outputs; ++i) d[i] *= ratio;  // of the integer residual
    float* d_stream = group.d_stream.data();
    if (step.shortcut) {
      layer_backward(thread, group, number, conv(block.projection), shortcut_map(b), input,
                     own.acc_shortcut.data(), nullptr, *step.shortcut, d, d_stream);
      for (std::size_t i = 0; i < inputs; ++i) group.d_input.data()[i] += d_stream[i];
    }
    if (step.input) {
      step.input->partials[number] +=
          derive_backward(stream, group.d_input.data(), inputs, input_ratio(b),
                          highest(frame.blocks[at(b)].input_bits), round, d_stream);
    } else {
      std::copy_n(group.d_input.data(), inputs, d_stream);
    }
    if (block.shortcut == Shortcut::identity) {
      for (std::size_t i = 0; i < inputs; ++i) d_stream[i] += d[i];
    } else if (block.shortcut == Shortcut::pad_channels) {
      add_padded_group(conv1.training->shape, d, d_stream);
    }
    std::copy_n(d_stream, inputs, d);
  }

  /// Logits of the group, their loss, and the gradient of the last stream into group.d_output.
  double logits_loss(GroupMemory& group, std::size_t number, const LearnedLoss& loss, const float* targets,
                     double image_weight) {
    const auto area = at(network.feature_size * network.feature_size);
    const auto features = at(network.feature_channels);
    const auto classes = at(network.classes);
    const float* stream = group.blocks.back().output.data();
    Values pool(kGroupImages * features);
    Values logits(kGroupImages * classes);
    Values gradient(logits.size());
    const auto fraction = 1.0F / static_cast<float>(area);
    for (std::size_t image = 0; image < kGroupImages; ++image) {
      float* sum = &pool[image * features];
      for (std::size_t i = 0; i < area * features; ++i)
        sum[i % features] += stream[image * area * features + i];
      for (std::size_t c = 0; c < classes; ++c) {
        float total = 0;
        for (std::size_t f = 0; f < features; ++f) total += sum[f] * linear->integers[c * features + f];
        logits[image * classes + c] = total * (linear->scale[c] * fraction) + linear->offset[c];
      }
    }
    const double result = distillation_loss(logits, {targets, logits.size()}, network.classes, Reduction::sum,
                                            loss.temperature, gradient)
                              .loss;
    const auto factor = static_cast<float>(loss.logits_weight * image_weight);
    float* weights = &linear_partials[number * (classes * features + 2 * classes)];
    float* scales = weights + classes * features;
    float* biases = scales + classes;
    std::fill(weights, biases + classes, 0.0F);
    for (std::size_t image = 0; image < kGroupImages; ++image) {
      Values d_pool(features);
      for (std::size_t c = 0; c < classes; ++c) {
        const float d = gradient[image * classes + c] * factor;
        const float slope = linear->scale[c] * fraction;
        biases[c] += d;
        scales[c] += d * (logits[image * classes + c] - linear->offset[c]);
        for (std::size_t f = 0; f < features; ++f) {
          weights[c * features + f] += d * slope * pool[image * features + f];
          d_pool[f] += d * slope * linear->integers[c * features + f];
        }
      }
      for (std::size_t i = 0; i < area * features; ++i) {
        group.d_output.data()[image * area * features + i] += d_pool[i % features];
      }
    }
    return result * double{factor};
  }

  double group_step(int thread, std::size_t number, const LearnedLoss& loss,
                    std::span<const std::int16_t> stream, const LearnedTargets& targets, std::size_t images) {
    GroupMemory& group = memory[at(thread)];
    const std::size_t inputs = conv(network.blocks[at(loss.first_block)].conv1).input_values();
    std::transform(stream.begin() + static_cast<std::ptrdiff_t>(number * inputs),
                   stream.begin() + static_cast<std::ptrdiff_t>((number + 1) * inputs), group.stream.data(),
                   [](std::int16_t value) { return static_cast<float>(value); });
    for (int b = loss.first_block; b < loss.last_block; ++b) forward(thread, group, b, loss.first_block);

    double total = 0;
    const std::size_t last = conv(network.blocks[at(loss.last_block - 1)].conv2).output_values();
    std::fill_n(group.d_output.data(), last, 0.0F);
    if (loss.logits_weight > 0) {
      total += logits_loss(group, number, loss, targets.logits + number * kGroupImages * at(network.classes),
                           1.0 / static_cast<double>(images));
    }
    for (int b = loss.last_block - 1; b >= loss.first_block; --b) {
      const double weight = loss.block_weights.empty() ? 0 : loss.block_weights[at(b)];
      if (weight > 0) {
        const std::size_t count = conv(network.blocks[at(b)].conv2).output_values();
        const float* wanted = targets.blocks[at(b)] + number * count;
        const float* found = group.blocks[at(b)].output.data();
        float* d = group.d_output.data();
        const float scale = steps[at(b)].output.scale;
        const double mean = weight * static_cast<double>(kGroupImages) /
                            (static_cast<double>(images) * static_cast<double>(count));
        const auto factor = static_cast<float>(2 * mean) * scale;
        float sums[16] = {};
        for (std::size_t i = 0; i < count; i += 16) {
          for (std::size_t lane = 0; lane < 16; ++lane) {
            const float error = found[i + lane] * scale - wanted[i + lane];
            sums[lane] += error * error;
            d[i + lane] += factor * error;
          }
        }
        for (const float sum : sums) total += mean * double{sum};
      }
      backward(thread, group, number, b, loss.first_block);
    }
    return total;
  }

  double step(const LearnedLoss& loss, std::span<const std::int16_t> stream, const LearnedTargets& targets) {
    const std::size_t inputs = conv(network.blocks[at(loss.first_block)].conv1).input_values();
    const std::size_t groups = stream.size() / inputs;
    for_layers(loss, [&](LearnedConvolution& each) {
      const std::size_t count = each.training->gradient_count * groups;
      if (each.partials.size() < count) each.partials.reset(count);
      each.channel_sums.resize(groups * 2 * each.channels);
    });
    for_steps(loss, [&](LearnedStep& each) { each.partials.assign(groups, 0.0); });
    linear_partials.resize(groups * (linear->integers.size() + 2 * linear->channels));

    std::vector<double> losses(groups);
    FirstFailure failure;
#pragma omp parallel for schedule(dynamic)
    for (std::size_t group = 0; group < groups; ++group) {
      failure.guard([&] {
        losses[group] = group_step(omp_get_thread_num(), group, loss, stream, targets, groups * kGroupImages);
      });
    }
    failure.rethrow();

    for_layers(loss, [&](LearnedConvolution& each) { gather(each, groups); });
    for_steps(loss, [&](LearnedStep& each) {
      double sum = 0;
      for (const double partial : each.partials) sum += partial;
      each.gradient[0] = static_cast<float>(sum);
    });
    if (loss.logits_weight > 0) gather_linear(groups);
    double total = 0;
    for (const double value : losses) total += value;
    return total;
  }

  /// Adds the groups' gradients of a layer in their order.
  void gather(LearnedConvolution& layer, std::size_t groups) {
    const std::size_t count = layer.training->gradient_count;
    float* total = layer.training->gradient.data();
#pragma omp parallel for schedule(static)
    for (std::size_t i = 0; i < count; ++i) {
      float sum = 0;
      for (std::size_t group = 0; group < groups; ++group) sum += layer.partials.data()[group * count + i];
      total[i] = sum;
    }
    layer.training->store_gradient(0, workers[0], layer.position_gradient.data());
    for (std::size_t i = 0; i < layer.position.size(); ++i) layer.position_gradient[i] *= layer.slope[i];
    const float output_scale_inverse = layer_output_inverse(layer);
    for (std::size_t c = 0; c < layer.channels; ++c) {
      double offset = 0;
      double scale = 0;
      for (std::size_t group = 0; group < groups; ++group) {
        offset += double{layer.channel_sums[(group * 2) * layer.channels + c]};
        scale += double{layer.channel_sums[(group * 2 + 1) * layer.channels + c]};
      }
      layer.bias_gradient[c] = static_cast<float>(offset * double{output_scale_inverse});
      layer.scale_gradient[c] = layer.frozen[c] ? 0.0F : static_cast<float>(scale);
    }
  }

  float layer_output_inverse(const LearnedConvolution& layer) const {
    for (std::size_t i = 0; i < network.blocks.size(); ++i) {
      const Block& block = network.blocks[i];
      if (convolutions[at(block.conv1)].get() == &layer) return 1 / steps[i].middle.scale;
      if (convolutions[at(block.conv2)].get() == &layer) return 1 / steps[i].output.scale;
      if (block.projection >= 0 && convolutions[at(block.projection)].get() == &layer) {
        return 1 / steps[i].shortcut->scale;
      }
    }
    return 1;
  }

  void gather_linear(std::size_t groups) {
    const std::size_t weights = linear->integers.size();
    const std::size_t stride = weights + 2 * linear->channels;
    const auto sum = [&](std::size_t index) {
      double total = 0;
      for (std::size_t group = 0; group < groups; ++group)
        total += double{linear_partials[group * stride + index]};
      return static_cast<float>(total);
    };
    for (std::size_t i = 0; i < weights; ++i) linear->position_gradient[i] = sum(i) * linear->slope[i];
    for (std::size_t c = 0; c < linear->channels; ++c) {
      linear->scale_gradient[c] = linear->frozen[c] ? 0.0F : sum(weights + c);
      linear->bias_gradient[c] = sum(weights + linear->channels + c);
    }
  }

  template <typename Do>
  void for_layers(const LearnedLoss& loss, const Do& act) {
    for (int b = loss.first_block; b < loss.last_block; ++b) {
      const Block& block = network.blocks[at(b)];
      act(conv(block.conv1));
      act(conv(block.conv2));
      if (block.shortcut == Shortcut::projection) act(conv(block.projection));
    }
  }

  template <typename Do>
  void for_steps(const LearnedLoss& loss, const Do& act) {
    for (int b = loss.first_block; b < loss.last_block; ++b) {
      Steps& each = steps[at(b)];
      if (each.input) act(*each.input);
      act(each.middle);
      act(each.output);
      if (each.shortcut) act(*each.shortcut);
    }
  }
};

LearnedNetwork::LearnedNetwork(const NetworkDescription& network, const FoldedParameters& folded,
                               const QuantizedParameters& start, Rounding rounding)
    : implementation_(std::make_unique<Implementation>(network, folded, start, rounding)) {
  implementation_->refresh(0, static_cast<int>(network.blocks.size()));
}

LearnedNetwork::~LearnedNetwork() = default;

std::vector<OptimizedTensor> LearnedNetwork::tensors(int first, int last, bool linear,
                                                     const LearnedRates& rates) {
  std::vector<OptimizedTensor> result;
  const auto add = [&](LearnedLayer& layer) {
    result.push_back({"position", layer.position, layer.position_gradient, false, rates.weights});
    result.push_back({"scale", layer.log_scale, layer.scale_gradient, false, rates.scales});
    result.push_back({"bias", layer.bias, layer.bias_gradient, false, rates.biases});
  };
  LearnedLoss range;
  range.first_block = first;
  range.last_block = last;
  implementation_->for_layers(range, add);
  implementation_->for_steps(range, [&](LearnedStep& step) {
    result.push_back({"step", step.log_scale, step.gradient, false, rates.steps});
  });
  if (linear) add(*implementation_->linear);
  return result;
}

void LearnedNetwork::refresh(int first, int last) {
  implementation_->refresh(first, last);
}

double LearnedNetwork::step(const LearnedLoss& loss, std::span<const std::int16_t> stream,
                            const LearnedTargets& targets) {
  return implementation_->step(loss, stream, targets);
}

double LearnedNetwork::add_rounding_pressure(int first, int last, double weight, double beta) {
  double total = 0;
  LearnedLoss range;
  range.first_block = first;
  range.last_block = last;
  implementation_->for_layers(range, [&](LearnedConvolution& layer) {
    for (std::size_t i = 0; i < layer.position.size(); ++i) {
      if (layer.frozen[i / layer.taps]) continue;
      double derivative = 0;
      const double h = LearnedLayer::rectified(double{layer.position[i]}, derivative);
      const double distance = 2 * h - 1;
      const double power = std::pow(std::fabs(distance), beta - 1);
      total += weight * (1 - power * std::fabs(distance));
      layer.position_gradient[i] -=
          static_cast<float>(weight * beta * 2 * power * (distance < 0 ? -1 : 1) * derivative);
    }
  });
  return total;
}

Rounding LearnedNetwork::rounding() const {
  return implementation_->rounding;
}

void LearnedNetwork::set_rounding(bool on) {
  implementation_->round = on;
  implementation_->refresh(0, static_cast<int>(implementation_->network.blocks.size()));
}

QuantizedParameters LearnedNetwork::result() const {
  QuantizedParameters parameters = implementation_->frame;
  for (std::size_t i = 1; i < parameters.convolutions.size(); ++i) {
    parameters.convolutions[i] = implementation_->convolutions[i]->result();
  }
  for (std::size_t i = 0; i < parameters.blocks.size(); ++i) {
    const auto& step = implementation_->steps[i];
    QuantizedBlock& block = parameters.blocks[i];
    block.input_scale = implementation_->input_scale(static_cast<int>(i));
    block.middle_scale = step.middle.scale;
    block.output_scale = step.output.scale;
    if (step.shortcut) block.shortcut_scale = step.shortcut->scale;
  }
  parameters.linear = implementation_->linear->result();
  return parameters;
}

}  // namespace nibble
