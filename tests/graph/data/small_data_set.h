#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "graph/data/cifar10.h"
#include "graph/data/random.h"
#include "graph/data/sha256.h"

namespace nibble {

/// Six small files in the data set's format, and the list with their true SHA-256 sums.
struct SmallDataSet {
  std::map<std::string, std::string> bytes;
  DataFiles published;

  explicit SmallDataSet(int records = 7, std::uint64_t seed = 1) {
    published.folder = "cifar-10-batches-bin";
    SplitMix64 random(seed);
    for (const DataFile& file : published_cifar10().files) {
      std::string& content = bytes[file.name];
      for (int i = 0; i < records; ++i) {
        content += static_cast<char>(random.below(cifar10_classes));
        for (std::size_t k = 0; k < cifar10_image_bytes; ++k)
          content += static_cast<char>(random.next() >> 56);
      }
      published.files.push_back({file.name, records, sha256_of(content)});
    }
  }

  void write(const std::filesystem::path& folder) const {
    std::filesystem::create_directories(folder);
    for (const auto& [name, content] : bytes) std::ofstream(folder / name, std::ios::binary) << content;
  }
};

}  // namespace nibble
