#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "graph/network/image_tiles.h"
#include "graph/network/integer_plan.h"
#include "graph/network/layer_time.h"
#include "graph/network/position_planes.h"
#include "graph/network/quantized_parameters.h"
#include "graph/network/thread_team.h"
#include "kernels/convolution_kernel.h"
#include "kernels/cpu.h"

namespace nibble {

/// A quantized network on the kernels: built once into a plan, run without allocating. Equal to
/// ReferenceNetwork bit for bit, with any batch, any number of threads and any instruction set.
///
/// Many images: OpenMP over tiles (ImageTiles). The rest of a batch, and a single image: lanes are positions
/// (PositionPlanes), OpenMP over images, or one image split over the threads.
class IntegerNetwork {
 public:
  /// Kernels not above `limit`; scratch memory for omp_get_max_threads() threads.
  IntegerNetwork(const QuantizedNetwork& quantized, InstructionSet limit);
  IntegerNetwork(IntegerNetwork&& other) noexcept;
  ~IntegerNetwork();

  /// pixels: count x [row][column][colour]; logits: count x [class]. Calls from several threads take turns.
  void run(const std::uint8_t* pixels, std::int64_t count, float* logits) const;

  /// How many of `count` images run() computes in tiles of plan().lanes; the others go one at a time.
  std::int64_t images_in_tiles(std::int64_t count) const;

  /// Runs in tiles of images, `repetitions` times, with a clock around each layer; the fastest of each. A
  /// layer's seconds are the sum over the threads that work, divided by their number. Empty where run() would
  /// not compute all of `count` images in tiles: there is no clock in single images.
  std::vector<LayerTime> profile(const std::uint8_t* pixels, std::int64_t count, int repetitions = 5) const;

  const NetworkDescription& description() const { return plan_.network; }
  const IntegerPlan& plan() const { return plan_; }
  /// The highest instruction set among the kernels that it runs on.
  InstructionSet instruction_set() const;
  std::size_t plan_bytes() const { return plan_.bytes(); }      ///< weights, tables, factors
  std::size_t scratch_bytes() const { return scratch_bytes_; }  ///< of one thread
  std::string text() const;                                     ///< widths and each layer's kernel

 private:
  /// `times`: empty, or one of each thread.
  void run_tiles(const std::uint8_t* pixels, std::int64_t count, float* logits,
                 std::span<TileTimes> times = {}) const;
  void run_singly(const std::uint8_t* pixels, std::int64_t count, float* logits) const;

  IntegerPlan plan_;
  ImageTiles tiles_;
  PositionPlanes planes_;
  std::size_t scratch_bytes_;
  int threads_;
  mutable std::vector<AlignedVector<std::uint8_t>> scratch_;  ///< of each thread
  mutable ThreadTeam team_;                                   ///< of all threads
  std::unique_ptr<std::mutex> running_;
};

}  // namespace nibble
