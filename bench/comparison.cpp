#include "bench/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

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

/// Unfused and saturating networks (the ones with a note): integers, but oneDNN's kernels decide about their
/// last bit.
bool is_kernel_specific(const ReportRow& row) {
  return row.engine == "onednn" && row.weight_bits == 8 && (!row.fused.value_or(true) || !row.note.empty());
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
  if (error != std::errc{} || !std::isfinite(value) || value < 0 || (unit != "%" && !unit.empty())) {
    throw InputError("'" + text + "' is not a share; write it like 3% or 0.03");
  }
  return unit == "%" ? value / 100 : value;
}

namespace {

/// What a rank-sum test or McNemar's test must stay under to count.
constexpr double kSignificance = 0.05;

/// Runs of one row in two reports: with the loader where one of them has nothing else.
struct Runs {
  const std::vector<double>& base;
  const std::vector<double>& current;
};

std::optional<Runs> comparable_runs(const ReportRow& base, const ReportRow& current) {
  if (!base.seconds_without_loader.runs.empty() && !current.seconds_without_loader.runs.empty()) {
    return Runs{base.seconds_without_loader.runs, current.seconds_without_loader.runs};
  }
  if (!base.seconds.runs.empty() && !current.seconds.runs.empty()) {
    return Runs{base.seconds.runs, current.seconds.runs};
  }
  return std::nullopt;
}

/// One of the three gates of a row.
struct Gate {
  std::string text;
  bool failed = false;
};

Gate compare_time(const Runs& runs, double fail_above) {
  const double ratio = median(runs.current) / median(runs.base);
  const double p = rank_sum_p(runs.base, runs.current);
  // The least p that so many runs can give: all of one side above all of the other.
  const std::vector<double> low(runs.base.size(), 0.0);
  const std::vector<double> high(runs.current.size(), 1.0);
  const bool testable = rank_sum_p(low, high) <= kSignificance + 1e-12;
  Gate gate{fmt::format("time {:+.1f} %", (ratio - 1) * 100)};
  gate.text += testable ? fmt::format(" (p = {:.2g})", p) : " (too few runs for a test)";
  if (ratio > 1 + fail_above) {
    gate.failed = !testable || p <= kSignificance;
    gate.text += gate.failed ? ", slower than allowed" : ", within the noise of the runs";
  }
  return gate;
}

/// Images that only one of the two has right; nothing when not both say.
std::optional<std::pair<std::int64_t, std::int64_t>> discordant_images(const std::string& base,
                                                                       const std::string& current) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  if (base.empty() || base.size() != current.size()) return std::nullopt;
  std::int64_t only_base = 0;
  std::int64_t only_current = 0;
  for (std::size_t i = 0; i < base.size(); ++i) {
    const std::size_t a = kDigits.find(base[i]);
    const std::size_t b = kDigits.find(current[i]);
    if (a == std::string_view::npos || b == std::string_view::npos) return std::nullopt;
    only_base += std::popcount(a & ~b);
    only_current += std::popcount(b & ~a);
  }
  return std::pair(only_base, only_current);
}

Gate compare_accuracy(const ReportRow& base, const ReportRow& current, bool same_images, bool gated) {
  if (!base.top1 || !current.top1) return {"top-1 not measured"};
  if (!same_images) return {"top-1 of other images"};
  Gate gate{fmt::format("top-1 {:+.2f} points", (*current.top1 - *base.top1) * 100)};
  bool lower = false;
  if (const auto discordant = discordant_images(base.correct_images, current.correct_images)) {
    const auto [only_base, only_current] = *discordant;
    const double p = mcnemar_exact_p(only_base, only_current);
    gate.text += fmt::format(" (McNemar p = {:.2g}, {} images lost, {} won)", p, only_base, only_current);
    lower = only_base > only_current && p <= kSignificance;
  } else if (base.top1_interval && current.top1_interval) {
    gate.text += " (by intervals)";
    lower = current.top1_interval->high < base.top1_interval->low;
  } else {
    gate.text += " (no interval)";
    lower = *current.top1 < *base.top1;
  }
  gate.failed = gated && lower;
  if (lower) gate.text += ", lower than before";
  return gate;
}

Gate compare_size(const ReportRow& base, const ReportRow& current, double fail_above) {
  if (!base.file_bytes || !current.file_bytes || *base.file_bytes <= 0) return {"size not known"};
  const double ratio = static_cast<double>(*current.file_bytes) / static_cast<double>(*base.file_bytes);
  Gate gate{fmt::format("size {:+.1f} %", (ratio - 1) * 100), ratio > 1 + fail_above};
  if (gate.failed) gate.text += ", larger than allowed";
  return gate;
}

}  // namespace

void require_same_machine(const ReportContext& base, const std::string& cpu, int threads) {
  if (base.cpu != cpu || base.threads != threads) {
    throw InputError(fmt::format(
        "the earlier report is of {} with {} threads, this one of {} with {}: compare speeds on one machine, "
        "see --threads",
        base.cpu, base.threads, cpu, threads));
  }
}

Comparison compare(const Report& base, const Report& current, double fail_above, bool all_rows) {
  require_same_machine(base.context, current.context.cpu, current.context.threads);
  const bool same_images = base.context.dataset.sha256 == current.context.dataset.sha256 &&
                           base.context.dataset.name == current.context.dataset.name &&
                           base.context.dataset.images == current.context.dataset.images;
  if (base.context.dataset.images != current.context.dataset.images) {
    throw InputError(
        fmt::format("the earlier report is of {} images, this one of {}; measure as many, see "
                    "--images",
                    base.context.dataset.images.value_or(0), current.context.dataset.images.value_or(0)));
  }
  Comparison comparison;
  int compared = 0;
  for (const ReportRow& row : current.rows) {
    if (row.file.empty()) continue;  // another engine's row: read from a file, not measured now
    const auto earlier = std::find_if(base.rows.begin(), base.rows.end(),
                                      [&](const ReportRow& other) { return same_row(row, other); });
    if (earlier == base.rows.end()) {
      comparison.lines.push_back(label(row) + ": not in the earlier report");
      continue;
    }
    const std::optional<Runs> runs = comparable_runs(*earlier, row);
    if (!runs) continue;  // this CPU or cap does not run it
    ++compared;
    const Gate gates[] = {
        compare_time(*runs, fail_above),
        compare_accuracy(*earlier, row, same_images, std::isfinite(fail_above)),
        compare_size(*earlier, row, fail_above),
    };
    std::string line;
    bool failed = false;
    for (const Gate& gate : gates) {
      line += (line.empty() ? "" : "; ") + gate.text;
      failed = failed || gate.failed;
    }
    comparison.lines.push_back(
        fmt::format("{} {}: {}", failed ? "REGRESSION" : "ok        ", label(row), line));
    comparison.failed = comparison.failed || failed;
  }
  for (const ReportRow& row : base.rows) {
    const bool measured = std::any_of(current.rows.begin(), current.rows.end(), [&](const ReportRow& other) {
      return same_row(row, other) && comparable_runs(row, other);
    });
    if (row.file.empty() || !comparable_runs(row, row) || measured) continue;
    const bool failed = all_rows && std::isfinite(fail_above);
    comparison.lines.push_back(
        fmt::format("{} {}: in the earlier report only", failed ? "REGRESSION" : "gone      ", label(row)));
    comparison.failed = comparison.failed || failed;
  }
  if (compared == 0) {
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
  int compared = 0;
  for (const ReportRow& stated : base.rows) {
    if (stated.file.empty()) continue;  // another engine's row
    const auto found = std::find_if(current.rows.begin(), current.rows.end(), [&](const ReportRow& row) {
      return row.name == stated.name && row.engine == stated.engine && row.file == stated.file;
    });
    if (found == current.rows.end()) {
      // Where CPUs differ, oneDNN runs the same file in another way, or not at all with sums that saturate.
      const bool other_engine = std::any_of(
          current.rows.begin(), current.rows.end(),
          [&](const ReportRow& row) { return row.name == stated.name && row.file == stated.file; });
      const bool by_machine = other_engine || !stated.note.empty();
      comparison.lines.push_back(label(stated) + (by_machine ? ": not a row of this machine"
                                                             : ": its file is another kind of network"));
      comparison.failed = comparison.failed || !by_machine;
      continue;
    }
    if (found->signature_generated.empty() || stated.signature_generated.empty()) {
      comparison.lines.push_back(label(stated) + ": not run on one of the machines");
      continue;
    }
    Differences differences;
    bool beyond_size = false;
    differences.check("file_bytes", found->file_bytes.value_or(-1), stated.file_bytes.value_or(-1));
    const bool images_count = same_images && found->top1 && stated.top1;
    if (rounds_by_instruction_set(stated)) {
      beyond_size = images_count;
      const double allowed =
          images_count ? kRoundingImages / static_cast<double>(current.context.dataset.images.value_or(1))
                       : 0;
      if (images_count && std::abs(*found->top1 - *stated.top1) > allowed + 1e-12) {
        differences.add(fmt::format("top1 is {:.4f}, the report says {:.4f}", *found->top1, *stated.top1));
      }
    } else if (!(is_kernel_specific(stated) || is_kernel_specific(*found)) || stated.isa == found->isa) {
      beyond_size = true;
      differences.check("signature_generated", found->signature_generated, stated.signature_generated);
      if (images_count) {
        differences.check("signature", found->signature, stated.signature);
        differences.check("top1", *found->top1, *stated.top1);
      }
    }
    compared += beyond_size ? 1 : 0;
    comparison.failed = comparison.failed || !differences.empty();
    comparison.lines.push_back(label(stated) + ": " +
                               (!differences.empty() ? differences.text()
                                : beyond_size        ? "as stated"
                                                     : "of the stated size; no more could be compared here"));
  }
  if (compared == 0) {
    throw InputError(
        "no row of the report can be compared here; name a report of these checkpoints, or fetch the data "
        "set");
  }
  return comparison;
}

}  // namespace nibble
