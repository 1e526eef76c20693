#include "graph/data/download.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "graph/data/checked_files.h"
#include "graph/data/unpack.h"
#include "graph/network/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWithoutNetwork =
    "; check the network, or put the files of the binary CIFAR-10 into a folder and set CIFAR10_ROOT to it";

/// The archive as far as it has been fetched, locked against a second program.
class PartFile {
 public:
  explicit PartFile(fs::path path)
      : path_(std::move(path)), descriptor_(open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) {
      throw RunError("cannot write " + path_.string() + ": " + std::strerror(errno) +
                     "; choose a folder that can be written with cfg_CIFAR.root");
    }
    if (flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
      close(descriptor_);
      throw RunError("another program is fetching " + path_.string() + "; wait until it has finished");
    }
    struct stat status;
    if (fstat(descriptor_, &status) == 0) size_ = status.st_size;
  }
  ~PartFile() { close(descriptor_); }
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;

  const fs::path& path() const { return path_; }
  curl_off_t size() const { return size_; }

  /// 0, or the errno of the failure.
  int append(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t written = pwrite(descriptor_, bytes.data(), bytes.size(), size_);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return errno;
      size_ += written;
      bytes.remove_prefix(static_cast<std::size_t>(written));
    }
    return 0;
  }

  int clear() {
    if (ftruncate(descriptor_, 0) != 0) return errno;
    size_ = 0;
    return 0;
  }

 private:
  fs::path path_;
  int descriptor_;
  curl_off_t size_ = 0;
};

/// One line on stderr: rewritten in a terminal, one for each tenth in a log.
class Progress {
 public:
  Progress(std::string url, bool show) : url_(std::move(url)), show_(show), terminal_(isatty(2) == 1) {}
  ~Progress() {
    if (line_open_) std::fputc('\n', stderr);
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(curl_off_t done, curl_off_t total) {
    if (!show_ || total <= 0) return;
    const int step = static_cast<int>(done * (terminal_ ? 1000 : 10) / total);
    if (step == step_) return;
    step_ = step;
    std::fprintf(stderr, "%sfetching %s: %.1f of %.1f MB%s", terminal_ ? "\r" : "", url_.c_str(),
                 static_cast<double>(done) * 1e-6, static_cast<double>(total) * 1e-6, terminal_ ? "" : "\n");
    line_open_ = terminal_;
  }

 private:
  std::string url_;
  bool show_;
  bool terminal_;
  bool line_open_ = false;
  int step_ = -1;
};

/// The numbers of "Content-Range: bytes <first>-<last>/<total>" or "bytes */<total>"; -1 where there is none.
struct ContentRange {
  curl_off_t first = -1;
  curl_off_t total = -1;
};

ContentRange parse_content_range(std::string_view value) {
  ContentRange range;
  const std::size_t unit = value.find("bytes");
  const std::size_t slash = value.find('/');
  if (unit == std::string_view::npos || slash == std::string_view::npos) return range;
  const std::string first(value.substr(unit + 5, slash - unit - 5));
  const std::string total(value.substr(slash + 1));
  char* end = nullptr;
  const long long first_number = std::strtoll(first.c_str(), &end, 10);
  if (end != first.c_str()) range.first = first_number;
  const long long total_number = std::strtoll(total.c_str(), &end, 10);
  if (end != total.c_str()) range.total = total_number;
  return range;
}

enum class Outcome {
  complete,
  interrupted,  ///< worth another attempt
  refused       ///< another attempt would end in the same way
};

/// One request, from the end of the part file if it has one.
class Request {
 public:
  Request(const DownloadOptions& options, PartFile& part, Progress& progress)
      : part_(part), progress_(progress), curl_(curl_easy_init()) {
    if (!curl_) throw RunError("libcurl cannot be initialized");
    const bool resume = part.size() > 0 && !options.url.starts_with("file:");
    if (resume) {
      set(CURLOPT_RANGE, (std::to_string(part.size()) + "-").c_str());
    } else if (part.size() > 0) {
      write_error_ = part.clear();
    }
    offset_ = part.size();
    set(CURLOPT_URL, options.url.c_str());
    set(CURLOPT_PROTOCOLS_STR, "http,https,file");
    set(CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    set(CURLOPT_FOLLOWLOCATION, 1L);
    set(CURLOPT_MAXREDIRS, 10L);
    set(CURLOPT_USERAGENT, "nibble");
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_CONNECTTIMEOUT, 20L);
    set(CURLOPT_LOW_SPEED_LIMIT, 1L);
    set(CURLOPT_LOW_SPEED_TIME, static_cast<long>(options.stall.count()));
    set(CURLOPT_ERRORBUFFER, error_);
    set(CURLOPT_WRITEFUNCTION, &Request::receive);
    set(CURLOPT_WRITEDATA, this);
    set(CURLOPT_HEADERFUNCTION, &Request::receive_header);
    set(CURLOPT_HEADERDATA, this);
    set(CURLOPT_NOPROGRESS, 0L);
    set(CURLOPT_XFERINFOFUNCTION, &Request::report);
    set(CURLOPT_XFERINFODATA, this);
  }

  /// `reason` says why when the outcome is not complete.
  Outcome run(std::string& reason) {
    const CURLcode code = curl_easy_perform(curl_.get());
    if (write_error_ != 0) {
      throw RunError("cannot write " + part_.path().string() + ": " + std::strerror(write_error_) +
                     "; make room there and start again: the download goes on where it stopped");
    }
    const long status = response_code();
    if (code == CURLE_OK && status == 416 && range_.total == offset_) return Outcome::complete;
    if ((code == CURLE_OK && status == 416) || restart_) {
      reason = "the server cannot continue a download";
      write_error_ = part_.clear();
      return Outcome::interrupted;
    }
    if (code == CURLE_OK && (status == 0 || status == 200 || status == 206)) return Outcome::complete;
    if (code == CURLE_OK) {
      reason = "the server answers " + std::to_string(status);
      return status == 408 || status == 429 || status >= 500 ? Outcome::interrupted : Outcome::refused;
    }
    reason = error_[0] != '\0' ? error_ : curl_easy_strerror(code);
    return is_transient(code) ? Outcome::interrupted : Outcome::refused;
  }

 private:
  struct FreeCurl {
    void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
  };

  template <typename Value>
  void set(CURLoption option, Value value) {
    if (curl_easy_setopt(curl_.get(), option, value) != CURLE_OK) {
      throw RunError("this libcurl cannot fetch files; install one with HTTP support");
    }
  }

  static bool is_transient(CURLcode code) {
    switch (code) {
      case CURLE_COULDNT_CONNECT:
      case CURLE_PARTIAL_FILE:
      case CURLE_OPERATION_TIMEDOUT:
      case CURLE_GOT_NOTHING:
      case CURLE_SEND_ERROR:
      case CURLE_RECV_ERROR:
      case CURLE_HTTP2:
      case CURLE_HTTP2_STREAM:
      case CURLE_SSL_CONNECT_ERROR:
        return true;
      default:
        return false;
    }
  }

  long response_code() const {
    long status = 0;
    curl_easy_getinfo(curl_.get(), CURLINFO_RESPONSE_CODE, &status);
    return status;
  }

  /// Decides with the first bytes of the body where they belong; false stops the transfer.
  bool begin_body() {
    const long status = response_code();
    if (status == 206 && range_.first != offset_) {
      restart_ = true;
      return false;
    }
    if (status == 200 && offset_ > 0) {  // the whole file, whatever was asked for
      write_error_ = part_.clear();
      offset_ = 0;
    }
    is_archive_ = status == 0 || status == 200 || status == 206;
    return write_error_ == 0;
  }

  static std::size_t receive(char* bytes, std::size_t, std::size_t count, void* self_pointer) {
    Request& self = *static_cast<Request*>(self_pointer);
    if (!self.in_body_) {
      self.in_body_ = true;
      if (!self.begin_body()) return 0;
    }
    if (!self.is_archive_) return count;  // the page that goes with an error
    self.write_error_ = self.part_.append({bytes, count});
    return self.write_error_ == 0 ? count : 0;
  }

  static std::size_t receive_header(char* bytes, std::size_t, std::size_t count, void* self_pointer) {
    Request& self = *static_cast<Request*>(self_pointer);
    const std::string_view line(bytes, count);
    constexpr std::string_view kName = "content-range:";
    const bool matches = line.size() > kName.size() &&
                         std::equal(kName.begin(), kName.end(), line.begin(), [](char expected, char found) {
                           return expected == (found >= 'A' && found <= 'Z' ? found - 'A' + 'a' : found);
                         });
    if (matches) self.range_ = parse_content_range(line.substr(kName.size()));
    if (line.starts_with("HTTP/")) self.range_ = {};  // of a redirection, or after one
    return count;
  }

  static int report(void* self_pointer, curl_off_t total, curl_off_t done, curl_off_t, curl_off_t) {
    Request& self = *static_cast<Request*>(self_pointer);
    if (self.is_archive_) self.progress_.update(self.offset_ + done, self.offset_ + total);
    return 0;
  }

  PartFile& part_;
  Progress& progress_;
  std::unique_ptr<CURL, FreeCurl> curl_;
  curl_off_t offset_ = 0;
  ContentRange range_;
  bool in_body_ = false;
  bool is_archive_ = false;
  bool restart_ = false;
  int write_error_ = 0;
  char error_[CURL_ERROR_SIZE] = "";
};

void initialize_curl() {
  static const CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (code != CURLE_OK) throw RunError("libcurl cannot be initialized");
}

/// Requests until the archive is whole or too many of them in a row brought nothing new.
void fetch_archive(const DownloadOptions& options, PartFile& part) {
  Progress progress(options.url, options.show_progress);
  curl_off_t farthest = part.size();
  std::chrono::milliseconds pause = options.pause;
  for (int failures = 0;;) {
    std::string reason;
    const Outcome outcome = Request(options, part, progress).run(reason);
    if (outcome == Outcome::complete) return;
    if (part.size() > farthest) {
      farthest = part.size();
      failures = 0;
      pause = options.pause;
    }
    if (outcome == Outcome::refused || ++failures >= options.attempts) {
      throw RunError("cannot fetch " + options.url + ": " + reason + kWithoutNetwork);
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(30000));
  }
}

/// Renames the checked folder; file by file when there is a folder of that name already.
void move_into_place(const fs::path& from, const fs::path& to, const DataFiles& published) {
  std::error_code error;
  fs::rename(from, to, error);
  for (const DataFile& file : published.files) {
    if (error) fs::rename(from / file.name, to / file.name);
    remember_sha256(to / file.name, file.sha256);
  }
  fs::remove(from, error);
}

void check_scheme(const std::string& url) {
  for (const char* scheme : {"http://", "https://", "file://"}) {
    if (url.starts_with(scheme)) return;
  }
  throw InputError("cfg_CIFAR.url is '" + url + "'; it must begin with https://, http:// or file://");
}

}  // namespace

fs::path fetch_data_files(const fs::path& root, const DownloadOptions& options, const DataFiles& published) {
  check_scheme(options.url);
  initialize_curl();
  std::error_code error;
  fs::create_directories(root, error);
  if (error) {
    throw RunError("cannot make the folder " + root.string() + ": " + error.message() +
                   "; choose another with cfg_CIFAR.root");
  }
  PartFile part(root / (published.folder + ".tar.gz.part"));
  const fs::path unpacked = root / (published.folder + ".part");
  const fs::path folder = root / published.folder;
  for (bool from_earlier_run = part.size() > 0;; from_earlier_run = false) {
    fetch_archive(options, part);
    try {
      unpack_data_files(part.path(), unpacked, published);
      break;
    } catch (const InputError& failure) {
      // What an earlier run left may belong to another archive: once more from the beginning.
      part.clear();
      if (from_earlier_run) continue;
      fs::remove(part.path(), error);
      throw InputError("what " + options.url + " gives is not the data set (" + failure.what() +
                       "); name another address with cfg_CIFAR.url");
    }
  }
  try {
    move_into_place(unpacked, folder, published);
  } catch (const fs::filesystem_error& failure) {
    throw RunError("cannot move the files of the data set to " + folder.string() + ": " +
                   failure.code().message());
  }
  fs::remove(part.path(), error);
  return folder;
}

fs::path prepare_cifar10(const fs::path& root, bool download, const DownloadOptions& options,
                         const DataFiles& published) {
  const fs::path chosen = cifar10_root(root);
  if (const auto folder = find_data_files(chosen, published)) return *folder;
  std::error_code error;
  const bool from_environment = chosen != root;
  if (from_environment && !fs::is_directory(chosen, error)) {
    throw InputError("CIFAR10_ROOT is " + chosen.string() +
                     ", which is no folder; set it to the folder of the binary CIFAR-10, or unset it");
  }
  if (!download) {
    throw InputError(
        "CIFAR-10 is not in " + chosen.string() +
        "; put the six files of its binary version there, set CIFAR10_ROOT to their folder, or set "
        "cfg_CIFAR.download to true");
  }
  return fetch_data_files(chosen, options, published);
}

}  // namespace nibble
