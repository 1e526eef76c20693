#include "graph/data/loader.h"

#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <set>
#include <stdexcept>
#include <thread>

#include "graph/data/random.h"
#include "graph/network/error.h"
#include "tests/count_allocations.h"

namespace nibble {
namespace {

using testing::ElementsAre;

/// Images whose first two bytes are their index, with labels.
Dataset numbered_images(int count) {
  Dataset dataset = generated_images(count);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    dataset.pixels[i * cifar10_image_bytes] = static_cast<std::uint8_t>(i & 255);
    dataset.pixels[i * cifar10_image_bytes + 1] = static_cast<std::uint8_t>(i >> 8);
    dataset.labels.push_back(static_cast<std::uint8_t>((i * 7) % 10));
  }
  return dataset;
}

/// An augmentation in small: adds bytes that depend on (epoch, image) alone, and takes uneven time.
void add_noise(std::span<const std::uint8_t> image_in, std::uint32_t image_index, std::uint64_t epoch,
               std::span<std::uint8_t> image_out) {
  SplitMix64 random(mix_seed(9, epoch, image_index));
  const std::uint8_t offset = static_cast<std::uint8_t>(random.next());
  for (std::size_t i = 0; i < image_in.size(); ++i) {
    image_out[i] = static_cast<std::uint8_t>(image_in[i] + offset);
  }
  if (random.below(50) == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
}

std::vector<Batch> read_epoch(Loader& loader, std::uint64_t epoch, int first_batch = 0) {
  std::vector<Batch> batches;
  loader.start(epoch, first_batch);
  while (const Batch* batch = loader.next()) batches.push_back(*batch);
  EXPECT_EQ(loader.next(), nullptr);
  return batches;
}

void expect_equal(const std::vector<Batch>& a, const std::vector<Batch>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].size, b[i].size);
    EXPECT_EQ(a[i].epoch, b[i].epoch);
    EXPECT_EQ(a[i].number, b[i].number);
    EXPECT_EQ(a[i].indices, b[i].indices);
    EXPECT_EQ(a[i].labels, b[i].labels);
    EXPECT_TRUE(a[i].pixels == b[i].pixels);
  }
}

TEST(ShuffledOrder, IsTheDocumentedFunction) {
  // Expected values from a calculation in Python.
  EXPECT_THAT(shuffled_order(10, 1, 0), ElementsAre(0, 8, 6, 1, 7, 9, 3, 4, 5, 2));
  EXPECT_THAT(shuffled_order(10, 1, 1), ElementsAre(9, 4, 0, 1, 6, 2, 8, 7, 5, 3));
  EXPECT_THAT(shuffled_order(10, 2, 0), ElementsAre(3, 6, 0, 7, 2, 5, 4, 9, 1, 8));
  EXPECT_EQ(SplitMix64(1).next(), 0x910a2dec89025cc1U);
  EXPECT_THAT(shuffled_order(0, 1, 0), testing::IsEmpty());
  EXPECT_THAT(shuffled_order(1, 1, 0), ElementsAre(0));
}

TEST(ShuffledOrder, PutsEveryImageAnywhere) {
  constexpr int kImages = 16;
  constexpr int kEpochs = 16000;
  std::vector<int> hits(kImages * kImages);
  for (std::uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
    const std::vector<std::uint32_t> order = shuffled_order(kImages, 5, epoch);
    EXPECT_EQ(std::set<std::uint32_t>(order.begin(), order.end()).size(), static_cast<std::size_t>(kImages));
    for (std::size_t place = 0; place < kImages; ++place) ++hits[place * kImages + order[place]];
  }
  const double expected = double{kEpochs} / kImages;
  double chi_square = 0;
  for (const int count : hits) chi_square += (count - expected) * (count - expected) / expected;
  // 225 degrees of freedom: mean 225, deviation 21; the seed is fixed.
  EXPECT_NEAR(chi_square, 225, 4 * std::sqrt(2 * 225.0));
}

TEST(SplitMix64, BoundedNumbersAreUniform) {
  SplitMix64 random(3);
  std::vector<int> hits(6);
  for (int i = 0; i < 60000; ++i) ++hits.at(random.below(6));
  for (const int count : hits) EXPECT_NEAR(count, 10000, 4 * std::sqrt(60000 * (1 / 6.0) * (5 / 6.0)));
  // With a bound of 3 * 2^30, four products fall on three numbers: without rejection, multiples of 3 come
  // twice as often as the others.
  int multiples = 0;
  for (int i = 0; i < 30000; ++i) multiples += random.below(3U << 30) % 3 == 0 ? 1 : 0;
  EXPECT_NEAR(multiples, 10000, 4 * std::sqrt(30000 * (1 / 3.0) * (2 / 3.0)));
  for (int i = 0; i < 1000; ++i) {
    const double value = random.uniform();
    EXPECT_TRUE(value >= 0 && value < 1);
  }
}

TEST(Loader, TheSameBatchesForAnyNumberOfWorkers) {
  const Dataset dataset = numbered_images(203);
  for (const bool shuffle : {false, true}) {
    for (const bool transform : {false, true}) {
      for (const bool drop_last : {false, true}) {
        for (const int batch_size : {1, 16, 64, 203, 1000}) {
          LoaderOptions options;
          options.batch_size = batch_size;
          options.shuffle = shuffle;
          options.drop_last = drop_last;
          if (transform) options.transform = add_noise;
          options.num_workers = 0;
          Loader synchronous(dataset, options);
          const int whole = 203 / batch_size;
          const int expected = whole + (drop_last || 203 % batch_size == 0 ? 0 : 1);
          EXPECT_EQ(synchronous.batches_per_epoch(), expected);
          for (const int workers : {1, 2, 4}) {
            options.num_workers = workers;
            Loader loader(dataset, options);
            for (const std::uint64_t epoch : {0U, 1U, 7U}) {
              const std::vector<Batch> reference = read_epoch(synchronous, epoch);
              EXPECT_EQ(reference.size(), static_cast<std::size_t>(expected));
              expect_equal(read_epoch(loader, epoch), reference);
            }
          }
        }
      }
    }
  }
}

TEST(Loader, GivesEachImageOnceWithItsPixelsAndLabel) {
  const Dataset dataset = numbered_images(300);
  LoaderOptions options;
  options.batch_size = 32;
  options.shuffle = true;
  options.seed = 4;
  Loader loader(dataset, options);
  std::vector<std::uint32_t> seen;
  loader.start(2);
  while (const Batch* batch = loader.next()) {
    const std::size_t size = static_cast<std::size_t>(batch->size);
    ASSERT_EQ(batch->indices.size(), size);
    ASSERT_EQ(batch->labels.size(), size);
    ASSERT_EQ(batch->pixels.size(), size * cifar10_image_bytes);
    EXPECT_EQ(batch->size, batch->number < 9 ? 32 : 12);
    for (std::size_t i = 0; i < size; ++i) {
      const std::uint32_t index = batch->indices[i];
      EXPECT_EQ(batch->labels[i], dataset.labels[index]);
      EXPECT_TRUE(std::equal(dataset.image(index).begin(), dataset.image(index).end(),
                             batch->pixels.begin() + static_cast<std::ptrdiff_t>(i * cifar10_image_bytes)));
      seen.push_back(index);
    }
  }
  EXPECT_EQ(seen, shuffled_order(300, 4, 2));
}

TEST(Loader, BeginsInTheMiddleOfAnEpoch) {
  const Dataset dataset = numbered_images(100);
  for (const int workers : {0, 3}) {
    LoaderOptions options;
    options.batch_size = 8;
    options.shuffle = true;
    options.num_workers = workers;
    options.transform = add_noise;
    Loader loader(dataset, options);
    const std::vector<Batch> whole = read_epoch(loader, 5);
    ASSERT_EQ(whole.size(), 13U);
    for (int first = 0; first <= 13; ++first) {
      expect_equal(read_epoch(loader, 5, first), {whole.begin() + first, whole.end()});
    }
  }
}

TEST(Loader, CanBeRestartedAtAnyMoment) {
  const Dataset dataset = numbered_images(120);
  LoaderOptions options;
  options.batch_size = 4;
  options.shuffle = true;
  options.transform = add_noise;
  options.num_workers = 0;
  Loader synchronous(dataset, options);
  std::vector<std::vector<Batch>> epochs;
  for (std::uint64_t epoch = 0; epoch < 3; ++epoch) epochs.push_back(read_epoch(synchronous, epoch));

  options.num_workers = 3;
  Loader loader(dataset, options);
  SplitMix64 random(11);
  for (int round = 0; round < 300; ++round) {
    const std::uint32_t epoch = random.below(3);
    const int first = static_cast<int>(random.below(30));
    loader.start(epoch, first);
    const int count = static_cast<int>(random.below(static_cast<std::uint32_t>(31 - first)));
    for (int i = 0; i < count; ++i) {
      const Batch* batch = loader.next();
      ASSERT_NE(batch, nullptr);
      expect_equal({*batch}, {epochs[epoch][static_cast<std::size_t>(first + i)]});
    }
  }
}

TEST(Loader, ALeasedBatchStaysAsItIs) {
  const Dataset dataset = numbered_images(400);
  LoaderOptions options;
  options.batch_size = 4;
  options.num_workers = 4;
  options.shuffle = true;
  Loader loader(dataset, options);
  loader.start(0);
  while (const Batch* batch = loader.next()) {
    const Batch copy = *batch;
    if (batch->number % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    expect_equal({*batch}, {copy});
  }
}

TEST(Loader, WorksAheadButNotWithoutLimit) {
  const Dataset dataset = numbered_images(400);
  std::atomic<int> transformed{0};
  LoaderOptions options;
  options.batch_size = 4;
  options.num_workers = 2;
  options.transform = [&](std::span<const std::uint8_t>, std::uint32_t, std::uint64_t,
                          std::span<std::uint8_t>) { ++transformed; };
  Loader loader(dataset, options);
  loader.start(0);
  ASSERT_NE(loader.next(), nullptr);
  // The ring has five batches: the leased one and four ahead.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (transformed < 20 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(transformed, 20);
}

TEST(Loader, PassesOnAnExceptionAndGoesOn) {
  const Dataset dataset = numbered_images(40);
  for (const int workers : {0, 1, 3}) {
    LoaderOptions options;
    options.batch_size = 4;
    options.num_workers = workers;
    options.transform = [](std::span<const std::uint8_t>, std::uint32_t index, std::uint64_t epoch,
                           std::span<std::uint8_t>) {
      if (epoch == 0 && index == 21) throw RunError("image 21");
    };
    Loader loader(dataset, options);
    loader.start(0);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(loader.next()->number, i);
    EXPECT_THROW(loader.next(), RunError);
    EXPECT_EQ(loader.next(), nullptr);
    EXPECT_EQ(read_epoch(loader, 1).size(), 10U);
  }
}

TEST(Loader, AllocatesNothingOnceItRuns) {
  const Dataset dataset = numbered_images(203);
  for (const int workers : {0, 1, 2}) {
    LoaderOptions options;
    options.batch_size = 16;
    options.shuffle = true;
    options.num_workers = workers;
    options.transform = add_noise;
    Loader loader(dataset, options);
    const auto run_epoch = [&](std::uint64_t epoch) {
      loader.start(epoch);
      while (loader.next() != nullptr) {
      }
    };
    run_epoch(0);
    const long before = allocations;
    for (std::uint64_t epoch = 1; epoch < 6; ++epoch) run_epoch(epoch);
    EXPECT_EQ(allocations - before, 0) << workers << " workers";
  }
}

TEST(Loader, ServesImagesWithoutLabelsAndAnEmptyDataSet) {
  const Dataset generated = generated_images(10);
  LoaderOptions options;
  options.batch_size = 4;
  Loader loader(generated, options);
  EXPECT_EQ(loader.next(), nullptr);  // before start()
  const std::vector<Batch> batches = read_epoch(loader, 0);
  ASSERT_EQ(batches.size(), 3U);
  EXPECT_TRUE(batches[2].labels.empty());
  EXPECT_EQ(batches[2].size, 2);
  const Dataset nothing;
  Loader empty(nothing, options);
  EXPECT_EQ(empty.batches_per_epoch(), 0);
  EXPECT_TRUE(read_epoch(empty, 0).empty());
}

TEST(Loader, RefusesImpossibleOptions) {
  const Dataset dataset = numbered_images(10);
  LoaderOptions options;
  options.batch_size = 0;
  EXPECT_THROW(Loader(dataset, options), InputError);
  options.batch_size = 4;
  options.num_workers = -1;
  EXPECT_THROW(Loader(dataset, options), InputError);
  options.num_workers = 1;
  Loader loader(dataset, options);
  EXPECT_THROW(loader.start(0, 4), InputError);
  EXPECT_THROW(loader.start(0, -1), InputError);
  EXPECT_NO_THROW(loader.start(0, 3));
  EXPECT_EQ(loader.next(), nullptr);
}

TEST(Loader, CanBeDestroyedWhileItWorks) {
  const Dataset dataset = numbered_images(200);
  for (int round = 0; round < 50; ++round) {
    LoaderOptions options;
    options.batch_size = 2;
    options.num_workers = 4;
    options.transform = add_noise;
    Loader loader(dataset, options);
    if (round % 3 > 0) loader.start(0);
    if (round % 3 > 1) {
      EXPECT_NE(loader.next(), nullptr);
    }
  }
}

}  // namespace
}  // namespace nibble
