#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

namespace nibble {

/// P.log.jsonl: one JSON object a line. A line is written with one system call, so a reader sees whole lines.
class TrainingLog {
 public:
  /// Begins a new log, or goes on with the one there after dropping a torn last line and the lines of epochs
  /// after `epochs_done`, which are going to be repeated.
  TrainingLog(std::filesystem::path path, int epochs_done, bool resume);

  void append(const nlohmann::ordered_json& line);

 private:
  std::filesystem::path path_;
};

}  // namespace nibble
