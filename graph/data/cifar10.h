#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace nibble {

inline constexpr int cifar10_image_size = 32;
inline constexpr int cifar10_classes = 10;
inline constexpr std::size_t cifar10_image_bytes = 3 * 32 * 32;

/// Images in memory.
struct Dataset {
  std::vector<std::uint8_t> pixels;  ///< [image][row][column][red, green, blue]
  std::vector<std::uint8_t> labels;  ///< 0..9, one an image; empty for generated images
  std::string name;                  ///< "CIFAR-10 test"
  std::string sha256;                ///< see read_cifar10; empty for generated images

  int count() const { return static_cast<int>(pixels.size() / cifar10_image_bytes); }
  std::span<const std::uint8_t> image(std::size_t index) const {
    return {pixels.data() + index * cifar10_image_bytes, cifar10_image_bytes};
  }
};

/// One file of a data set in CIFAR-10's binary format: records of 1 label byte and 3,072 pixel bytes (1,024
/// red, 1,024 green, 1,024 blue, each row by row).
struct DataFile {
  std::string name;
  int records;
  std::string sha256;  ///< lower-case hex
};

/// The files of a data set: training files first, the test file last.
struct DataFiles {
  std::string folder;  ///< the one folder of the published archive
  std::vector<DataFile> files;
};

/// The six published files of CIFAR-10 (Krizhevsky, 2009).
const DataFiles& published_cifar10();

/// The folder that holds all the files: `root`, or published.folder in it; nothing when neither holds any.
/// Throws InputError that names the missing file when a folder holds only some of them.
std::optional<std::filesystem::path> find_data_files(const std::filesystem::path& root,
                                                     const DataFiles& published = published_cifar10());

/// The environment variable CIFAR10_ROOT if it is set, else `root`.
std::filesystem::path cifar10_root(const std::filesystem::path& root);

enum class Split { train, validation, test };

/// "CIFAR-10 train", "CIFAR-10 validation" or "CIFAR-10 test".
const char* dataset_name(Split split);

/// Reads one split from `folder` (of find_data_files). The last `validation` records of the last training
/// file are the validation split, the other training records the train split.
///
/// Sizes and labels are checked, and each file's SHA-256 once: it is remembered by path, size and time of
/// modification in the user's cache folder. Dataset::sha256 is the test file's, or for training files that of
/// the lines `<sha256>  <name>\n`, as sha256sum prints them. Throws InputError naming the file and the
/// record.
Dataset read_cifar10(const std::filesystem::path& folder, Split split, int validation = 0,
                     const DataFiles& published = published_cifar10());

/// `count` images without a data set: SplitMix64 from state 1, each byte the top 8 bits of the next output,
/// 3,072 bytes an image in the order of a record's pixels (red, green, blue plane; no label byte), then
/// turned into NHWC as a file's pixels are.
Dataset generated_images(int count);

}  // namespace nibble
