#include "graph/network/integer_network.h"

#include <omp.h>

#include <algorithm>

namespace nibble {
namespace {

/// What an image costs in position lanes, measured in images of a full tile: 1.14 to 1.26 with AVX-512 from 8
/// to 2 bits, 1.10 to 1.28 with AVX2; two images on two threads against two tiles.
constexpr double kSingleImageCost = 1.2;

}  // namespace

IntegerNetwork::IntegerNetwork(const QuantizedNetwork& quantized, InstructionSet limit)
    : plan_(make_plan(quantized, limit)),
      tiles_(plan_),
      planes_(plan_, omp_get_max_threads()),
      scratch_bytes_(std::max(tiles_.scratch_bytes(), planes_.scratch_bytes())),
      threads_(omp_get_max_threads()),
      scratch_(static_cast<std::size_t>(threads_), AlignedVector<std::uint8_t>(scratch_bytes_)),
      team_(threads_, planes_.message_bytes()),
      running_(std::make_unique<std::mutex>()) {}

IntegerNetwork::IntegerNetwork(IntegerNetwork&& other) noexcept = default;
IntegerNetwork::~IntegerNetwork() = default;

InstructionSet IntegerNetwork::instruction_set() const {
  InstructionSet highest = InstructionSet::reference;
  for (const PlannedConvolution& planned : plan_.convolutions) {
    highest = std::max(highest, planned.kernel->instruction_set);
  }
  return highest;
}

[[gnu::cold]] std::string IntegerNetwork::text() const {
  std::string text = plan_.network.variant + ", " + std::to_string(plan_.network.depth) + " layers, " +
                     std::to_string(plan_.weight_bits) + "-bit weights, " +
                     std::to_string(plan_.activation_bits) + "-bit activations, " +
                     std::string(name_of(instruction_set())) + "\n";
  for (const PlannedConvolution& planned : plan_.convolutions) {
    text += planned.name + ": " + std::string(planned.kernel->name) + "\n";
  }
  return text;
}

void IntegerNetwork::run(const std::uint8_t* pixels, std::int64_t count, float* logits) const {
  const std::lock_guard lock(*running_);
  const std::int64_t tiled = images_in_tiles(count);
  run_tiles(pixels, tiled, logits);
  const std::int64_t image_bytes = std::int64_t{plan_.network.image_size} * plan_.network.image_size * 3;
  run_singly(pixels + tiled * image_bytes, count - tiled, logits + tiled * plan_.network.classes);
}

std::int64_t IntegerNetwork::images_in_tiles(std::int64_t count) const {
  // Full rounds of tiles, one a thread; then whichever is shorter for the rest.
  const std::int64_t round = std::int64_t{plan_.lanes} * threads_;
  const std::int64_t tiled = count / round * round;
  const double images_a_thread = static_cast<double>(count - tiled) / threads_;  // the last ones are shared
  return images_a_thread * kSingleImageCost > plan_.lanes ? count : tiled;
}

std::vector<LayerTime> IntegerNetwork::profile(const std::uint8_t* pixels, std::int64_t count,
                                               int repetitions) const {
  const std::lock_guard lock(*running_);
  if (images_in_tiles(count) < count) return {};
  const std::int64_t tiles = (count + plan_.lanes - 1) / plan_.lanes;
  const auto busy = static_cast<double>(std::min<std::int64_t>(threads_, tiles));
  std::vector<float> logits(static_cast<std::size_t>(count * plan_.network.classes));
  const auto images = static_cast<double>(count);
  std::vector<LayerTime> layers;
  layers.push_back({"images into lanes", 0, 0});
  for (const Convolution& convolution : plan_.network.convolutions) {
    layers.push_back({convolution.name, 0, images * static_cast<double>(convolution.multiply_accumulates())});
  }
  layers.push_back({"padded shortcuts", 0, 0});
  layers.push_back({"pool and linear", 0, images * plan_.network.feature_channels * plan_.network.classes});
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    TileTimes none;
    none.convolutions.resize(plan_.convolutions.size());
    std::vector<TileTimes> times(static_cast<std::size_t>(threads_), none);
    run_tiles(pixels, count, logits.data(), times);
    std::vector<double> seconds(layers.size());
    for (const TileTimes& thread : times) {
      seconds.front() += thread.images / busy;
      for (std::size_t i = 0; i < thread.convolutions.size(); ++i) {
        seconds[i + 1] += thread.convolutions[i] / busy;
      }
      seconds[seconds.size() - 2] += thread.shortcuts / busy;
      seconds.back() += thread.classes / busy;
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
      layers[i].seconds = repetition == 0 ? seconds[i] : std::min(layers[i].seconds, seconds[i]);
    }
  }
  const bool pads = layers[layers.size() - 2].seconds > 0;
  if (!pads) layers.erase(layers.end() - 2);
  return layers;
}

void IntegerNetwork::run_tiles(const std::uint8_t* pixels, std::int64_t count, float* logits,
                               std::span<TileTimes> times) const {
  if (count == 0) return;
  const std::int64_t image_bytes = std::int64_t{plan_.network.image_size} * plan_.network.image_size * 3;
  const std::int64_t tiles = (count + plan_.lanes - 1) / plan_.lanes;
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const std::int64_t first = tile * plan_.lanes;
    const auto images = static_cast<int>(std::min<std::int64_t>(plan_.lanes, count - first));
    const auto thread = static_cast<std::size_t>(omp_get_thread_num());
    tiles_.run(plan_, pixels + first * image_bytes, images, logits + first * plan_.network.classes,
               scratch_[thread].data(), times.empty() ? nullptr : &times[thread]);
  }
}

void IntegerNetwork::run_singly(const std::uint8_t* pixels, std::int64_t count, float* logits) const {
  const std::int64_t image_bytes = std::int64_t{plan_.network.image_size} * plan_.network.image_size * 3;
  if (count == 0) return;
  const std::int64_t separate = count / threads_ * threads_;
#pragma omp parallel num_threads(threads_)
  {
    const int thread = omp_get_thread_num();
    std::uint8_t* const scratch = scratch_[static_cast<std::size_t>(thread)].data();
    // OpenMP may give fewer threads than asked for: then none share an image.
    const bool is_team = omp_get_num_threads() == threads_;
    const std::int64_t alone = is_team ? separate : count;
    for (std::int64_t image = thread; image < alone; image += omp_get_num_threads()) {
      planes_.run(plan_, pixels + image * image_bytes, logits + image * plan_.network.classes, scratch);
    }
    for (std::int64_t image = alone; image < count; ++image) {
      planes_.run(plan_, pixels + image * image_bytes, logits + image * plan_.network.classes, scratch, team_,
                  thread);
    }
  }
}

}  // namespace nibble
