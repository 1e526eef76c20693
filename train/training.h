#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "cfg/configuration.h"
#include "graph/data/cifar10.h"
#include "graph/optimize/schedule.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"

namespace nibble {

/// What a training reads. `validation` and `test` may be null: then nothing is evaluated on them.
struct TrainingData {
  const Dataset* training = nullptr;
  const Dataset* validation = nullptr;
  const Dataset* test = nullptr;
};

/// The checkpoint that a training writes: locked, tried, and its state read if there is one to go on from.
/// All that can be refused is refused here, before data are read.
class TrainingFiles {
 public:
  /// With `resume` an unfinished P is gone on from; without it, P's files are moved to P.old.*.
  /// Throws InputError for a P of another configuration (naming the keys), a finished P, a P that another
  /// process trains and a folder that cannot be written; RunError for one without room.
  TrainingFiles(const Configuration& configuration, bool resume);

  const CheckpointPaths& paths() const { return paths_; }
  const std::optional<TensorFile>& state() const { return state_; }

 private:
  CheckpointPaths paths_;
  CheckpointLock lock_;
  std::optional<TensorFile> state_;
};

enum class TrainingEnd { finished, interrupted };

/// Trains until the last epoch, or until `stop` (asked after each step) says so; the state is on disk when it
/// returns. The same calls give the same bits, however often they are interrupted, on one machine with one
/// number of threads. Progress goes to stderr, one line an epoch to P.log.jsonl. Throws RunError when the
/// loss is no longer finite or a file cannot be written.
TrainingEnd train_network(const Configuration& configuration, const TrainingData& data, TrainingFiles& files,
                          const std::function<bool()>& stop);

Schedule schedule_of(const TrainConfiguration& configuration);

}  // namespace nibble
