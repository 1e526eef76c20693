#include "bench/sweep.h"

#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "bench/child.h"
#include "graph/network/error.h"
#include "graph/network/instruction_set.h"

namespace nibble {
namespace {

struct KnownStep {
  InstructionSet needed;
  SweepStep step;
};

constexpr KnownStep kSteps[] = {
    {InstructionSet::avx2, {"avx2", "AVX2"}},
    {InstructionSet::avx512_vnni, {"avx512_vnni", "AVX512_CORE_VNNI"}},
    {InstructionSet::avx512_vbmi, {"avx512_vbmi", "AVX512_CORE_BF16"}},
    {InstructionSet::avx512_amx, {"avx512_amx", "AVX512_CORE_AMX"}},
};

}  // namespace

std::vector<SweepStep> sweep_steps() {
  std::vector<SweepStep> steps;
  for (const KnownStep& known : kSteps) {
    if (known.needed <= effective_instruction_set()) steps.push_back(known.step);
  }
  if (steps.empty()) steps.push_back({"reference", "SSE41"});
  return steps;
}

Report merge(const std::vector<Report>& reports) {
  Report merged;
  merged.context = reports.front().context;
  merged.context.isa.clear();
  for (const Report& report : reports) {
    if (report.rows.size() != reports.front().rows.size()) {
      throw RunError("the instruction sets' reports have different rows; was a file changed meanwhile?");
    }
    if (merged.context.isa.find(report.context.isa) == std::string::npos) {
      merged.context.isa += (merged.context.isa.empty() ? "" : ", ") + report.context.isa;
    }
    for (const std::string& name : report.context.implementations) {
      std::vector<std::string>& names = merged.context.implementations;
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
    if (report.context.peak_memory_bytes) {
      merged.context.peak_memory_bytes =
          std::max(merged.context.peak_memory_bytes.value_or(0), *report.context.peak_memory_bytes);
    }
  }
  for (std::size_t i = 0; i < reports.front().rows.size(); ++i) {
    for (const Report& report : reports) merged.rows.push_back(report.rows[i]);
  }
  return merged;
}

Report sweep(const std::vector<SweepStep>& steps, const std::vector<std::string>& arguments, int runs) {
  std::vector<std::string> worker_arguments = arguments;
  worker_arguments.emplace_back("--worker");
  std::vector<std::unique_ptr<Child>> children;
  for (const SweepStep& step : steps) {
    std::cerr << "bench: preparing " << step.nibble_max_isa << std::endl;
    children.push_back(std::make_unique<Child>(
        worker_arguments,
        std::map<std::string, std::string>{{"NIBBLE_MAX_ISA", step.nibble_max_isa},
                                           {"ONEDNN_MAX_CPU_ISA", step.onednn_max_cpu_isa}}));
    children.back()->receive();
  }
  for (int run = 0; run < runs; ++run) {
    for (const auto& child : children) {
      child->send("round");
      child->receive();
    }
  }
  std::vector<Report> reports;
  for (const auto& child : children) {
    child->send("report");
    const std::string text = child->receive_all();
    if (child->wait() != 0) throw RunError("a child process of the sweep failed; its message is above");
    reports.push_back(report_from_json(nlohmann::json::parse(text), "the child's report"));
  }
  return merge(reports);
}

int work_for_sweep(Measurement& measurement) {
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    if (line == "report") {
      std::cout << format_report(measurement.finish(), "json") << std::flush;
      return 0;
    }
    measurement.round();
    std::cout << "done" << std::endl;
  }
  throw RunError("the parent process of this sweep ended; start bench again");
}

}  // namespace nibble
