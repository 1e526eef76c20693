#include "graph/data/unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <set>
#include <span>
#include <string>

#include "graph/data/sha256.h"
#include "graph/network/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kRecordBytes = 1 + cifar10_image_bytes;

struct FreeArchive {
  void operator()(archive* handle) const { archive_read_free(handle); }
};
using Archive = std::unique_ptr<archive, FreeArchive>;

/// A new file that is written from its beginning to its end.
class OutputFile {
 public:
  explicit OutputFile(const fs::path& path)
      : path_(path),
        descriptor_(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) fail();
  }
  ~OutputFile() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::uint8_t> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail();
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }

  void finish() {
    if (fsync(descriptor_) != 0) fail();
    const int closed = close(descriptor_);
    descriptor_ = -1;
    if (closed != 0) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw RunError("cannot write " + path_.string() + ": " + std::strerror(errno) +
                   "; make room for the data set there and start again");
  }

  fs::path path_;
  int descriptor_;
};

class Unpacking {
 public:
  Unpacking(const fs::path& path, const DataFiles& published)
      : path_(path), published_(published), archive_(archive_read_new()) {
    archive_read_support_filter_gzip(archive_.get());
    archive_read_support_format_tar(archive_.get());
    if (archive_read_open_filename(archive_.get(), path.c_str(), 1 << 16) != ARCHIVE_OK) fail();
  }

  void run(const fs::path& folder) {
    std::set<std::string> taken;
    archive_entry* entry = nullptr;
    while (next(&entry)) {
      const DataFile* file = wanted(entry);
      if (file == nullptr) continue;
      if (!taken.insert(file->name).second) {
        throw InputError(path_.string() + " holds " + file->name + " twice; it is not the published archive");
      }
      take(*file, folder / file->name);
    }
    for (const DataFile& file : published_.files) {
      if (!taken.contains(file.name)) {
        throw InputError(path_.string() + " does not hold the file " + published_.folder + "/" + file.name +
                         "; it is not the published archive");
      }
    }
  }

 private:
  [[noreturn]] void fail() const {
    const char* reason = archive_error_string(archive_.get());
    throw InputError(path_.string() + " is not a whole .tar.gz archive: " +
                     (reason != nullptr ? reason : "it cannot be read"));
  }

  bool next(archive_entry** entry) {
    const int status = archive_read_next_header(archive_.get(), entry);
    if (status == ARCHIVE_EOF) return false;
    if (status != ARCHIVE_OK && status != ARCHIVE_WARN) fail();
    return true;
  }

  const DataFile* wanted(archive_entry* entry) const {
    if (archive_entry_filetype(entry) != AE_IFREG) return nullptr;
    if (archive_entry_hardlink(entry) != nullptr || archive_entry_symlink(entry) != nullptr) return nullptr;
    const char* pathname = archive_entry_pathname(entry);
    std::string name = pathname != nullptr ? pathname : "";
    if (name.starts_with("./")) name.erase(0, 2);
    for (const DataFile& file : published_.files) {
      if (name == published_.folder + "/" + file.name) return &file;
    }
    return nullptr;
  }

  void take(const DataFile& file, const fs::path& destination) {
    const std::size_t expected = static_cast<std::size_t>(file.records) * kRecordBytes;
    OutputFile output(destination);
    Sha256 sha256;
    std::size_t size = 0;
    std::vector<std::uint8_t> block(1 << 16);
    for (;;) {
      const la_ssize_t read = archive_read_data(archive_.get(), block.data(), block.size());
      if (read < 0) fail();
      if (read == 0) break;
      size += static_cast<std::size_t>(read);
      if (size > expected) break;
      const std::span<const std::uint8_t> bytes(block.data(), static_cast<std::size_t>(read));
      sha256.add(bytes);
      output.write(bytes);
    }
    if (size != expected) {
      throw InputError(path_.string() + ": " + file.name + " in it has " +
                       (size > expected ? "more than " : "") + std::to_string(std::min(size, expected)) +
                       " bytes instead of " + std::to_string(expected) + "; it is not the published archive");
    }
    const std::string found = sha256.digits();
    if (found != file.sha256) {
      throw InputError(path_.string() + ": " + file.name + " in it has the SHA-256 " + found +
                       " instead of the published " + file.sha256 + "; it is not the published archive");
    }
    output.finish();
  }

  fs::path path_;
  const DataFiles& published_;
  Archive archive_;
};

}  // namespace

void unpack_data_files(const fs::path& archive, const fs::path& folder, const DataFiles& published) {
  try {
    fs::remove_all(folder);
    fs::create_directories(folder);
    Unpacking(archive, published).run(folder);
  } catch (const fs::filesystem_error& error) {
    throw RunError("cannot write to " + folder.string() + ": " + error.code().message());
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
    throw;
  }
}

}  // namespace nibble
