#include "graph/network/checkpoint_path.h"

#include <string_view>

#include "graph/network/error.h"
#include "graph/network/tensor_file.h"

namespace nibble {
namespace {

std::string without_extension(const std::string& path) {
  constexpr std::string_view extension = ".safetensors";
  return path.ends_with(extension) ? path.substr(0, path.size() - extension.size()) : path;
}

bool selects_on_validation(const TensorFile& checkpoint) {
  const std::string count = checkpoint.entry("validation");
  return !count.empty() && count != "0";
}

}  // namespace

CheckpointPaths::CheckpointPaths(const std::string& checkpoint_path)
    : last(without_extension(checkpoint_path) + ".safetensors"),
      best(without_extension(checkpoint_path) + ".best.safetensors"),
      best_on_test(without_extension(checkpoint_path) + ".best_on_test.safetensors"),
      log(without_extension(checkpoint_path) + ".log.jsonl"),
      lock(without_extension(checkpoint_path) + ".lock") {}

ChosenCheckpoint choose_checkpoint(const std::string& checkpoint_path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (fs::is_regular_file(checkpoint_path, ignored)) return {checkpoint_path, {}};
  const CheckpointPaths paths(checkpoint_path);
  if (!fs::exists(paths.last, ignored)) {
    throw InputError(
        "no checkpoint " + paths.last.string() +
        ": train one with `train`, or name another with --checkpoint-path or cfg.checkpoint_path");
  }
  const bool best_exists = fs::exists(paths.best, ignored);
  if (!best_exists) return {paths.last, {}};
  if (selects_on_validation(read_tensor_file(paths.last))) return {paths.best, {}};
  return {paths.last, paths.best};
}

}  // namespace nibble
