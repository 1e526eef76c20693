#include "train/log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <span>
#include <string>
#include <utility>

#include "graph/network/error.h"
#include "graph/network/tensor_file.h"

namespace nibble {

TrainingLog::TrainingLog(std::filesystem::path path, int epochs_done, bool resume) : path_(std::move(path)) {
  std::string kept;
  if (resume) {
    std::ifstream old(path_);
    const bool is_there = std::filesystem::exists(path_);
    for (std::string line; std::getline(old, line) && !old.eof();) {
      const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
      if (!json.is_object()) continue;
      const auto epoch = json.find("epoch");
      if (epoch != json.end() && epoch->is_number() && epoch->get<int>() > epochs_done) continue;
      kept += line + '\n';
    }
    if (is_there && (!old.is_open() || old.bad())) {
      throw InputError(path_.string() + " cannot be read; check its permissions and the disk");
    }
  }
  write_file_atomically(path_, std::as_bytes(std::span(kept)));
}

void TrainingLog::append(const nlohmann::ordered_json& line) {
  // Names of files are any bytes.
  const std::string text = line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n';
  const int descriptor = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  const ssize_t written = descriptor < 0 ? -1 : ::write(descriptor, text.data(), text.size());
  const int error = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (written != std::ssize(text)) {
    throw RunError(fmt::format("{} cannot be written ({})", path_.string(),
                               written < 0 ? std::strerror(error) : "no space left on device"));
  }
}

}  // namespace nibble
