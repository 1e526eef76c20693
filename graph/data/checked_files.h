#pragma once

#include <filesystem>
#include <string>

namespace nibble {

/// Where SHA-256 sums that were computed once are kept: $XDG_CACHE_HOME/nibble/, else ~/.cache/nibble/; empty
/// when there is neither.
std::filesystem::path checked_files_path();

/// The file's SHA-256: remembered for its absolute path, size and time of modification, else computed and
/// remembered. That it cannot be remembered is no error. Throws InputError when the file cannot be read.
std::string remembered_sha256(const std::filesystem::path& path);

/// Remembers a sum that is known already, from unpacking.
void remember_sha256(const std::filesystem::path& path, const std::string& sha256);

}  // namespace nibble
