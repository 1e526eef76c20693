#include "graph/data/checked_files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>

#include "graph/data/sha256.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

/// What must not have changed for a remembered sum to hold.
struct Stamp {
  std::int64_t size;
  std::int64_t seconds;
  std::int64_t nanoseconds;
  bool operator==(const Stamp&) const = default;
};

struct Entry {
  Stamp stamp;
  std::string sha256;
};

std::optional<Stamp> stamp_of(const fs::path& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return std::nullopt;
  return Stamp{status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

/// Lines `<sha256> <size> <seconds> <nanoseconds> <path>`; a line that is not of this form is forgotten.
std::map<std::string, Entry> read_entries() {
  std::map<std::string, Entry> entries;
  std::ifstream stream(checked_files_path());
  for (std::string line; std::getline(stream, line);) {
    std::istringstream fields(line);
    Entry entry;
    std::string path;
    fields >> entry.sha256 >> entry.stamp.size >> entry.stamp.seconds >> entry.stamp.nanoseconds;
    if (fields && entry.sha256.size() == 64 && fields.get() == ' ' && std::getline(fields, path)) {
      entries[path] = entry;
    }
  }
  return entries;
}

void write_entries(const std::map<std::string, Entry>& entries) {
  const fs::path path = checked_files_path();
  std::error_code ignored;
  fs::create_directories(path.parent_path(), ignored);
  // Several programs may write at once: each renames a whole file of its own.
  fs::path temporary = path;
  temporary += "." + std::to_string(getpid()) + ".tmp";
  std::ofstream stream(temporary);
  for (const auto& [name, entry] : entries) {
    stream << entry.sha256 << ' ' << entry.stamp.size << ' ' << entry.stamp.seconds << ' '
           << entry.stamp.nanoseconds << ' ' << name << '\n';
  }
  stream.close();
  if (stream) {
    fs::rename(temporary, path, ignored);
  }
  if (!stream || ignored) fs::remove(temporary, ignored);
}

void remember(const fs::path& path, const Stamp& stamp, const std::string& sha256) {
  std::error_code error;
  const std::string name = fs::canonical(path, error).string();
  if (error || name.find('\n') != std::string::npos || checked_files_path().empty()) return;
  std::map<std::string, Entry> entries = read_entries();
  entries[name] = {stamp, sha256};
  write_entries(entries);
}

}  // namespace

fs::path checked_files_path() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache == '/') return fs::path(cache) / "nibble/checked_files";
  const char* home = std::getenv("HOME");
  if (home != nullptr && *home == '/') return fs::path(home) / ".cache/nibble/checked_files";
  return {};
}

std::string remembered_sha256(const fs::path& path) {
  // Taken before reading, so that a change while reading is seen the next time.
  const std::optional<Stamp> stamp = stamp_of(path);
  std::error_code error;
  const std::string name = fs::canonical(path, error).string();
  if (stamp && !error) {
    const std::map<std::string, Entry> entries = read_entries();
    const auto found = entries.find(name);
    if (found != entries.end() && found->second.stamp == *stamp) return found->second.sha256;
  }
  const std::string sha256 = sha256_of_file(path);
  if (stamp) remember(path, *stamp, sha256);
  return sha256;
}

void remember_sha256(const fs::path& path, const std::string& sha256) {
  if (const std::optional<Stamp> stamp = stamp_of(path)) remember(path, *stamp, sha256);
}

}  // namespace nibble
