#include "bench/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include "bench/file_audit.h"

namespace nibble {
namespace {

constexpr const char* kMissing = "n/a";

bool is_measured(const ReportRow& row) {
  return row.images_per_second || row.images_per_second_without_loader || row.latency || row.top1;
}

std::string percent(const std::optional<double>& fraction, int digits = 2) {
  return fraction ? fmt::format("{:.{}f} %", *fraction * 100, digits) : kMissing;
}

std::string accuracy(const ReportRow& row) {
  if (!row.top1) return kMissing;
  if (!row.top1_interval) return percent(row.top1);
  return fmt::format("{} ({:.2f} to {:.2f})", percent(row.top1), row.top1_interval->low * 100,
                     row.top1_interval->high * 100);
}

std::string time(const Timing& timing) {
  if (timing.runs.empty()) return kMissing;
  return fmt::format("{:.3f} ± {:.3f} s", timing.mean(), timing.deviation());
}

std::string thousands(const std::optional<double>& value) {
  if (!value) return kMissing;
  std::string digits = fmt::format("{:.0f}", *value);
  for (auto place = static_cast<std::ptrdiff_t>(digits.size()) - 3; place > 0; place -= 3) {
    digits.insert(static_cast<std::size_t>(place), ",");
  }
  return digits;
}

std::string megabytes(const std::optional<std::int64_t>& bytes) {
  return bytes ? fmt::format("{:.3f}", static_cast<double>(*bytes) / 1e6) : kMissing;
}

std::string milliseconds(double seconds) {
  return fmt::format("{:.3f} ms", seconds * 1e3);
}

std::string text_or_missing(const std::string& text) {
  return text.empty() ? kMissing : text;
}

std::string widths(const ReportRow& row) {
  if (!row.weight_bits || !row.activation_bits) return kMissing;
  // Where blocks differ in width, the nominal one is the widest.
  const char* format = row.mac_fraction.value_or(1) < kLeastNominalFraction ? "<={}/<={}" : "{}/{}";
  return fmt::format(fmt::runtime(format), *row.weight_bits, *row.activation_bits);
}

struct Column {
  const char* title;
  bool right_aligned;
  std::string (*text)(const ReportRow&);
};

/// First what the table of the replaced system has: name, accuracy, time of all images, size.
const Column kColumns[] = {
    {"row", false, [](const ReportRow& row) { return row.name; }},
    {"top-1 (95 % interval)", true, accuracy},
    {"all images", true, [](const ReportRow& row) { return time(row.seconds); }},
    {"size MB", true, [](const ReportRow& row) { return megabytes(row.file_bytes); }},
    {"agreement", true, [](const ReportRow& row) { return percent(row.agreement); }},
    {"McNemar p", true,
     [](const ReportRow& row) {
       return row.mcnemar_p ? fmt::format("{:.3g}", *row.mcnemar_p) : std::string(kMissing);
     }},
    {"latency", true,
     [](const ReportRow& row) { return row.latency ? milliseconds(row.latency->median) : kMissing; }},
    {"99 % under", true,
     [](const ReportRow& row) { return row.latency ? milliseconds(row.latency->p99) : kMissing; }},
    {"images/s", true, [](const ReportRow& row) { return thousands(row.images_per_second); }},
    {"without loader", true,
     [](const ReportRow& row) { return thousands(row.images_per_second_without_loader); }},
    {"of peak", true, [](const ReportRow& row) { return percent(row.peak_fraction, 0); }},
    {"payload MB", true, [](const ReportRow& row) { return megabytes(row.payload_bytes); }},
    {"bits/parameter", true,
     [](const ReportRow& row) {
       return row.bits_per_parameter ? fmt::format("{:.2f}", *row.bits_per_parameter) : std::string(kMissing);
     }},
    {"bits w/a", true, widths},
    {"engine", false, [](const ReportRow& row) { return row.engine; }},
    {"instruction set", false, [](const ReportRow& row) { return text_or_missing(row.isa); }},
    {"signature", false, [](const ReportRow& row) { return text_or_missing(row.signature); }},
};

/// The rows that another engine would fill tell who it is even when nothing was measured.
bool tells_which_row(const Column& column) {
  const std::string title = column.title;
  return title == "row" || title == "bits w/a" || title == "engine";
}

std::string provenance_text(const Provenance& provenance) {
  std::string text = fmt::format("measured {} on {}", provenance.date, provenance.cpu);
  if (provenance.threads > 0) text += fmt::format(", {} threads", provenance.threads);
  for (const auto& [name, version] : provenance.versions) text += fmt::format(", {} {}", name, version);
  if (!provenance.checkpoint.empty()) text += ", with the weights of " + provenance.checkpoint;
  return text;
}

}  // namespace

Table summary_table(const Report& report) {
  Table table;
  for (const Column& column : kColumns) {
    table.header.emplace_back(column.title);
    table.right_aligned.push_back(column.right_aligned);
  }
  // "10,000 images", as long as that is what was measured.
  if (report.context.dataset.images) {
    *std::find(table.header.begin(), table.header.end(), "all images") =
        thousands(*report.context.dataset.images) + " images";
  }
  for (const ReportRow& row : report.rows) {
    const bool absent = !is_measured(row) && row.file.empty();
    std::vector<std::string> cells;
    for (const Column& column : kColumns) {
      const bool replaced = absent && !tells_which_row(column);
      cells.push_back(!replaced ? column.text(row) : cells.size() == 1 ? "not measured" : "");
    }
    table.rows.push_back(std::move(cells));
  }
  return table;
}

Table profile_table(const ReportRow& row) {
  Table table{
      {"layer", "kernel", "time", "floor", "GMAC/s", "share"}, {false, false, true, true, true, true}, {}};
  for (const LayerReport& layer : row.layers) {
    const bool counts = layer.multiply_accumulates > 0;
    table.rows.push_back(
        {layer.name, layer.kernel, milliseconds(layer.seconds),
         layer.floor_seconds ? milliseconds(*layer.floor_seconds) : "",
         counts ? fmt::format("{:.1f}", layer.multiply_accumulates / layer.seconds / 1e9) : "",
         percent(layer.share, 1)});
  }
  return table;
}

std::vector<std::string> footer_lines(const Report& report) {
  const ReportContext& context = report.context;
  std::vector<std::string> lines;
  lines.push_back(fmt::format("CPU: {}; instruction set {}; {} thread{}.", context.cpu, context.isa,
                              context.threads, context.threads == 1 ? "" : "s"));
  lines.push_back(fmt::format("Built from commit {} with oneDNN {}.", context.commit, context.onednn));
  if (!context.implementations.empty()) {
    // "blocks.0.conv1 brgconv:avx512_core": the layers of all rows in one list, so they are not counted.
    std::set<std::string> implementations;
    for (const std::string& name : context.implementations) {
      implementations.insert(name.substr(name.rfind(' ') + 1));
    }
    lines.push_back(fmt::format("Convolutions of the rows on oneDNN: {}.", fmt::join(implementations, ", ")));
  }
  lines.push_back(
      "Latency: of one image alone, median and 99 % quantile. Of peak: multiply-accumulates a second without "
      "the loader beside what the instructions that multiply reach in registers on one thread, times the "
      "threads; 4 bits may pass 100 %, as they need half or two thirds of the multiplications.");
  lines.push_back(fmt::format("Images: {}, {}{}.", text_or_missing(context.dataset.name),
                              context.dataset.images ? std::to_string(*context.dataset.images) : kMissing,
                              context.dataset.sha256.empty() ? "" : ", SHA-256 " + context.dataset.sha256));
  if (context.peak_memory_bytes) {
    lines.push_back(fmt::format("Peak memory of the process: {:.0f} MB.",
                                static_cast<double>(*context.peak_memory_bytes) / 1e6));
  }
  // Rows that were measured together share a line.
  std::vector<std::pair<Provenance, std::string>> measured;
  for (const ReportRow& row : report.rows) {
    if (!row.measured) continue;
    const auto found = std::find_if(measured.begin(), measured.end(),
                                    [&](const auto& other) { return other.first == *row.measured; });
    if (found == measured.end()) {
      measured.emplace_back(*row.measured, row.name);
    } else {
      found->second += ", " + row.name;
    }
  }
  for (const auto& [provenance, rows] : measured)
    lines.push_back(rows + ": " + provenance_text(provenance) + ".");
  for (const ReportRow& row : report.rows) {
    if (!row.note.empty()) lines.push_back(fmt::format("{} ({}): {}.", row.name, row.engine, row.note));
  }
  return lines;
}

}  // namespace nibble
