#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/statistics.h"

namespace nibble {

/// Seconds of each repetition of one measurement; empty when it was not made.
struct Timing {
  std::vector<double> runs;

  double mean() const { return nibble::mean(runs); }
  double deviation() const { return standard_deviation(runs); }
};

struct Latency {
  double median;  ///< seconds
  double p99;     ///< seconds
};

/// One layer of a profile.
struct LayerReport {
  std::string name;
  double seconds;               ///< all images of one batch
  double multiply_accumulates;  ///< of the batch, valid taps; 0 for element-wise work
  double share;                 ///< of the row's layers together
  std::string kernel{};         ///< what ran it: "int2_avx2", "oneDNN"; empty for element-wise work
  /// The multiply-accumulates at the measured peak of the kernel's instructions on all threads.
  std::optional<double> floor_seconds{};
};

/// Where the figures of another engine come from; shown beside its rows.
struct Provenance {
  std::string date;
  std::string cpu;
  std::map<std::string, std::string> versions;
  std::string checkpoint;  ///< the FP32 file that it was given; empty: not told
  int images = 0;          ///< 0: not told
  int threads = 0;         ///< 0: not told

  bool operator==(const Provenance&) const = default;
};

/// One row of the table: one file, run by one engine. What was not measured has no value, in JSON null.
struct ReportRow {
  std::string name;    ///< "FP32", "int8 fused", "PyTorch int4"
  std::string engine;  ///< "onednn", "nibble", "onednn+nibble", or another engine's name
  std::optional<int> weight_bits;
  std::optional<int> activation_bits;
  std::optional<bool> fused;  ///< batch normalization folded, ReLU and sum inside the convolutions
  std::string isa;            ///< the instruction set that really ran; empty when nothing ran
  std::optional<double> top1;
  std::optional<Interval> top1_interval;
  std::optional<double> agreement;  ///< fraction of images with the class that FP32 gives
  std::optional<int> batch;
  Timing seconds;                 ///< all images, the loader inside
  Timing seconds_without_loader;  ///< all images, pixels at hand
  std::optional<double> images_per_second;
  std::optional<double> images_per_second_without_loader;
  std::optional<std::int64_t> file_bytes;
  std::optional<std::int64_t> payload_bytes;  ///< of the tensors that this network reads
  std::optional<int> residual_bits;
  std::optional<double> mac_fraction;
  std::string signature;
  std::string signature_generated;
  std::string file;
  std::optional<Latency> latency;  ///< of one image, at batch 1
  std::optional<double> mcnemar_p;
  std::optional<double> bits_per_parameter;
  std::optional<double> peak_fraction;
  std::optional<double> first_logit_seconds;  ///< from the start of a process, the data set not counted
  std::vector<LayerReport> layers;            ///< with --profile
  std::string correct_images;                 ///< see pack_flags(); empty without labels
  std::optional<Provenance> measured;         ///< of another engine's rows
  std::string note;                           ///< for example why a row has no values
};

struct DatasetReport {
  std::string name;
  std::optional<int> images;
  std::string sha256;
};

struct ReportContext {
  std::string cpu;
  std::string isa;
  int threads = 0;
  std::string onednn;
  std::vector<std::string> implementations;  ///< oneDNN's names of the convolutions it chose
  std::string commit;
  DatasetReport dataset;
  std::optional<std::int64_t> peak_memory_bytes;
};

struct Report {
  ReportContext context;
  std::vector<ReportRow> rows;
};

/// The report's JSON: the keys are the contract with other tools.
nlohmann::ordered_json to_json(const Report& report);
nlohmann::ordered_json to_json(const ReportRow& row);

/// The inverse. Throws InputError naming `source`, the row and the key that is missing or of another type.
Report report_from_json(const nlohmann::json& json, const std::string& source);
ReportRow row_from_json(const nlohmann::json& json, const std::string& source);

/// Flags as hexadecimal digits, four a digit, the first flag in the highest bit; the last digit is filled
/// with zeros. Which images a row has right, so that a later report can be compared image by image.
std::string pack_flags(const std::vector<bool>& flags);

/// A report as text. Formats: "md", "json", "html" (without the figures of page.h), "csv"; one file each,
/// report_<format>.cpp.
std::string format_report(const Report& report, const std::string& format);
std::vector<std::string> report_formats();

/// Prints to stdout, or, unless `output` is empty, writes that file, whole or not at all (RunError).
void emit_report(const std::string& text, const std::filesystem::path& output);

}  // namespace nibble
