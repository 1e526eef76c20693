#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

namespace nibble {

/// The command line of `quant`; what is not given comes from the configuration's cfg_quant.
struct QuantOptions {
  std::string configuration;
  std::optional<int> bits;
  std::optional<int> activation_bits;
  bool fuse = false;
  bool no_fuse = false;
  bool pair_safe = false;
  std::optional<std::string> observer;
  std::optional<int> calibration_images;
  std::optional<std::string> method;
  std::optional<int> learning_steps;
  std::optional<std::int64_t> budget_bytes;
  std::optional<double> budget_ms;
  std::optional<std::string> checkpoint_path;
  std::optional<std::string> output;
  std::optional<std::uint64_t> seed;
};

void add_quant_options(CLI::App& app, QuantOptions& options);

/// Quantizes a checkpoint as the options and the configuration say and reports about the result.
int quant_program(const QuantOptions& options);

}  // namespace nibble
