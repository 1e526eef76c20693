#include "train/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include "graph/network/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

const std::string& entry(const TensorFile& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) {
    throw InputError(fmt::format(
        "{}: no \"{}\" in the metadata, so it is not the checkpoint of a training: use -e to evaluate "
        "it, --no-resume to move it away",
        file.file.string(), key));
  }
  return found->second;
}

template <typename T>
T number(const TensorFile& file, const std::string& key) {
  const std::string& text = entry(file, key);
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) {
    throw InputError(fmt::format("{}: \"{}\" in the metadata is \"{}\", expected a number",
                                 file.file.string(), key, text));
  }
  return value;
}

std::string reason() {
  return std::strerror(errno);
}

}  // namespace

void store_position(const TrainingPosition& position, const Configuration& configuration, TensorFile& file) {
  // fmt writes the shortest text that reads back as the same double.
  file.metadata["epoch"] = fmt::format("{}", position.epoch);
  file.metadata["step"] = fmt::format("{}", position.step);
  file.metadata["epoch_loss"] = fmt::format("{}", position.epoch_loss);
  file.metadata["epoch_correct"] = fmt::format("{}", position.epoch_correct);
  file.metadata["epoch_images"] = fmt::format("{}", position.epoch_images);
  file.metadata["epoch_seconds"] = fmt::format("{}", position.epoch_seconds);
  file.metadata["best_validation"] = fmt::format("{}", position.best_validation);
  file.metadata["best_test"] = fmt::format("{}", position.best_test);
  file.metadata["finished"] = position.finished ? "true" : "false";
  file.metadata["seed"] = fmt::format("{}", configuration.cfg_train.seed);
  file.metadata["validation"] = fmt::format("{}", configuration.cfg_train.validation);
  file.metadata["configuration"] =
      to_json(configuration).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

TrainingPosition stored_position(const TensorFile& file) {
  TrainingPosition position;
  position.epoch = number<int>(file, "epoch");
  position.step = number<std::int64_t>(file, "step");
  position.epoch_loss = number<double>(file, "epoch_loss");
  position.epoch_correct = number<std::int64_t>(file, "epoch_correct");
  position.epoch_images = number<std::int64_t>(file, "epoch_images");
  position.epoch_seconds = number<double>(file, "epoch_seconds");
  position.best_validation = number<int>(file, "best_validation");
  position.best_test = number<int>(file, "best_test");
  position.finished = entry(file, "finished") == "true";
  return position;
}

Configuration stored_configuration(const TensorFile& file) {
  const std::string source = file.file.string() + " (its configuration)";
  const nlohmann::json json = nlohmann::json::parse(entry(file, "configuration"), nullptr, false);
  if (json.is_discarded()) throw InputError(source + " is not JSON");
  return from_json(json, source);
}

CheckpointLock::CheckpointLock(const CheckpointPaths& paths) : path_(paths.lock) {
  const fs::path folder = path_.has_parent_path() ? path_.parent_path() : fs::path(".");
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    throw InputError(
        fmt::format("the checkpoint folder {} cannot be made ({}): choose another --checkpoint-path",
                    folder.string(), error.message()));
  }
  for (;;) {
    descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0) {
      throw InputError(
          fmt::format("the checkpoint folder {} cannot be written ({}): choose another --checkpoint-path",
                      folder.string(), reason()));
    }
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
      std::array<char, 32> holder{};
      const ssize_t length = ::pread(descriptor_, holder.data(), holder.size() - 1, 0);
      ::close(descriptor_);
      throw InputError(
          fmt::format("another training (process {}) is writing {}: wait until it ends, or choose another "
                      "--checkpoint-path",
                      length > 0 ? holder.data() : "unknown", paths.last.string()));
    }
    // The holder before us may have removed the file between our open and our lock: then start again.
    struct stat ours {};
    struct stat there {};
    if (::fstat(descriptor_, &ours) == 0 && ::stat(path_.c_str(), &there) == 0 &&
        ours.st_ino == there.st_ino) {
      break;
    }
    ::close(descriptor_);
  }
  const std::string process = std::to_string(::getpid());
  // Only for the message above, so a full disk does not matter here: require_space says it better.
  if (::ftruncate(descriptor_, 0) != 0 || ::pwrite(descriptor_, process.data(), process.size(), 0) < 0)
    return;
}

CheckpointLock::~CheckpointLock() {
  ::unlink(path_.c_str());
  ::close(descriptor_);
}

void require_space(const CheckpointPaths& paths, std::uintmax_t bytes) {
  const std::string probe = paths.last.string() + ".space.tmp";
  const int descriptor = ::open(probe.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  int error = errno;
  if (descriptor >= 0) {
    error = ::posix_fallocate(descriptor, 0, static_cast<off_t>(bytes));
    ::close(descriptor);
    ::unlink(probe.c_str());
  }
  if (error == EOPNOTSUPP || error == EINVAL || error == 0) return;
  throw RunError(fmt::format(
      "no room for a checkpoint of {:.1f} MB beside {} ({}): free space or choose another --checkpoint-path",
      static_cast<double>(bytes) / 1e6, paths.last.string(), std::strerror(error)));
}

std::optional<std::string> move_to_old(const CheckpointPaths& paths) {
  const std::string stem = paths.lock.string().substr(0, paths.lock.string().size() - std::strlen(".lock"));
  for (int number = 1;; ++number) {
    const std::string old = stem + (number == 1 ? ".old" : fmt::format(".old.{}", number));
    const CheckpointPaths target(old);
    const std::array<std::pair<const fs::path*, const fs::path*>, 4> moves = {
        std::pair(&paths.last, &target.last), std::pair(&paths.best, &target.best),
        std::pair(&paths.best_on_test, &target.best_on_test), std::pair(&paths.log, &target.log)};
    if (std::any_of(moves.begin(), moves.end(), [](const auto& move) { return fs::exists(*move.second); })) {
      continue;
    }
    bool moved = false;
    for (const auto& [from, to] : moves) {
      if (!fs::exists(*from)) continue;
      std::error_code error;
      fs::rename(*from, *to, error);
      if (error) {
        throw RunError(
            fmt::format("{} cannot be moved to {} ({})", from->string(), to->string(), error.message()));
      }
      moved = true;
    }
    return moved ? std::optional(old) : std::nullopt;
  }
}

}  // namespace nibble
