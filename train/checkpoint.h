#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "cfg/configuration.h"
#include "graph/network/checkpoint_path.h"
#include "graph/network/tensor_file.h"

namespace nibble {

/// Where a training stands; stored in the metadata of P.
struct TrainingPosition {
  int epoch = 0;          ///< epochs done
  std::int64_t step = 0;  ///< steps done in the next epoch
  double epoch_loss = 0;  ///< of this epoch's steps so far: sum over the images
  std::int64_t epoch_correct = 0;
  std::int64_t epoch_images = 0;
  double epoch_seconds = 0;
  int best_validation = -1;  ///< correct images of P.best on the validation split
  int best_test = -1;        ///< the same of P.best_on_test on the test images
  bool finished = false;
};

/// Writes "epoch", "step", ..., "finished", "seed", "validation" and "configuration" (JSON).
void store_position(const TrainingPosition& position, const Configuration& configuration, TensorFile& file);

/// The reverse. Throws InputError when the file is not a training's checkpoint.
TrainingPosition stored_position(const TensorFile& file);
Configuration stored_configuration(const TensorFile& file);

/// Holds P.lock (flock) as long as it lives, so that two trainings do not write one checkpoint.
class CheckpointLock {
 public:
  /// Makes missing folders. Throws InputError when another process has the lock or the folder cannot be
  /// written.
  explicit CheckpointLock(const CheckpointPaths& paths);
  ~CheckpointLock();
  CheckpointLock(const CheckpointLock&) = delete;
  CheckpointLock& operator=(const CheckpointLock&) = delete;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

/// Throws RunError unless the folder of P has room for `bytes` more.
void require_space(const CheckpointPaths& paths, std::uintmax_t bytes);

/// Moves P.safetensors, P.best*.safetensors and P.log.jsonl to P.old.*, or P.old.2.* if there are such, and
/// so on. Returns the new name of P, or nothing if there was nothing to move.
std::optional<std::string> move_to_old(const CheckpointPaths& paths);

}  // namespace nibble
