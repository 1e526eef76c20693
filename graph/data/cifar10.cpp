#include "graph/data/cifar10.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "graph/data/checked_files.h"
#include "graph/data/random.h"
#include "graph/data/sha256.h"
#include "graph/network/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kPixels = std::size_t{cifar10_image_size} * cifar10_image_size;
constexpr std::size_t kRecordBytes = 1 + cifar10_image_bytes;
constexpr int kRecordsAtOnce = 500;  // 1.5 MB beside the data set itself

/// A record's planes to [row][column][channel].
void interleave(const std::uint8_t* planes, std::uint8_t* image) {
  for (std::size_t i = 0; i < kPixels; ++i) {
    image[3 * i] = planes[i];
    image[3 * i + 1] = planes[kPixels + i];
    image[3 * i + 2] = planes[2 * kPixels + i];
  }
}

/// Appends records first..end-1 of the file to `dataset`; checks its size and all their labels.
void append_records(const fs::path& path, int records, int first, int end, Dataset& dataset) {
  const std::uintmax_t expected = static_cast<std::uintmax_t>(records) * kRecordBytes;
  std::error_code error;
  const std::uintmax_t size = fs::file_size(path, error);
  if (error) throw InputError(path.string() + " cannot be read: " + error.message());
  if (size != expected) {
    throw InputError(path.string() + " has " + std::to_string(size) + " bytes instead of " +
                     std::to_string(expected) + "; fetch the data set again");
  }
  std::ifstream stream(path, std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(first) * static_cast<std::streamoff>(kRecordBytes));
  std::vector<std::uint8_t> block(kRecordsAtOnce * kRecordBytes);
  for (int record = first; record < end;) {
    const int count = std::min(kRecordsAtOnce, end - record);
    stream.read(reinterpret_cast<char*>(block.data()), static_cast<std::streamsize>(count * kRecordBytes));
    if (!stream) throw InputError(path.string() + " cannot be read; check its permissions and the disk");
    for (int i = 0; i < count; ++i, ++record) {
      const std::uint8_t* bytes = block.data() + i * kRecordBytes;
      if (bytes[0] >= cifar10_classes) {
        throw InputError(path.string() + ": record " + std::to_string(record) + " has the label " +
                         std::to_string(bytes[0]) + " instead of 0 to 9; fetch the data set again");
      }
      const std::size_t offset = dataset.labels.size() * cifar10_image_bytes;
      dataset.labels.push_back(bytes[0]);
      interleave(bytes + 1, dataset.pixels.data() + offset);
    }
  }
}

void check_sum(const fs::path& path, const std::string& expected) {
  const std::string found = remembered_sha256(path);
  if (found != expected) {
    throw InputError(path.string() + " has the SHA-256 " + found + " instead of the published " + expected +
                     "; fetch the data set again");
  }
}

}  // namespace

const DataFiles& published_cifar10() {
  static const DataFiles published = {
      "cifar-10-batches-bin",
      {{"data_batch_1.bin", 10000, "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"},
       {"data_batch_2.bin", 10000, "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"},
       {"data_batch_3.bin", 10000, "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"},
       {"data_batch_4.bin", 10000, "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"},
       {"data_batch_5.bin", 10000, "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"},
       {"test_batch.bin", 10000, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"}}};
  return published;
}

std::optional<fs::path> find_data_files(const fs::path& root, const DataFiles& published) {
  std::string incomplete;
  for (const fs::path& folder : {root, root / published.folder}) {
    std::string missing;
    std::size_t present = 0;
    for (const DataFile& file : published.files) {
      std::error_code error;
      if (fs::is_regular_file(folder / file.name, error)) {
        ++present;
      } else {
        missing += (missing.empty() ? "" : ", ") + file.name;
      }
    }
    if (missing.empty()) return folder;
    if (present > 0) {
      incomplete = folder.string() + " holds " + std::to_string(present) + " of the " +
                   std::to_string(published.files.size()) + " files of the data set, without " + missing +
                   "; put what is missing there, or remove the folder so that the archive can be fetched";
    }
  }
  if (!incomplete.empty()) throw InputError(incomplete);
  return std::nullopt;
}

fs::path cifar10_root(const fs::path& root) {
  const char* variable = std::getenv("CIFAR10_ROOT");
  return variable != nullptr && *variable != '\0' ? fs::path(variable) : root;
}

const char* dataset_name(Split split) {
  static constexpr const char* kNames[] = {"CIFAR-10 train", "CIFAR-10 validation", "CIFAR-10 test"};
  return kNames[static_cast<int>(split)];
}

Dataset read_cifar10(const fs::path& folder, Split split, int validation, const DataFiles& published) {
  const std::size_t training_files = published.files.size() - 1;
  const int last_records = published.files[training_files - 1].records;
  if (validation < 0 || validation > last_records) {
    throw InputError("the validation split has " + std::to_string(validation) +
                     " records; it must have 0 to " + std::to_string(last_records));
  }

  struct Part {
    const DataFile* file;
    int first;
    int end;
  };
  std::vector<Part> parts;
  for (std::size_t i = 0; i < published.files.size(); ++i) {
    const DataFile& file = published.files[i];
    const bool is_test = i == training_files;
    const int held_out = i + 1 == training_files ? validation : 0;
    if (split == Split::test && is_test) parts.push_back({&file, 0, file.records});
    if (split == Split::train && !is_test) parts.push_back({&file, 0, file.records - held_out});
    if (split == Split::validation && held_out > 0) {
      parts.push_back({&file, file.records - held_out, file.records});
    }
  }

  Dataset dataset;
  dataset.name = dataset_name(split);
  std::size_t count = 0;
  for (const Part& part : parts) count += static_cast<std::size_t>(part.end - part.first);
  dataset.pixels.resize(count * cifar10_image_bytes);
  dataset.labels.reserve(count);
  std::string sums;
  for (const Part& part : parts) {
    const fs::path path = folder / part.file->name;
    append_records(path, part.file->records, part.first, part.end, dataset);
    check_sum(path, part.file->sha256);
    sums += part.file->sha256 + "  " + part.file->name + "\n";
  }
  dataset.sha256 = split == Split::test ? parts.front().file->sha256 : sha256_of(sums);
  return dataset;
}

Dataset generated_images(int count) {
  Dataset dataset;
  dataset.name = "generated";
  dataset.pixels.resize(static_cast<std::size_t>(count) * cifar10_image_bytes);
  SplitMix64 random(1);
  std::vector<std::uint8_t> planes(cifar10_image_bytes);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    for (std::uint8_t& byte : planes) byte = static_cast<std::uint8_t>(random.next() >> 56);
    interleave(planes.data(), dataset.pixels.data() + i * cifar10_image_bytes);
  }
  return dataset;
}

}  // namespace nibble
