#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "train/training.h"

namespace nibble {

/// The command line of `train`.
struct TrainOptions {
  std::string configuration;
  bool evaluate = false;
  bool no_resume = false;
  std::optional<std::uint64_t> seed;
  std::optional<int> epochs;
  std::optional<std::string> precision;
  std::optional<std::string> checkpoint_path;
};

void add_train_options(CLI::App& app, TrainOptions& options);

/// Trains until the end or the first SIGINT or SIGTERM. Returns 0, or 128 + the signal's number.
int run_training(const Configuration& configuration, const TrainingData& data, TrainingFiles& files);

/// Trains or evaluates. Returns 0, or 128 + the signal's number when SIGINT (130) or SIGTERM (143) stopped
/// the training and its state is saved. Throws InputError and RunError.
int train_program(const TrainOptions& options);

}  // namespace nibble
