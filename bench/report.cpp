#include "bench/report.h"

#include <cstddef>
#include <iostream>
#include <nlohmann/json.hpp>
#include <span>

#include "graph/network/error.h"
#include "graph/network/tensor_file.h"

namespace nibble {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// Values to JSON; what has no value becomes null.

OrderedJson value_to_json(const std::string& value) {
  return value.empty() ? OrderedJson() : OrderedJson(value);
}
OrderedJson value_to_json(const Interval& value) {
  return OrderedJson::array({value.low, value.high});
}
OrderedJson value_to_json(const Latency& value) {
  return {{"median", value.median}, {"p99", value.p99}};
}
OrderedJson value_to_json(const Timing& value) {
  if (value.runs.empty()) return nullptr;
  return {{"mean", value.mean()}, {"std", value.deviation()}, {"runs", value.runs}};
}
OrderedJson value_to_json(const Provenance& value) {
  return {{"date", value.date},         {"cpu", value.cpu},
          {"versions", value.versions}, {"checkpoint", value.checkpoint},
          {"images", value.images},     {"threads", value.threads}};
}
template <typename T>
OrderedJson value_to_json(const std::optional<T>& value) {
  if (!value) return nullptr;
  if constexpr (std::is_arithmetic_v<T>) {
    return *value;
  } else {
    return value_to_json(*value);
  }
}

OrderedJson value_to_json(const std::vector<LayerReport>& layers) {
  if (layers.empty()) return nullptr;
  OrderedJson json = OrderedJson::array();
  for (const LayerReport& layer : layers) {
    OrderedJson rate;
    if (layer.multiply_accumulates > 0) rate = layer.multiply_accumulates / layer.seconds / 1e9;
    json.push_back({{"name", layer.name},
                    {"seconds", layer.seconds},
                    {"multiply_accumulates", layer.multiply_accumulates},
                    {"gmac_per_second", rate},
                    {"share", layer.share},
                    {"kernel", value_to_json(layer.kernel)},
                    {"floor_seconds", value_to_json(layer.floor_seconds)}});
  }
  return json;
}

// JSON to values; null leaves the value as it is.

void value_from_json(const Json& json, std::string& value) {
  value = json.get<std::string>();
}
void value_from_json(const Json& json, Interval& value) {
  value = {json.at(0).get<double>(), json.at(1).get<double>()};
}
void value_from_json(const Json& json, Latency& value) {
  value = {json.at("median").get<double>(), json.at("p99").get<double>()};
}
void value_from_json(const Json& json, Timing& value) {
  json.at("runs").get_to(value.runs);
}
void value_from_json(const Json& json, Provenance& value) {
  value = {json.at("date").get<std::string>(),
           json.at("cpu").get<std::string>(),
           json.at("versions").get<std::map<std::string, std::string>>(),
           json.value("checkpoint", ""),
           json.value("images", 0),
           json.value("threads", 0)};
}
void value_from_json(const Json& json, std::vector<LayerReport>& layers) {
  for (const Json& layer : json) {
    layers.push_back({layer.at("name").get<std::string>(), layer.at("seconds").get<double>(),
                      layer.at("multiply_accumulates").get<double>(), layer.at("share").get<double>()});
    // Reports of earlier versions do not have these.
    const auto kernel = layer.find("kernel");
    if (kernel != layer.end() && !kernel->is_null()) kernel->get_to(layers.back().kernel);
    const auto floor = layer.find("floor_seconds");
    if (floor != layer.end() && !floor->is_null()) layers.back().floor_seconds = floor->get<double>();
  }
}
template <typename T>
void value_from_json(const Json& json, std::optional<T>& value) {
  T read{};
  if constexpr (std::is_arithmetic_v<T>) {
    read = json.get<T>();
  } else {
    value_from_json(json, read);
  }
  value = read;
}

/// Every key of a row, in the order of the contract. Row: ReportRow or const ReportRow.
template <typename Row, typename Visit>
void visit_row(Row& row, Visit&& visit) {
  visit("name", row.name);
  visit("engine", row.engine);
  visit("weight_bits", row.weight_bits);
  visit("activation_bits", row.activation_bits);
  visit("fused", row.fused);
  visit("isa", row.isa);
  visit("top1", row.top1);
  visit("top1_ci95", row.top1_interval);
  visit("agreement", row.agreement);
  visit("batch", row.batch);
  visit("seconds", row.seconds);
  visit("images_per_second", row.images_per_second);
  visit("images_per_second_without_loader", row.images_per_second_without_loader);
  visit("file_bytes", row.file_bytes);
  visit("payload_bytes", row.payload_bytes);
  visit("residual_bits", row.residual_bits);
  visit("mac_fraction", row.mac_fraction);
  visit("signature", row.signature);
  visit("file", row.file);
  visit("latency_seconds", row.latency);
  visit("signature_generated", row.signature_generated);
  visit("mcnemar_p", row.mcnemar_p);
  visit("bits_per_parameter", row.bits_per_parameter);
  visit("peak_fraction", row.peak_fraction);
  visit("seconds_without_loader", row.seconds_without_loader);
  visit("first_logit_seconds", row.first_logit_seconds);
  visit("layers", row.layers);
  visit("correct_images", row.correct_images);
  visit("measured", row.measured);
  visit("note", row.note);
}

constexpr const char* kRequiredRowKeys[] = {"name", "engine"};

}  // namespace

OrderedJson to_json(const ReportRow& row) {
  OrderedJson json;
  visit_row(row, [&](const char* key, const auto& value) { json[key] = value_to_json(value); });
  return json;
}

OrderedJson to_json(const Report& report) {
  const ReportContext& context = report.context;
  OrderedJson json;
  json["context"] = {{"cpu", context.cpu},
                     {"isa", context.isa},
                     {"threads", context.threads},
                     {"onednn", context.onednn},
                     {"commit", context.commit},
                     {"dataset",
                      {{"name", value_to_json(context.dataset.name)},
                       {"images", value_to_json(context.dataset.images)},
                       {"sha256", value_to_json(context.dataset.sha256)}}},
                     {"implementations", context.implementations},
                     {"peak_memory_bytes", value_to_json(context.peak_memory_bytes)}};
  json["rows"] = OrderedJson::array();
  for (const ReportRow& row : report.rows) json["rows"].push_back(to_json(row));
  return json;
}

ReportRow row_from_json(const Json& json, const std::string& source) {
  if (!json.is_object()) throw InputError(source + ": a row is not a JSON object; write it again with bench");
  ReportRow row;
  for (const char* key : kRequiredRowKeys) {
    if (!json.contains(key)) {
      throw InputError(source + ": a row has no key '" + key + "'; write the file again with bench");
    }
  }
  visit_row(row, [&](const char* key, auto& value) {
    const auto found = json.find(key);
    if (found == json.end() || found->is_null()) return;
    try {
      value_from_json(*found, value);
    } catch (const Json::exception&) {
      throw InputError(source + ": the key '" + key + "' of row '" + row.name + "' is " + found->dump() +
                       ", which is not of its type; write the file again with bench");
    }
  });
  return row;
}

Report report_from_json(const Json& json, const std::string& source) {
  Report report;
  try {
    const Json& context = json.at("context");
    report.context.cpu = context.at("cpu").get<std::string>();
    report.context.isa = context.at("isa").get<std::string>();
    report.context.threads = context.at("threads").get<int>();
    report.context.onednn = context.at("onednn").get<std::string>();
    report.context.commit = context.at("commit").get<std::string>();
    if (context.contains("implementations")) {
      context.at("implementations").get_to(report.context.implementations);
    }
    const Json& dataset = context.at("dataset");
    if (!dataset.at("name").is_null()) dataset.at("name").get_to(report.context.dataset.name);
    if (!dataset.at("images").is_null()) report.context.dataset.images = dataset.at("images").get<int>();
    if (!dataset.at("sha256").is_null()) dataset.at("sha256").get_to(report.context.dataset.sha256);
    if (context.contains("peak_memory_bytes") && !context.at("peak_memory_bytes").is_null()) {
      report.context.peak_memory_bytes = context.at("peak_memory_bytes").get<std::int64_t>();
    }
    for (const Json& row : json.at("rows")) report.rows.push_back(row_from_json(row, source));
  } catch (const Json::exception& error) {
    throw InputError(source + ": this is not a report of bench (" + error.what() +
                     "); write it with bench --report json");
  }
  return report;
}

std::string pack_flags(const std::vector<bool>& flags) {
  std::string digits((flags.size() + 3) / 4, '0');
  for (std::size_t i = 0; i < digits.size(); ++i) {
    unsigned value = 0;
    for (std::size_t bit = 0; bit < 4; ++bit) {
      value = value << 1U | static_cast<unsigned>(4 * i + bit < flags.size() && flags[4 * i + bit]);
    }
    digits[i] = "0123456789abcdef"[value];
  }
  return digits;
}

// Each in its own file.
std::string format_markdown(const Report& report);
std::string format_csv(const Report& report);
std::string format_html(const Report& report);

namespace {

std::string format_json(const Report& report) {
  // Names of files are any bytes.
  return to_json(report).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

struct Format {
  const char* name;
  std::string (*format)(const Report&);
};

constexpr Format kFormats[] = {
    {"md", format_markdown}, {"json", format_json}, {"html", format_html}, {"csv", format_csv}};

}  // namespace

std::vector<std::string> report_formats() {
  std::vector<std::string> names;
  for (const Format& format : kFormats) names.emplace_back(format.name);
  return names;
}

std::string format_report(const Report& report, const std::string& format) {
  for (const Format& known : kFormats) {
    if (format == known.name) return known.format(report);
  }
  throw InputError("there is no report format '" + format + "'; choose md, json, html or csv");
}

void emit_report(const std::string& text, const std::filesystem::path& output) {
  if (output.empty()) {
    std::cout << text << std::flush;
    if (!std::cout) throw RunError("the report cannot be written to standard output; is the disk full?");
    return;
  }
  write_file_atomically(output, std::as_bytes(std::span(text)));
}

}  // namespace nibble
