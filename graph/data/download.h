#pragma once

#include <chrono>
#include <filesystem>
#include <string>

#include "graph/data/cifar10.h"

namespace nibble {

struct DownloadOptions {
  std::string url;                        ///< of the archive; http, https or file
  int attempts = 5;                       ///< in a row without one new byte
  std::chrono::milliseconds pause{1000};  ///< before the second attempt; doubles each time
  std::chrono::seconds stall{30};         ///< a connection that brings nothing for so long is given up
  bool show_progress = true;              ///< on stderr
};

/// Fetches the archive and unpacks the files into `root`/published.folder, which is returned.
///
/// A download that was cut goes on where it stopped, also in a later run: it is
/// `root`/<published.folder>.tar.gz.part. Only the published names are taken from the archive, only regular
/// files, and each must have its size and SHA-256 before any of them appears under its own name. Throws
/// RunError (network, server, disk) or InputError (what was fetched is not the data set), each naming the
/// address or the path.
std::filesystem::path fetch_data_files(const std::filesystem::path& root, const DownloadOptions& options,
                                       const DataFiles& published = published_cifar10());

/// The folder with the six files: in CIFAR10_ROOT if it is set, else in `root`; when there are none of them
/// and `download` is true, they are fetched into it. Throws InputError or RunError with one sentence that
/// says what to do.
std::filesystem::path prepare_cifar10(const std::filesystem::path& root, bool download,
                                      const DownloadOptions& options,
                                      const DataFiles& published = published_cifar10());

}  // namespace nibble
