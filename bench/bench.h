#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/report.h"

namespace nibble {

struct BenchOptions {
  std::string report = "md";
  std::string configuration;  ///< --cfg; empty: the default one
  std::string output;         ///< empty: standard output
  std::vector<std::string> models;
  int batch = 0;  ///< 0: the configuration's
  int runs = 5;
  int images = 0;    ///< only so many of the first images; 0: all
  int held_out = 0;  ///< the last so many training images instead of the test images; 0: the test images
  bool profile = false;
  bool isa_sweep = false;
  std::string peers;
  std::string compare;     ///< an earlier JSON report; empty: no comparison
  std::string fail_above;  ///< "3%"
  std::string verify;      ///< a checkpoint or an earlier JSON report; empty: measure
  std::string render;      ///< an earlier JSON report; empty: measure

  // For children of bench itself, not listed by --help.
  bool worker = false;
  std::string first_logit;
};

void add_bench_options(CLI::App& app, BenchOptions& options);

/// Measures what the options ask for and emits the report. Returns the exit code.
int run_bench(const BenchOptions& options);

}  // namespace nibble
