#include "graph/data/loader.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <string>
#include <system_error>
#include <thread>

#include "graph/data/random.h"
#include "graph/network/error.h"

namespace nibble {
namespace {

/// Each worker may be one batch ahead of the one it fills, and one batch is in the reader's hands.
std::size_t ring_size(int workers) {
  return workers == 0 ? 1 : 2 * static_cast<std::size_t>(workers) + 1;
}

struct Slot {
  Batch batch;
  std::exception_ptr failure;
  bool ready = false;
};

}  // namespace

/// Batch number n of an epoch lies in slot n % ring. A worker takes the next number that no worker has taken
/// as soon as its slot is free, fills it without the lock, and marks it ready; the reader waits for its
/// number.
///
///   number    0 ......... consumed ........... claimed ............ end
///             given back  | leased, ready or being filled | not begun
///
/// claimed - released <= ring, where released = consumed - 1 while a batch is leased.
struct Loader::State {
  const Dataset& dataset;
  LoaderOptions options;
  int batches;
  std::vector<Slot> ring;

  std::mutex mutex;
  std::condition_variable work;   // for workers: a slot is free, a new epoch, stop
  std::condition_variable ready;  // for the reader: a slot is ready, no worker is busy
  std::vector<std::uint32_t> order;
  std::uint64_t epoch = 0;
  int claimed = 0;   // the next number that a worker takes
  int consumed = 0;  // the next number that the reader gets
  int released = 0;  // numbers below are free
  int end = 0;       // numbers of this epoch; 0 before start()
  int busy = 0;      // workers that fill a slot
  bool stop = false;
  std::vector<std::thread> workers;

  State(const Dataset& source, LoaderOptions given)
      : dataset(source), options(std::move(given)), batches(0), ring(ring_size(options.num_workers)) {
    const int count = dataset.count();
    batches = options.drop_last ? count / options.batch_size
                                : (count + options.batch_size - 1) / options.batch_size;
    order.resize(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), 0U);
    const std::size_t images = static_cast<std::size_t>(std::min(options.batch_size, count));
    for (Slot& slot : ring) {
      slot.batch.pixels.reserve(images * cifar10_image_bytes);
      slot.batch.labels.reserve(dataset.labels.empty() ? 0 : images);
      slot.batch.indices.reserve(images);
    }
    try {
      for (int i = 0; i < options.num_workers; ++i) workers.emplace_back([this] { run_worker(); });
    } catch (const std::system_error& error) {
      stop_workers();
      throw RunError("cannot start " + std::to_string(options.num_workers) +
                     " loader threads: " + error.code().message() + "; ask for fewer with num_workers");
    }
  }

  ~State() { stop_workers(); }

  void stop_workers() {
    {
      const std::lock_guard lock(mutex);
      stop = true;
    }
    work.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  Slot& slot_of(int number) { return ring[static_cast<std::size_t>(number) % ring.size()]; }

  bool has_work() const { return claimed < end && claimed - released < static_cast<int>(ring.size()); }

  void run_worker() {
    std::unique_lock lock(mutex);
    for (;;) {
      work.wait(lock, [this] { return stop || has_work(); });
      if (stop) return;
      const int number = claimed++;
      ++busy;
      Slot& slot = slot_of(number);
      lock.unlock();
      fill(slot, number);
      lock.lock();
      --busy;
      slot.ready = true;
      ready.notify_one();
    }
  }

  /// Reads `order` and `epoch` without the lock: start() changes them only when no worker is busy.
  void fill(Slot& slot, int number) {
    slot.failure = nullptr;
    try {
      fill_batch(slot.batch, number);
    } catch (...) {
      slot.failure = std::current_exception();
    }
  }

  void fill_batch(Batch& batch, int number) {
    const std::size_t first = static_cast<std::size_t>(number) * static_cast<std::size_t>(options.batch_size);
    const std::size_t size = std::min(static_cast<std::size_t>(options.batch_size), order.size() - first);
    batch.size = static_cast<int>(size);
    batch.epoch = epoch;
    batch.number = number;
    batch.pixels.resize(size * cifar10_image_bytes);
    batch.labels.resize(dataset.labels.empty() ? 0 : size);
    batch.indices.assign(order.begin() + static_cast<std::ptrdiff_t>(first),
                         order.begin() + static_cast<std::ptrdiff_t>(first + size));
    if (!options.shuffle && !options.transform) {  // one run of memory
      const std::span<const std::uint8_t> pixels = dataset.pixels;
      std::memcpy(batch.pixels.data(), pixels.data() + first * cifar10_image_bytes, batch.pixels.size());
    }
    for (std::size_t i = 0; i < size; ++i) {
      const std::uint32_t index = batch.indices[i];
      if (!dataset.labels.empty()) batch.labels[i] = dataset.labels[index];
      const std::span<std::uint8_t> image(batch.pixels.data() + i * cifar10_image_bytes, cifar10_image_bytes);
      if (options.transform) {
        options.transform(dataset.image(index), index, epoch, image);
      } else if (options.shuffle) {
        std::memcpy(image.data(), dataset.image(index).data(), image.size());
      }
    }
  }

  void start(std::uint64_t new_epoch, int first_batch) {
    std::unique_lock lock(mutex);
    claimed = end = 0;  // workers find nothing more
    ready.wait(lock, [this] { return busy == 0; });
    for (Slot& slot : ring) slot.ready = false;
    if (options.shuffle) shuffle_order(order, dataset.count(), options.seed, new_epoch);
    epoch = new_epoch;
    claimed = consumed = released = first_batch;
    end = batches;
    lock.unlock();
    work.notify_all();
  }

  const Batch* next() {
    std::unique_lock lock(mutex);
    if (released < consumed) {  // what was leased is given back
      slot_of(released).ready = false;
      ++released;
      work.notify_one();
    }
    if (consumed >= end) return nullptr;
    const int number = consumed++;
    Slot& slot = slot_of(number);
    if (workers.empty()) {
      fill(slot, number);
    } else {
      ready.wait(lock, [&] { return slot.ready; });
    }
    if (slot.failure) {
      const std::exception_ptr failure = slot.failure;
      end = 0;  // the epoch ends here
      std::rethrow_exception(failure);
    }
    return &slot.batch;
  }
};

Loader::Loader(const Dataset& dataset, LoaderOptions options) {
  if (options.batch_size < 1) {
    throw InputError("a batch of " + std::to_string(options.batch_size) +
                     " images is not possible; give 1 or more");
  }
  if (options.num_workers < 0) {
    throw InputError(std::to_string(options.num_workers) +
                     " loader threads are not possible; give 0 or more");
  }
  state_ = std::make_unique<State>(dataset, std::move(options));
}

Loader::~Loader() = default;

int Loader::batches_per_epoch() const {
  return state_->batches;
}

void Loader::start(std::uint64_t epoch, int first_batch) {
  if (first_batch < 0 || first_batch > state_->batches) {
    throw InputError("an epoch of " + std::to_string(state_->batches) + " batches cannot begin at batch " +
                     std::to_string(first_batch));
  }
  state_->start(epoch, first_batch);
}

const Batch* Loader::next() {
  return state_->next();
}

}  // namespace nibble
