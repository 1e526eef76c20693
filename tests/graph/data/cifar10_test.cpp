#include "graph/data/cifar10.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <functional>

#include "graph/data/checked_files.h"
#include "graph/network/error.h"
#include "tests/environment.h"
#include "tests/graph/data/small_data_set.h"
#include "tests/messages.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

/// A small data set in a folder, with a cache of checked files of its own.
class Cifar10 : public testing::Test {
 protected:
  Cifar10() : cache_variable_("XDG_CACHE_HOME", (temporary_ / "cache").c_str()) { small_.write(folder_); }

  void replace(const std::string& name, const std::string& content) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }

  Dataset read(Split split, int validation = 0) const {
    return read_cifar10(folder_, split, validation, small_.published);
  }

  std::string refusal(Split split, int validation = 0) const {
    return message_of([&] { read(split, validation); });
  }

  TemporaryFolder temporary_;
  EnvironmentVariable cache_variable_;
  SmallDataSet small_;
  fs::path folder_ = temporary_ / "files";
};

/// Record `record` of a file, turned to [row][column][channel] by indices written out.
void expect_record(const std::string& bytes, std::size_t record, const Dataset& dataset, std::size_t index) {
  const std::size_t start = record * 3073;
  ASSERT_EQ(dataset.labels[index], static_cast<std::uint8_t>(bytes[start]));
  const std::span<const std::uint8_t> image = dataset.image(index);
  for (std::size_t row = 0; row < 32; ++row) {
    for (std::size_t column = 0; column < 32; ++column) {
      for (std::size_t channel = 0; channel < 3; ++channel) {
        ASSERT_EQ(image[(row * 32 + column) * 3 + channel],
                  static_cast<std::uint8_t>(bytes[start + 1 + channel * 1024 + row * 32 + column]));
      }
    }
  }
}

TEST_F(Cifar10, ReadsTheTestFile) {
  const Dataset dataset = read(Split::test);
  EXPECT_EQ(dataset.name, "CIFAR-10 test");
  EXPECT_EQ(dataset.sha256, small_.published.files.back().sha256);
  ASSERT_EQ(dataset.count(), 7);
  ASSERT_EQ(dataset.labels.size(), 7U);
  for (std::size_t i = 0; i < 7; ++i) expect_record(small_.bytes["test_batch.bin"], i, dataset, i);
}

TEST_F(Cifar10, HoldsOutTheEndOfTheLastTrainingFile) {
  const Dataset train = read(Split::train, 3);
  const Dataset validation = read(Split::validation, 3);
  ASSERT_EQ(train.count(), 5 * 7 - 3);
  ASSERT_EQ(validation.count(), 3);
  for (std::size_t i = 0; i < 32; ++i) {
    expect_record(small_.bytes["data_batch_" + std::to_string(i / 7 + 1) + ".bin"], i % 7, train, i);
  }
  for (std::size_t i = 0; i < 3; ++i) expect_record(small_.bytes["data_batch_5.bin"], 4 + i, validation, i);
  EXPECT_EQ(train.name, "CIFAR-10 train");
  EXPECT_EQ(validation.name, "CIFAR-10 validation");
  std::string sums;
  for (int i = 0; i < 5; ++i) {
    sums += small_.published.files[static_cast<std::size_t>(i)].sha256 + "  data_batch_" +
            std::to_string(i + 1) + ".bin\n";
  }
  EXPECT_EQ(train.sha256, sha256_of(sums));
}

TEST_F(Cifar10, HoldsOutNothingOrAWholeFile) {
  EXPECT_EQ(read(Split::train, 0).count(), 35);
  EXPECT_EQ(read(Split::validation, 0).count(), 0);
  EXPECT_EQ(read(Split::train, 7).count(), 28);
  EXPECT_EQ(read(Split::validation, 7).count(), 7);
  EXPECT_EQ(refusal(Split::train, 8), "the validation split has 8 records; it must have 0 to 7");
  EXPECT_EQ(refusal(Split::train, -1), "the validation split has -1 records; it must have 0 to 7");
}

TEST_F(Cifar10, NamesTheRecordWithAWrongLabel) {
  std::string bytes = small_.bytes["test_batch.bin"];
  bytes[5 * 3073] = 10;
  replace("test_batch.bin", bytes);
  EXPECT_THAT(
      refusal(Split::test),
      HasSubstr("test_batch.bin: record 5 has the label 10 instead of 0 to 9; fetch the data set again"));
}

TEST_F(Cifar10, RefusesFilesOfAnotherLength) {
  for (const std::string& bytes :
       {std::string(), small_.bytes["test_batch.bin"].substr(1), small_.bytes["test_batch.bin"] + "x"}) {
    replace("test_batch.bin", bytes);
    EXPECT_THAT(refusal(Split::test), HasSubstr("test_batch.bin has " + std::to_string(bytes.size()) +
                                                " bytes instead of 21511; fetch the data set again"));
  }
  fs::remove(folder_ / "test_batch.bin");
  EXPECT_THAT(refusal(Split::test), HasSubstr("test_batch.bin cannot be read: No such file"));
}

TEST_F(Cifar10, RefusesAChangedPixel) {
  std::string bytes = small_.bytes["data_batch_3.bin"];
  bytes[1234] = static_cast<char>(bytes[1234] ^ 1);
  replace("data_batch_3.bin", bytes);
  EXPECT_THAT(refusal(Split::train), HasSubstr("data_batch_3.bin has the SHA-256 " + sha256_of(bytes) +
                                               " instead of the published "));
  EXPECT_EQ(read(Split::test).count(), 7);  // the other files are whole
}

TEST_F(Cifar10, RemembersSumsBySizeAndTime) {
  const fs::path path = folder_ / "test_batch.bin";
  EXPECT_EQ(read(Split::test).count(), 7);
  EXPECT_TRUE(fs::exists(checked_files_path()));
  struct stat before;
  ASSERT_EQ(stat(path.c_str(), &before), 0);

  // The same size and time: taken as unchanged, which shows that nothing was computed.
  std::string bytes = small_.bytes["test_batch.bin"];
  bytes[1234] = static_cast<char>(bytes[1234] ^ 1);
  replace("test_batch.bin", bytes);
  std::array<timespec, 2> times = {before.st_atim, before.st_mtim};
  ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times.data(), 0), 0);
  EXPECT_EQ(refusal(Split::test), "no error");

  // One nanosecond later it is another file.
  times[1].tv_nsec = (times[1].tv_nsec + 1) % 1000000000;
  ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times.data(), 0), 0);
  EXPECT_THAT(refusal(Split::test), HasSubstr("test_batch.bin has the SHA-256"));
}

TEST_F(Cifar10, ADamagedOrUnwritableCacheIsNoError) {
  fs::create_directories(checked_files_path().parent_path());
  std::ofstream(checked_files_path()) << "nonsense\n\n1 2 3 4 5\n"
                                      << std::string(64, 'a') << " x y z /file\n";
  EXPECT_EQ(read(Split::test).count(), 7);
  EXPECT_EQ(read(Split::test).count(), 7);

  std::ofstream(temporary_ / "file") << "not a folder";
  const EnvironmentVariable below_a_file("XDG_CACHE_HOME", (temporary_ / "file/cache").c_str());
  EXPECT_EQ(read(Split::train).count(), 35);
  const EnvironmentVariable nowhere("XDG_CACHE_HOME", nullptr);
  const EnvironmentVariable homeless("HOME", nullptr);
  EXPECT_TRUE(checked_files_path().empty());
  EXPECT_EQ(read(Split::train).count(), 35);
}

TEST_F(Cifar10, FindsTheFilesInTheFolderOrInThePublishedOneInIt) {
  EXPECT_EQ(find_data_files(folder_), folder_);
  const fs::path root = temporary_ / "root";
  EXPECT_EQ(find_data_files(root), std::nullopt);
  fs::create_directories(root / "cifar-10-batches-bin");
  EXPECT_EQ(find_data_files(root), std::nullopt);
  small_.write(root / "cifar-10-batches-bin");
  EXPECT_EQ(find_data_files(root), root / "cifar-10-batches-bin");
}

TEST_F(Cifar10, NamesTheMissingFileOfFive) {
  fs::remove(folder_ / "data_batch_4.bin");
  EXPECT_EQ(message_of([&] { find_data_files(folder_); }),
            folder_.string() +
                " holds 5 of the 6 files of the data set, without data_batch_4.bin; put what is "
                "missing there, or remove the folder so that the archive can be fetched");
  // A folder of that name is not the file.
  fs::create_directories(folder_ / "data_batch_4.bin");
  EXPECT_THAT(message_of([&] { find_data_files(folder_); }), HasSubstr("without data_batch_4.bin;"));
}

TEST(Cifar10Root, IsTheVariableWhenItIsSet) {
  {
    const EnvironmentVariable variable("CIFAR10_ROOT", "/elsewhere");
    EXPECT_EQ(cifar10_root("./data"), "/elsewhere");
  }
  {
    const EnvironmentVariable variable("CIFAR10_ROOT", "");
    EXPECT_EQ(cifar10_root("./data"), "./data");
  }
  const EnvironmentVariable variable("CIFAR10_ROOT", nullptr);
  EXPECT_EQ(cifar10_root("./data"), "./data");
}

TEST(GeneratedImages, AreTheSameEverywhere) {
  // Expected values from a calculation in Python.
  const Dataset dataset = generated_images(2);
  ASSERT_EQ(dataset.count(), 2);
  EXPECT_TRUE(dataset.labels.empty());
  EXPECT_EQ(dataset.name, "generated");
  const std::vector<std::uint8_t> first_pixels(dataset.pixels.begin(), dataset.pixels.begin() + 6);
  EXPECT_THAT(first_pixels, testing::ElementsAre(145, 127, 62, 190, 15, 218));
  EXPECT_EQ(sha256_of({reinterpret_cast<const char*>(dataset.pixels.data()), dataset.pixels.size()}),
            "2a37e7a33d2a053190440ac9975e504a3cb5e97fbefbdf056024ba4c32b3c509");
  // More images begin with the same ones.
  const Dataset more = generated_images(5);
  EXPECT_TRUE(std::equal(dataset.pixels.begin(), dataset.pixels.end(), more.pixels.begin()));
  EXPECT_EQ(generated_images(0).count(), 0);
}

TEST(Sha256, AgreesWithThePublishedExamples) {
  // FIPS 180-4, appendix examples.
  EXPECT_EQ(sha256_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Cifar10Published, IsReadWhole) {
  if (std::getenv("CIFAR10_ROOT") == nullptr) GTEST_SKIP() << "CIFAR10_ROOT is not set";
  const std::optional<fs::path> folder = find_data_files(cifar10_root("."));
  ASSERT_TRUE(folder.has_value());
  const Dataset test = read_cifar10(*folder, Split::test);
  const Dataset train = read_cifar10(*folder, Split::train, 5000);
  const Dataset validation = read_cifar10(*folder, Split::validation, 5000);
  EXPECT_EQ(test.count(), 10000);
  EXPECT_EQ(train.count(), 45000);
  EXPECT_EQ(validation.count(), 5000);
  std::array<int, 10> test_images{};
  for (const std::uint8_t label : test.labels) ++test_images[label];
  EXPECT_THAT(test_images, testing::Each(1000));
  std::array<int, 10> training_images{};
  for (const std::uint8_t label : train.labels) ++training_images[label];
  for (const std::uint8_t label : validation.labels) ++training_images[label];
  EXPECT_THAT(training_images, testing::Each(5000));
  EXPECT_EQ(test.labels[0], 3);  // the well-known cat, then a ship
  EXPECT_EQ(test.labels[1], 8);
  EXPECT_EQ(sha256_of({reinterpret_cast<const char*>(test.pixels.data()), 2 * cifar10_image_bytes}),
            "cc6f32b6428b3acbd3665b34f3c1d220058c6cd72dfe90abc07830614719c75a");
}

}  // namespace
}  // namespace nibble
