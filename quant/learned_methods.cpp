#include "quant/learned_methods.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "graph/data/random.h"
#include "graph/optimize/denormals.h"

namespace nibble {
namespace {

constexpr int kShift = 4;

std::size_t at(int index) {
  return static_cast<std::size_t>(index);
}

std::size_t image_values(const NetworkDescription& network) {
  return at(network.image_channels * network.image_size * network.image_size);
}

/// Falls from 1 to 0 over the steps (Loshchilov and Hutter 2016, arXiv:1608.03983).
double cosine(int step, int steps) {
  return (1 + std::cos(std::numbers::pi * step / steps)) / 2;
}

/// Endless batches of image numbers: one shuffled pass after the other.
class Batches {
 public:
  Batches(std::size_t images, int batch, std::uint64_t seed)
      : images_(static_cast<int>(images)), batch_(batch), seed_(seed), next_(images) {}

  std::vector<std::uint32_t> next() {
    std::vector<std::uint32_t> batch;
    while (batch.size() < at(batch_)) {
      if (next_ >= at(images_)) {
        order_ = shuffled_order(images_, seed_, pass_++);
        next_ = 0;
      }
      batch.push_back(order_[next_++]);
    }
    return batch;
  }

 private:
  int images_;
  int batch_;
  std::uint64_t seed_;
  std::uint64_t pass_ = 0;
  std::size_t next_;
  std::vector<std::uint32_t> order_;
};

/// One image, mirrored or not and moved, black where nothing is left.
void copy_augmented(std::span<const std::uint8_t> image, int size, std::uint64_t seed, std::uint8_t* output) {
  SplitMix64 random(seed);
  const bool mirror = random.below(2) == 1;
  const int down = static_cast<int>(random.below(2 * kShift + 1)) - kShift;
  const int right = static_cast<int>(random.below(2 * kShift + 1)) - kShift;
  for (int row = 0; row < size; ++row) {
    for (int column = 0; column < size; ++column) {
      const int from_row = row + down;
      const int moved = column + right;
      const int from_column = mirror ? size - 1 - moved : moved;
      const bool inside = from_row >= 0 && from_row < size && moved >= 0 && moved < size;
      for (int c = 0; c < 3; ++c) {
        *output++ = inside ? image[at((from_row * size + from_column) * 3 + c)] : std::uint8_t{0};
      }
    }
  }
}

double mean_square(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += double{value} * double{value};
  return std::max(sum / static_cast<double>(values.size()), 1e-12);
}

std::size_t output_values(const NetworkDescription& network, std::size_t block) {
  const Convolution& shape = network.convolutions[at(network.blocks[block].conv2)];
  return at(shape.output_height() * shape.output_width() * shape.output_channels);
}

void report(const QuantizationTask& task, const std::string& text) {
  if (task.options.progress) task.options.progress(text);
}

OptimizerSettings adam() {
  OptimizerSettings settings;
  settings.kind = OptimizerKind::adamw;
  settings.weight_decay = 0;
  return settings;
}

}  // namespace

LearnedSchedule block_schedule(const QuantizationOptions& options) {
  LearnedSchedule schedule;
  schedule.steps = options.learning_steps > 0 ? options.learning_steps : 300;
  schedule.rate = 0.004;
  schedule.rate_at_two_bits = 0.02;  // a level is a larger part of a weight, and more of them must move
  return schedule;
}

LearnedSchedule adaptive_schedule(const QuantizationOptions& options) {
  LearnedSchedule schedule = block_schedule(options);
  schedule.rate = schedule.rate_at_two_bits = 0.05;
  schedule.rates.scales = schedule.rates.biases = schedule.rates.steps = 0.02;
  schedule.rounding_weight = 1e-5;
  return schedule;
}

LearnedSchedule distillation_schedule(const QuantizationOptions& options) {
  LearnedSchedule schedule;
  schedule.steps = options.learning_steps > 0 ? options.learning_steps : 500;
  schedule.rate = 0.001;
  return schedule;
}

namespace {

/// The FP32 network's outputs of block `index` for the first `images` calibration images.
std::vector<float> block_targets(const QuantizationTask& task, FloatBlocks& teacher, std::size_t index,
                                 std::size_t images) {
  const std::size_t pixels = image_values(task.network);
  const std::size_t outputs = output_values(task.network, index);
  std::vector<float> targets(images * outputs);
  constexpr std::size_t chunk = 64;
  for (std::size_t first = 0; first < images; first += chunk) {
    const std::size_t count = std::min(chunk, images - first);
    const LearnedTargets some =
        teacher.run(task.pixels.subspan(first * pixels, count * pixels), static_cast<int>(index) + 1);
    std::copy_n(some.blocks[index], count * outputs, &targets[first * outputs]);
  }
  return targets;
}

/// Learns block `index` of `learned` from its quantized inputs and its FP32 outputs, both [images][...].
void learn_block(const QuantizationTask& task, const LearnedSchedule& schedule, std::size_t index,
                 std::span<const std::int16_t> stream, std::span<const float> targets,
                 LearnedNetwork& learned) {
  const bool adaptive = learned.rounding() == Rounding::adaptive;
  const int block = static_cast<int>(index);
  const std::size_t blocks = task.network.blocks.size();
  const std::size_t outputs = output_values(task.network, index);
  const std::size_t images = targets.size() / outputs;
  const std::size_t inputs = stream.size() / images;
  LearnedLoss loss;
  loss.first_block = block;
  loss.last_block = block + 1;
  loss.block_weights.assign(blocks, 0.0);
  loss.block_weights[index] = 1 / mean_square(targets);
  const auto optimizer = make_optimizer(adam(), learned.tensors(block, block + 1, false, schedule.rates));
  const int batch = std::min(schedule.batch, static_cast<int>(images));
  Batches batches(images, batch, mix_seed(task.options.seed, index));
  Integers batch_stream(at(batch) * inputs);
  std::vector<float> batch_targets(at(batch) * outputs);
  LearnedTargets wanted;
  wanted.blocks.assign(blocks, nullptr);
  wanted.blocks[index] = batch_targets.data();
  const double rate = weight_bits_of(task.options, index) == 2 ? schedule.rate_at_two_bits : schedule.rate;
  learned.refresh(block, block + 1);  // the scale of the stream before it was learned since
  double average = 0;
  for (int step = 0; step < schedule.steps; ++step) {
    const std::vector<std::uint32_t> chosen = batches.next();
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      std::copy_n(&stream[chosen[i] * inputs], inputs, &batch_stream[i * inputs]);
      std::copy_n(&targets[chosen[i] * outputs], outputs, &batch_targets[i * outputs]);
    }
    const double value = learned.step(loss, batch_stream, wanted);
    average = step == 0 ? value : 0.95 * average + 0.05 * value;
    if (adaptive && step >= schedule.steps / 5) {
      const double passed = (step - schedule.steps / 5.0) / (0.8 * schedule.steps);
      learned.add_rounding_pressure(block, block + 1, schedule.rounding_weight, 2 + 18 * (1 - passed));
    }
    optimizer->step(rate * (adaptive ? 1.0 : cosine(step, schedule.steps)));
    learned.refresh(block, block + 1);
    if (step % 20 == 19 || step + 1 == schedule.steps) {
      report(task, fmt::format("block {}/{}  step {}/{}  squared error {:.2f} %", index + 1, blocks, step + 1,
                               schedule.steps, 100 * average));
    }
  }
}

}  // namespace

QuantizedParameters reconstruct_blocks(const QuantizationTask& task, const LearnedSchedule& schedule,
                                       LearnedNetwork& learned) {
  flush_denormals();
  const NetworkDescription& network = task.network;
  const std::size_t pixels = image_values(network);
  const std::size_t images = task.pixels.size() / pixels;
  const std::size_t learned_images = images / kGroupImages * kGroupImages;
  FloatBlocks teacher(network, task.folded);
  Simulation simulation(network);
  QuantizedParameters result = learned.result();
  const Simulation::Convolve convolve = simulation.layers_of(result);
  Integers stream = simulation.first_stream(result, task.pixels, convolve);
  for (std::size_t block = 0; block < network.blocks.size(); ++block) {
    learn_block(task, schedule, block, std::span(stream).first(stream.size() / images * learned_images),
                block_targets(task, teacher, block, learned_images), learned);
    result = learned.result();
    stream = simulation.run_block(result, block, std::move(stream), convolve);
  }
  // Nearest rounding corrected the logits' means behind other blocks.
  correct_logit_means(task.calibration,
                      simulation.classify(result.linear, stream, result.blocks.back().output_scale),
                      result.linear);
  return result;
}

QuantizedParameters distill(const QuantizationTask& task, const LearnedSchedule& schedule,
                            LearnedNetwork& learned) {
  flush_denormals();
  const NetworkDescription& network = task.network;
  const std::size_t pixels = image_values(network);
  const std::size_t images = task.pixels.size() / pixels;
  const int blocks = static_cast<int>(network.blocks.size());
  const QuantizedParameters start = learned.result();
  FloatBlocks teacher(network, task.folded);
  Simulation simulation(network);
  const Simulation::Convolve first_layer = simulation.layers_of(start);
  LearnedLoss loss;
  loss.last_block = blocks;
  loss.logits_weight = schedule.logits_weight;
  loss.temperature = schedule.temperature;
  const auto optimizer = make_optimizer(adam(), learned.tensors(0, blocks, true, schedule.rates));
  const int groups =
      std::max(1, std::min(schedule.batch, static_cast<int>(images)) / static_cast<int>(kGroupImages));
  const int batch = groups * static_cast<int>(kGroupImages);
  Batches batches(images, batch, mix_seed(task.options.seed, 100));
  std::vector<std::uint8_t> batch_pixels(at(batch) * pixels);
  double average = 0;
  for (int step = 0; step < schedule.steps; ++step) {
    const std::vector<std::uint32_t> chosen = batches.next();
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const auto image = task.pixels.subspan(chosen[i] * pixels, pixels);
      if (schedule.augment) {
        copy_augmented(image, network.image_size, mix_seed(task.options.seed, 101, step, i),
                       &batch_pixels[i * pixels]);
      } else {
        std::copy(image.begin(), image.end(), &batch_pixels[i * pixels]);
      }
    }
    const LearnedTargets targets = teacher.run(batch_pixels, blocks);
    if (step == 0) {
      for (std::size_t b = 0; b < network.blocks.size(); ++b) {
        const std::span<const float> output(targets.blocks[b], at(batch) * output_values(network, b));
        loss.block_weights.push_back(schedule.block_weight / mean_square(output));
      }
    }
    const double value =
        learned.step(loss, simulation.first_stream(start, batch_pixels, first_layer), targets);
    average = step == 0 ? value : 0.98 * average + 0.02 * value;
    optimizer->step(schedule.rate * cosine(step, schedule.steps));
    learned.refresh(0, blocks);
    if (step % 20 == 19 || step + 1 == schedule.steps) {
      report(task, fmt::format("whole network  step {}/{}  loss {:.4f}", step + 1, schedule.steps, average));
    }
  }
  return learned.result();
}

}  // namespace nibble
