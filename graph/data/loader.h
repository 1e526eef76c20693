#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "graph/data/cifar10.h"

namespace nibble {

/// Images on their way into a network. The vectors have exactly `size` images, labels and indices.
struct Batch {
  std::vector<std::uint8_t> pixels;    ///< [image][row][column][red, green, blue]
  std::vector<std::uint8_t> labels;    ///< empty when the data set has none
  std::vector<std::uint32_t> indices;  ///< of the images in the data set
  int size = 0;                        ///< images; the last batch of an epoch may be short
  std::uint64_t epoch = 0;
  int number = 0;  ///< of the batch in its epoch, from 0
};

/// Makes an image of the batch from an image of the data set, both [row][column][channel]. Runs in the
/// loader's threads, several at once: it must be a pure function of (seed, epoch, image_index) and allocate
/// nothing.
using Transform = std::function<void(std::span<const std::uint8_t> image_in, std::uint32_t image_index,
                                     std::uint64_t epoch, std::span<std::uint8_t> image_out)>;

struct LoaderOptions {
  int batch_size = 64;
  bool shuffle = false;  ///< order of an epoch: shuffled_order(count, seed, epoch); else 0, 1, 2 ...
  int num_workers = 2;   ///< threads that fill batches ahead; 0: next() fills them itself
  bool drop_last = false;
  std::uint64_t seed = 1;
  Transform transform;  ///< empty: pixels are copied
};

/// Batches of a data set, in an order that depends on (seed, epoch) alone, whatever the number of workers.
/// The same object serves every epoch; after the first batches of the first epoch nothing is allocated.
///
///   Loader loader(dataset, options);
///   loader.start(epoch, first_batch);
///   while (const Batch* batch = loader.next()) train(*batch);
///
/// One thread calls start() and next(). The data set must outlive the loader.
class Loader {
 public:
  Loader(const Dataset& dataset, LoaderOptions options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  int batches_per_epoch() const;

  /// Begins an epoch at batch `first_batch` (0..batches_per_epoch()); drops what was prepared before.
  void start(std::uint64_t epoch, int first_batch = 0);

  /// The next batch, which stays as it is until the next call of next() or start(); nullptr after the last
  /// one of the epoch and before start(). An exception of the transform is thrown here.
  const Batch* next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
