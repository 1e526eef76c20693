#pragma once

#include <string>
#include <vector>

#include "bench/measurement.h"
#include "bench/report.h"
#include "kernels/cpu.h"

namespace nibble {

/// An instruction set of the sweep: what caps our kernels and what caps oneDNN at about the same level.
struct SweepStep {
  const char* nibble_max_isa;
  const char* onednn_max_cpu_isa;
};

/// Those that this CPU has, from AVX2 on; the scalar reference alone where it has none of them.
std::vector<SweepStep> sweep_steps();

/// Measures in one child process for each step, since a cap holds for a process. Children are started one
/// after the other with `arguments` and --worker, then do their rounds in turn: A B A B. The rows of one
/// network stand together, in the order of the steps.
Report sweep(const std::vector<SweepStep>& steps, const std::vector<std::string>& arguments, int runs);

/// The child's side: tells that it is ready, does a round for each line "round", ends with the report as JSON
/// at the line "report".
int work_for_sweep(Measurement& measurement);

/// The rows of several reports of the same networks, grouped by network. All have the same number of rows, in
/// the same order.
Report merge(const std::vector<Report>& reports);

}  // namespace nibble
