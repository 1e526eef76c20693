#pragma once

#include <filesystem>
#include <string>

namespace nibble {

/// The files of a training with checkpoint path P: "chkp/64_200" gives chkp/64_200.safetensors and so on.
/// A P that ends in ".safetensors" stands for the same without it.
struct CheckpointPaths {
  explicit CheckpointPaths(const std::string& checkpoint_path);

  std::filesystem::path last;          ///< P.safetensors
  std::filesystem::path best;          ///< P.best.safetensors
  std::filesystem::path best_on_test;  ///< P.best_on_test.safetensors, only when asked for; never chosen
  std::filesystem::path log;           ///< P.log.jsonl
  std::filesystem::path lock;          ///< P.lock, there while a training runs
};

/// The FP32 checkpoint that `checkpoint_path` stands for: the file itself if it names one (P.safetensors is
/// the last epoch then, whatever its metadata say), else P.best if P's metadata says validation > 0, else P.
/// `ignored_best` is P.best where there is one that is not taken: left from an older training. Throws
/// InputError when there is none.
struct ChosenCheckpoint {
  std::filesystem::path file;
  std::filesystem::path ignored_best;
};
ChosenCheckpoint choose_checkpoint(const std::string& checkpoint_path);

}  // namespace nibble
