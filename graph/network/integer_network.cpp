#include "graph/network/integer_network.h"

#include <omp.h>

#include <algorithm>

namespace nibble {
namespace {

/// What an image costs in position lanes, measured in images of a full tile.
constexpr double kSingleImageCost = 1.5;

}  // namespace

IntegerNetwork::IntegerNetwork(const QuantizedNetwork& quantized, InstructionSet limit)
    : plan_(make_plan(quantized, limit)),
      tiles_(plan_),
      planes_(plan_),
      scratch_bytes_(std::max(tiles_.scratch_bytes(), planes_.scratch_bytes())),
      threads_(omp_get_max_threads()),
      scratch_(static_cast<std::size_t>(threads_), AlignedVector<std::uint8_t>(scratch_bytes_)),
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

std::string IntegerNetwork::text() const {
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
  // Full rounds of tiles, one a thread; then whichever is shorter for the rest.
  const std::int64_t round = std::int64_t{plan_.lanes} * threads_;
  std::int64_t tiled = count / round * round;
  const std::int64_t rest = count - tiled;
  const double images_a_thread = rest >= threads_ ? static_cast<double>((rest + threads_ - 1) / threads_)
                                                  : static_cast<double>(rest) / threads_;
  if (images_a_thread * kSingleImageCost > plan_.lanes) tiled = count;
  run_tiles(pixels, tiled, logits);
  const std::int64_t image_bytes = std::int64_t{plan_.network.image_size} * plan_.network.image_size * 3;
  run_singly(pixels + tiled * image_bytes, count - tiled, logits + tiled * plan_.network.classes);
}

void IntegerNetwork::run_tiles(const std::uint8_t* pixels, std::int64_t count, float* logits) const {
  if (count == 0) return;
  const std::int64_t image_bytes = std::int64_t{plan_.network.image_size} * plan_.network.image_size * 3;
  const std::int64_t tiles = (count + plan_.lanes - 1) / plan_.lanes;
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const std::int64_t first = tile * plan_.lanes;
    const auto images = static_cast<int>(std::min<std::int64_t>(plan_.lanes, count - first));
    tiles_.run(plan_, pixels + first * image_bytes, images, logits + first * plan_.network.classes,
               scratch_[static_cast<std::size_t>(omp_get_thread_num())].data());
  }
}

void IntegerNetwork::run_singly(const std::uint8_t* pixels, std::int64_t count, float* logits) const {
  const std::int64_t image_bytes = std::int64_t{plan_.network.image_size} * plan_.network.image_size * 3;
  const std::int64_t separate = count / threads_ * threads_;
#pragma omp parallel num_threads(threads_)
  {
    const int thread = omp_get_thread_num();
    const int threads = omp_get_num_threads();
#pragma omp for schedule(static)
    for (std::int64_t image = 0; image < separate; ++image) {
      planes_.run(plan_, pixels + image * image_bytes, logits + image * plan_.network.classes,
                  scratch_[static_cast<std::size_t>(thread)].data(), {});
    }
    for (std::int64_t image = separate; image < count; ++image) {
      planes_.run(plan_, pixels + image * image_bytes, logits + image * plan_.network.classes,
                  scratch_[0].data(), {thread, threads});
    }
  }
}

}  // namespace nibble
