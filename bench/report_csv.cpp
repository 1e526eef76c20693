#include <nlohmann/json.hpp>

#include "bench/report.h"

namespace nibble {
namespace {

/// As RFC 4180 has it: quoted where the text has a comma, a quote or a line break.
std::string cell(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

/// Nested values become columns of their own: "seconds_mean", "top1_ci95_low". The runs are a list in one
/// cell; layers, right images and provenance are left to JSON. What was not measured is an empty cell.
struct FlatColumn {
  const char* title;
  const char* key;
  const char* member;  ///< nullptr: the value itself; "0", "1": of a list
};

constexpr FlatColumn kColumns[] = {
    {"name", "name", nullptr},
    {"engine", "engine", nullptr},
    {"weight_bits", "weight_bits", nullptr},
    {"activation_bits", "activation_bits", nullptr},
    {"fused", "fused", nullptr},
    {"isa", "isa", nullptr},
    {"top1", "top1", nullptr},
    {"top1_ci95_low", "top1_ci95", "0"},
    {"top1_ci95_high", "top1_ci95", "1"},
    {"agreement", "agreement", nullptr},
    {"mcnemar_p", "mcnemar_p", nullptr},
    {"batch", "batch", nullptr},
    {"seconds_mean", "seconds", "mean"},
    {"seconds_std", "seconds", "std"},
    {"seconds_runs", "seconds", "runs"},
    {"images_per_second", "images_per_second", nullptr},
    {"images_per_second_without_loader", "images_per_second_without_loader", nullptr},
    {"seconds_without_loader_mean", "seconds_without_loader", "mean"},
    {"seconds_without_loader_std", "seconds_without_loader", "std"},
    {"latency_median", "latency_seconds", "median"},
    {"latency_p99", "latency_seconds", "p99"},
    {"first_logit_seconds", "first_logit_seconds", nullptr},
    {"file_bytes", "file_bytes", nullptr},
    {"payload_bytes", "payload_bytes", nullptr},
    {"bits_per_parameter", "bits_per_parameter", nullptr},
    {"residual_bits", "residual_bits", nullptr},
    {"mac_fraction", "mac_fraction", nullptr},
    {"peak_fraction", "peak_fraction", nullptr},
    {"signature", "signature", nullptr},
    {"signature_generated", "signature_generated", nullptr},
    {"file", "file", nullptr},
    {"note", "note", nullptr},
};

std::string text_of(const nlohmann::ordered_json& row, const FlatColumn& column) {
  nlohmann::ordered_json value = row.at(column.key);
  if (column.member != nullptr && !value.is_null()) {
    // A copy first: assigning a part of a value to the value itself would destroy it on the way.
    const nlohmann::ordered_json part =
        value.is_array() ? value.at(static_cast<std::size_t>(*column.member - '0')) : value.at(column.member);
    value = part;
  }
  if (value.is_null()) return "";
  if (value.is_string()) return cell(value.get<std::string>());
  return cell(value.dump());
}

}  // namespace

std::string format_csv(const Report& report) {
  std::string text;
  for (const FlatColumn& column : kColumns) text += (text.empty() ? "" : ",") + std::string(column.title);
  text += "\r\n";
  for (const ReportRow& row : report.rows) {
    const nlohmann::ordered_json json = to_json(row);
    std::string line;
    bool first = true;
    for (const FlatColumn& column : kColumns) {
      if (!first) line += ",";
      first = false;
      line += text_of(json, column);
    }
    text += line + "\r\n";
  }
  return text;
}

}  // namespace nibble
