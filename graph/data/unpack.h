#pragma once

#include <filesystem>

#include "graph/data/cifar10.h"

namespace nibble {

/// Writes the published files of a .tar.gz archive into `folder`, which is made anew.
///
/// An entry is taken when it is a regular file called `published.folder`/<name>; everything else (links,
/// `..`, absolute paths, other names) is passed over, so that nothing is ever written elsewhere. Sizes and
/// SHA-256 are checked while writing. Throws InputError naming the archive when it is damaged or does not
/// hold the files, RunError when writing fails; then `folder` is removed.
void unpack_data_files(const std::filesystem::path& archive, const std::filesystem::path& folder,
                       const DataFiles& published);

}  // namespace nibble
