#include "bench/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "graph/network/error.h"

namespace nibble {
namespace {

/// Lines of the kind "file_bytes is 300123, the report says 300100".
class Differences {
 public:
  template <typename T>
  void check(const char* what, const T& found, const T& stated) {
    if (found != stated)
      text_ += fmt::format("{}{} is {}, the report says {}", separator(), what, found, stated);
  }
  void add(const std::string& text) { text_ += separator() + text; }
  bool empty() const { return text_.empty(); }
  const std::string& text() const { return text_; }

 private:
  std::string separator() const { return text_.empty() ? "" : "; "; }
  std::string text_;
};

bool same_row(const ReportRow& a, const ReportRow& b) {
  return a.name == b.name && a.engine == b.engine && a.isa == b.isa && a.batch == b.batch;
}

bool rounds_by_instruction_set(const ReportRow& row) {
  return row.weight_bits == 32 || (row.weight_bits == 16 && row.engine == "onednn");
}

/// Unfused and saturating networks: integers, but oneDNN's kernels decide about their last bit.
bool is_kernel_specific(const ReportRow& row) {
  return row.engine == "onednn" && row.weight_bits == 8;
}

std::string label(const ReportRow& row) {
  return fmt::format("{} ({}, {})", row.name, row.engine, row.isa);
}

}  // namespace

Report read_report(const std::filesystem::path& file) {
  std::ifstream stream(file);
  if (!stream) {
    throw InputError("the report " + file.string() + " cannot be read; write one with bench --report json");
  }
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(stream);
  } catch (const nlohmann::json::exception& error) {
    throw InputError(file.string() + ": this is not JSON (" + error.what() +
                     "); write it with bench --report json");
  }
  return report_from_json(json, file.string());
}

double parse_fraction(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string unit(end, text.data() + text.size());
  unit.erase(std::remove(unit.begin(), unit.end(), ' '), unit.end());
  if (error != std::errc{} || value < 0 || (unit != "%" && !unit.empty())) {
    throw InputError("'" + text + "' is not a share; write it like 3% or 0.03");
  }
  return unit == "%" ? value / 100 : value;
}

Comparison compare_speed(const Report& base, const Report& current, double fail_above) {
  if (base.context.cpu != current.context.cpu || base.context.threads != current.context.threads) {
    throw InputError(
        fmt::format("the earlier report is of {} with {} threads, this one of {} with {}: "
                    "compare speeds on one machine, see --threads",
                    base.context.cpu, base.context.threads, current.context.cpu, current.context.threads));
  }
  Comparison comparison;
  for (const ReportRow& row : current.rows) {
    if (row.seconds_without_loader.runs.empty()) continue;
    const auto earlier = std::find_if(base.rows.begin(), base.rows.end(), [&](const ReportRow& other) {
      return same_row(row, other) && !other.seconds_without_loader.runs.empty();
    });
    if (earlier == base.rows.end()) continue;
    const double ratio =
        median(row.seconds_without_loader.runs) / median(earlier->seconds_without_loader.runs);
    const bool slower = ratio > 1 + fail_above;
    comparison.failed = comparison.failed || slower;
    comparison.lines.push_back(fmt::format("{}: {:+.1f} % time{}", label(row), (ratio - 1) * 100,
                                           slower ? ", slower than allowed" : ""));
  }
  if (comparison.lines.empty()) {
    throw InputError(
        "the earlier report has no row of the same name, engine, instruction set and batch; "
        "measure it with the same options");
  }
  return comparison;
}

Comparison verify(const Report& base, const Report& current) {
  const bool same_images = !base.context.dataset.sha256.empty() &&
                           base.context.dataset.sha256 == current.context.dataset.sha256 &&
                           base.context.dataset.images == current.context.dataset.images;
  Comparison comparison;
  for (const ReportRow& stated : base.rows) {
    if (stated.file.empty()) continue;  // another engine's row
    const auto found = std::find_if(current.rows.begin(), current.rows.end(), [&](const ReportRow& row) {
      return row.name == stated.name && row.engine == stated.engine && row.file == stated.file;
    });
    if (found == current.rows.end()) {
      comparison.lines.push_back(label(stated) + ": not a row of this machine");
      continue;
    }
    if (found->signature_generated.empty() || stated.signature_generated.empty()) {
      comparison.lines.push_back(label(stated) + ": not run on one of the machines");
      continue;
    }
    Differences differences;
    differences.check("file_bytes", found->file_bytes.value_or(-1), stated.file_bytes.value_or(-1));
    const bool images_count = same_images && found->top1 && stated.top1;
    if (rounds_by_instruction_set(stated)) {
      const double allowed =
          images_count ? kRoundingImages / static_cast<double>(current.context.dataset.images.value_or(1))
                       : 0;
      if (images_count && std::abs(*found->top1 - *stated.top1) > allowed + 1e-12) {
        differences.add(fmt::format("top1 is {:.4f}, the report says {:.4f}", *found->top1, *stated.top1));
      }
    } else if (!is_kernel_specific(stated) || stated.isa == found->isa) {
      differences.check("signature_generated", found->signature_generated, stated.signature_generated);
      if (images_count) {
        differences.check("signature", found->signature, stated.signature);
        differences.check("top1", *found->top1, *stated.top1);
      }
    }
    comparison.failed = comparison.failed || !differences.empty();
    comparison.lines.push_back(label(stated) + ": " +
                               (differences.empty() ? "as stated" : differences.text()));
  }
  if (comparison.lines.empty())
    throw InputError("the report has no row with a file; there is nothing to verify");
  return comparison;
}

}  // namespace nibble
