#include "bench/measurement.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>

#include "bench/child.h"
#include "bench/peaks.h"
#include "bench/statistics.h"
#include "bench/system.h"
#include "graph/data/loader.h"
#include "graph/network/error.h"
#include "graph/network/signature.h"
#include "nibble_version.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSignatureImages = 1000;
constexpr int kFirstLogitStarts = 5;
constexpr int kSingleImages = 200;  // of each round

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::span<const std::uint8_t> pixels_of(const Dataset& images, int first, int count) {
  return std::span(images.pixels)
      .subspan(static_cast<std::size_t>(first) * cifar10_image_bytes,
               static_cast<std::size_t>(count) * cifar10_image_bytes);
}

/// Logits of all images, [image][class], in batches of `batch`.
std::vector<float> logits_of(Model& model, const Dataset& images, int batch, int classes) {
  std::vector<float> logits(static_cast<std::size_t>(images.count()) * static_cast<std::size_t>(classes));
  for (int first = 0; first < images.count(); first += batch) {
    const int count = std::min(batch, images.count() - first);
    model.run(pixels_of(images, first, count), count,
              std::span(logits).subspan(static_cast<std::size_t>(first) * static_cast<std::size_t>(classes),
                                        static_cast<std::size_t>(count) * static_cast<std::size_t>(classes)));
  }
  return logits;
}

/// The lowest index of the largest logit of each image.
std::vector<int> classes_of(std::span<const float> logits, int classes) {
  std::vector<int> result;
  for (std::size_t i = 0; i < logits.size(); i += static_cast<std::size_t>(classes)) {
    const auto image = logits.subspan(i, static_cast<std::size_t>(classes));
    result.push_back(static_cast<int>(std::max_element(image.begin(), image.end()) - image.begin()));
  }
  return result;
}

/// Accuracy and its interval, and the comparison with the FP32 network's classes, which may be empty.
void compare(const std::vector<int>& predicted, const std::vector<int>& reference, const Dataset& images,
             ReportRow& row) {
  const auto count = static_cast<std::int64_t>(predicted.size());
  if (!reference.empty()) {
    std::int64_t equal = 0;
    for (std::size_t i = 0; i < predicted.size(); ++i) equal += predicted[i] == reference[i];
    row.agreement = static_cast<double>(equal) / static_cast<double>(count);
  }
  if (images.labels.empty()) return;
  std::int64_t right = 0;
  std::int64_t only_row = 0;
  std::int64_t only_reference = 0;
  std::vector<bool> flags;
  for (std::size_t i = 0; i < predicted.size(); ++i) {
    const bool row_right = predicted[i] == images.labels[i];
    right += row_right;
    flags.push_back(row_right);
    if (reference.empty()) continue;
    const bool reference_right = reference[i] == images.labels[i];
    only_row += row_right && !reference_right;
    only_reference += reference_right && !row_right;
  }
  row.top1 = static_cast<double>(right) / static_cast<double>(count);
  row.top1_interval = wilson_interval(right, count);
  row.correct_images = pack_flags(flags);
  if (!reference.empty()) row.mcnemar_p = mcnemar_exact_p(only_row, only_reference);
}

/// Median over new processes, from before the start to the first logits.
double first_logit_seconds(std::size_t kind, const std::filesystem::path& file) {
  std::vector<double> seconds;
  for (int i = 0; i < kFirstLogitStarts; ++i) {
    const auto start = Clock::now();
    Child child({"--first-logit", fmt::format("{}:{}", kind, file.string()), "--threads",
                 std::to_string(omp_get_max_threads())},
                {});
    const Clock::duration end(std::stoll(child.receive()));
    seconds.push_back(std::chrono::duration<double>(end - start.time_since_epoch()).count());
    child.wait();
  }
  return median(seconds);
}

std::size_t index_of(const RowKind& kind) {
  const std::vector<RowKind>& kinds = row_kinds();
  return static_cast<std::size_t>(std::find_if(kinds.begin(), kinds.end(),
                                               [&](const RowKind& k) {
                                                 return k.runner == kind.runner &&
                                                        k.weight_bits == kind.weight_bits;
                                               }) -
                                  kinds.begin());
}

}  // namespace

struct Measurement::Row {
  RowRequest request;
  OpenedModel opened;
  std::unique_ptr<Model>
      single;  // planned for one image at a time; nullptr when `opened` is or latency is off
  ReportRow report;
  std::vector<double> latencies;
  std::vector<float> logits;  // of the largest batch
  std::vector<int> predicted;
};

Measurement::~Measurement() = default;

Measurement::Measurement(const std::vector<RowRequest>& requests, Dataset images, MeasurementOptions options)
    : options_(options), images_(std::move(images)) {
  LoaderOptions loader_options;
  loader_options.batch_size = options_.batch;
  loader_options.num_workers = options_.num_workers;
  loader_ = std::make_unique<Loader>(images_, loader_options);

  for (const RowRequest& request : requests) {
    auto row = std::make_unique<Row>();
    row->request = request;
    // Before this process has threads that could be in the way.
    const std::size_t kind = index_of(request.kind);
    row->opened = open_model(request.kind, request.file, options_.batch);
    const OpenedModel& opened = row->opened;
    ReportRow& report = row->report;
    report.name = request.name;
    report.engine = opened.engine;
    report.weight_bits = opened.weight_bits;
    report.activation_bits = opened.activation_bits;
    report.residual_bits = opened.residual_bits;
    report.fused = opened.fused;
    report.isa = opened.isa;
    report.mac_fraction = opened.mac_fraction;
    report.file = request.file.string();
    report.file_bytes = opened.file_bytes;
    report.payload_bytes = opened.payload_bytes;
    report.bits_per_parameter = 8.0 * static_cast<double>(opened.payload_bytes) /
                                static_cast<double>(opened.network.parameter_count());
    report.batch = options_.batch;
    report.note = opened.note;
    row->logits.resize(static_cast<std::size_t>(options_.batch) *
                       static_cast<std::size_t>(opened.network.classes));
    if (opened.model && options_.latency && options_.batch != 1) {
      row->single = open_model(request.kind, request.file, 1).model;
    }
    if (opened.model && options_.first_logit) {
      report.first_logit_seconds = first_logit_seconds(kind, request.file);
    }
    rows_.push_back(std::move(row));
  }
  classify();
}

void Measurement::classify() {
  std::map<std::filesystem::path, std::pair<NetworkDescription, std::vector<int>>> references;
  const Dataset generated = generated_images(kSignatureImages);
  for (const auto& row : rows_) {
    if (!row->opened.model) continue;
    const int classes = row->opened.network.classes;
    const std::vector<float> logits = logits_of(*row->opened.model, images_, options_.batch, classes);
    row->predicted = classes_of(logits, classes);
    if (images_.name == dataset_name(Split::test) && images_.count() >= kSignatureImages) {
      row->report.signature = signature(std::span(logits).first(static_cast<std::size_t>(kSignatureImages) *
                                                                static_cast<std::size_t>(classes)));
    }
    row->report.signature_generated =
        signature(logits_of(*row->opened.model, generated, options_.batch, classes));
    if (row->request.kind.runner == Runner::fp32) {
      references[row->request.file] = {row->opened.network, row->predicted};
    }
  }
  const RowKind& fp32 = row_kinds().front();
  for (const auto& row : rows_) {
    const std::filesystem::path& file = row->request.reference;
    if (!row->opened.model) continue;
    if (!file.empty() && !references.contains(file)) {
      const OpenedModel opened = open_model(fp32, file, options_.batch);
      references[file] = {opened.network, classes_of(logits_of(*opened.model, images_, options_.batch,
                                                               opened.network.classes),
                                                     opened.network.classes)};
    }
    const bool comparable = !file.empty() && references.at(file).first == row->opened.network;
    compare(row->predicted, comparable ? references.at(file).second : std::vector<int>{}, images_,
            row->report);
  }
}

std::map<std::string, std::vector<int>> Measurement::predictions() const {
  std::map<std::string, std::vector<int>> result;
  for (const auto& row : rows_) {
    if (row->opened.model) result.emplace(row->request.name, row->predicted);
  }
  return result;
}

void Measurement::round() {
  for (const auto& row : rows_) {
    if (!row->opened.model) continue;
    time_with_loader(*row);
    time_without_loader(*row);
    if (row->single) time_single_images(*row);
  }
}

void Measurement::time_with_loader(Row& row) {
  const auto start = Clock::now();
  loader_->start(0);
  while (const Batch* batch = loader_->next()) {
    row.opened.model->run(batch->pixels, batch->size, row.logits);
  }
  row.report.seconds.runs.push_back(seconds_since(start));
}

void Measurement::time_without_loader(Row& row) {
  const auto start = Clock::now();
  for (int first = 0; first < images_.count(); first += options_.batch) {
    const int count = std::min(options_.batch, images_.count() - first);
    const auto image_start = Clock::now();
    row.opened.model->run(pixels_of(images_, first, count), count, row.logits);
    if (options_.batch == 1) row.latencies.push_back(seconds_since(image_start));
  }
  row.report.seconds_without_loader.runs.push_back(seconds_since(start));
}

void Measurement::time_single_images(Row& row) {
  const int count = std::min(kSingleImages, images_.count());
  row.single->run(pixels_of(images_, 0, 1), 1, row.logits);  // its weights come back into the caches
  for (int i = 0; i < count; ++i) {
    const auto start = Clock::now();
    row.single->run(pixels_of(images_, i, 1), 1, row.logits);
    row.latencies.push_back(seconds_since(start));
  }
}

namespace {

/// Peaks of one thread, each measured once.
class Peaks {
 public:
  /// Nothing where there is no such probe here or it stays below its documented rate: a fraction of it would
  /// flatter.
  std::optional<double> macs_per_second(const std::string& name) {
    const auto known = measured_.find(name);
    if (known != measured_.end()) return known->second;
    std::optional<double> rate;
    if (const PeakProbe* probe = find_probe(name)) {
      const MeasuredPeak peak = measure_peak(*probe);
      if (!peak.documented || *peak.documented_fraction() >= kLeastDocumentedFraction) {
        rate = peak.macs_per_second;
      }
    }
    return measured_[name] = rate;
  }

 private:
  std::map<std::string, std::optional<double>> measured_;
};

void add_layers(const std::vector<LayerTime>& times, const OpenedModel& opened, int threads, Peaks& peaks,
                ReportRow& row) {
  double total = 0;
  for (const LayerTime& layer : times) total += layer.seconds;
  for (const LayerTime& layer : times) {
    LayerReport report{layer.name, layer.seconds, layer.multiply_accumulates, layer.seconds / total};
    const bool multiplies = layer.multiply_accumulates > 0;
    const auto kernel = opened.kernels.find(layer.name);
    if (kernel != opened.kernels.end()) {
      report.kernel = kernel->second.name;
    } else if (multiplies && opened.kernels.empty()) {
      report.kernel = "oneDNN";
    }
    const std::string probe = kernel != opened.kernels.end() ? kernel->second.peak_probe : opened.peak_probe;
    if (const auto peak = peaks.macs_per_second(probe); peak && multiplies && !report.kernel.empty()) {
      report.floor_seconds = layer.multiply_accumulates / (*peak * threads);
    }
    row.layers.push_back(std::move(report));
  }
}

}  // namespace

Report Measurement::finish() {
  Peaks peaks;
  Report report;
  report.context.cpu = cpu_name();
  report.context.isa = onednn_isa();
  report.context.threads = omp_get_max_threads();
  report.context.onednn = onednn_version();
  report.context.commit = commit;
  report.context.dataset = {images_.name, images_.count(), images_.sha256};
  for (const auto& row : rows_) {
    ReportRow& result = row->report;
    OpenedModel& opened = row->opened;
    for (const std::string& name : opened.implementations) {
      std::vector<std::string>& names = report.context.implementations;
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
    const auto images = static_cast<double>(images_.count());
    if (!result.seconds.runs.empty()) result.images_per_second = images / result.seconds.mean();
    if (!result.seconds_without_loader.runs.empty()) {
      result.images_per_second_without_loader = images / result.seconds_without_loader.mean();
    }
    if (!row->latencies.empty()) {
      result.latency = Latency{median(row->latencies), quantile(row->latencies, 0.99)};
    }
    if (opened.model && options_.profile) {
      const int count = std::min(options_.batch, images_.count());
      const std::vector<LayerTime> times = opened.model->profile(pixels_of(images_, 0, count), count);
      if (times.empty()) {
        std::cerr << "bench: " << result.name << " computes some of " << count
                  << " images one at a time, which has no times of layers; choose a larger --batch"
                  << std::endl;
      }
      add_layers(times, opened, report.context.threads, peaks, result);
    }
    const std::optional<double> peak = peaks.macs_per_second(opened.peak_probe);
    if (peak && result.images_per_second_without_loader) {
      result.peak_fraction = *result.images_per_second_without_loader *
                             static_cast<double>(opened.network.multiply_accumulates()) /
                             (*peak * report.context.threads);
    }
    report.rows.push_back(result);
  }
  report.context.peak_memory_bytes = peak_memory_bytes();
  return report;
}

int print_first_logit_time(const std::string& kind_and_file) {
  const std::size_t colon = kind_and_file.find(':');
  const std::size_t kind = colon == std::string::npos ? row_kinds().size() : std::stoul(kind_and_file);
  if (kind >= row_kinds().size()) throw InputError("--first-logit is for bench's own children only");
  const OpenedModel opened = open_model(row_kinds()[kind], kind_and_file.substr(colon + 1), 1);
  const Dataset images = generated_images(1);
  std::vector<float> logits(static_cast<std::size_t>(opened.network.classes));
  opened.model->run(images.pixels, 1, logits);
  std::cout << Clock::now().time_since_epoch().count() << std::endl;
  return 0;
}

}  // namespace nibble
