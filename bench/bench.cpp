#include "bench/bench.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <optional>
#include <set>
#include <string_view>

#include "bench/comparison.h"
#include "bench/figures.h"
#include "bench/file_audit.h"
#include "bench/measurement.h"
#include "bench/page.h"
#include "bench/peers.h"
#include "bench/rows.h"
#include "bench/sweep.h"
#include "bench/system.h"
#include "cfg/configuration.h"
#include "graph/data/cifar10.h"
#include "graph/data/download.h"
#include "graph/network/checkpoint_path.h"
#include "graph/network/error.h"
#include "graph/network/float_parameters.h"
#include "graph/network/tensor_file.h"

namespace nibble {
namespace {

/// As many as the published test set has.
constexpr int kGeneratedImages = 10000;

/// The test images, or `held_out` training images; generated ones where there is no data set and none can be
/// fetched. A folder that is there but wrong is an error.
Dataset images_to_measure(const Configuration& configuration, int limit, int held_out = 0) {
  Dataset images;
  const std::filesystem::path root = cifar10_root(configuration.cfg_CIFAR.root);
  std::optional<std::filesystem::path> folder = find_data_files(root);
  if (!folder) {
    try {
      DownloadOptions download;
      download.url = configuration.cfg_CIFAR.url;
      folder = prepare_cifar10(configuration.cfg_CIFAR.root, configuration.cfg_CIFAR.download, download);
    } catch (const std::runtime_error& error) {
      std::cerr << "bench: " << error.what() << "\n"
                << "bench: without the data set speed, size and agreement are measured on generated images, "
                   "accuracy is n/a"
                << std::endl;
    }
  }
  if (folder) {
    images = read_cifar10(*folder, held_out > 0 ? Split::validation : Split::test, held_out);
  } else {
    images = generated_images(kGeneratedImages);
  }
  if (limit > 0 && limit < images.count()) {
    images.pixels.resize(static_cast<std::size_t>(limit) * cifar10_image_bytes);
    if (!images.labels.empty()) images.labels.resize(static_cast<std::size_t>(limit));
  }
  return images;
}

std::vector<RowRequest> requests_for(const Configuration& configuration, const BenchOptions& options) {
  RowSelection selection = select_rows(configuration.cfg.checkpoint_path, options.models);
  if (!options.worker) {
    for (const std::string& remark : selection.remarks) std::cerr << "bench: " << remark << "\n";
  }
  std::erase_if(selection.rows, [](const RowRequest& row) { return !exists_here(row); });
  return selection.rows;
}

/// The command line of a child that measures the same.
std::vector<std::string> arguments_for_children(const BenchOptions& options, int batch) {
  std::vector<std::string> arguments = {"--batch",   std::to_string(batch),
                                        "--images",  std::to_string(options.images),
                                        "--threads", std::to_string(omp_get_max_threads())};
  if (options.held_out > 0) {
    arguments.insert(arguments.end(), {"--held-out", std::to_string(options.held_out)});
  }
  if (!options.configuration.empty()) arguments.insert(arguments.end(), {"--cfg", options.configuration});
  if (options.profile) arguments.emplace_back("--profile");
  for (const std::string& model : options.models) arguments.insert(arguments.end(), {"--models", model});
  return arguments;
}

/// The exit code; the lines go to standard error, where they do not mix with the report.
int emit_comparison(const Comparison& comparison) {
  for (const std::string& line : comparison.lines) std::cerr << "bench: " << line << "\n";
  return comparison.failed ? 1 : 0;
}

/// A checkpoint's own name, or the name without .safetensors.
std::optional<std::filesystem::path> checkpoint_named(const std::string& name) {
  std::error_code ignored;
  for (const std::string& file : {name, name + ".safetensors"}) {
    if (file.ends_with(".safetensors") && std::filesystem::is_regular_file(file, ignored)) return file;
  }
  return std::nullopt;
}

int run_audit(const std::filesystem::path& file, const Configuration& configuration) {
  // The data set where it is at hand; nothing is fetched for this.
  const std::optional<std::filesystem::path> folder =
      find_data_files(cifar10_root(configuration.cfg_CIFAR.root));
  const FileAudit audit = audit_file(file, folder ? read_cifar10(*folder, Split::test) : Dataset{});
  for (const std::string& line : to_lines(audit)) std::cout << line << "\n";
  return audit.objections.empty() ? 0 : 1;
}

/// Opens and classifies the files of an earlier report and compares; nothing is timed.
int run_verification(const BenchOptions& options, const Configuration& configuration,
                     MeasurementOptions measurement_options) {
  const Report base = read_report(options.verify);
  std::vector<std::string> files;
  for (const ReportRow& row : base.rows) {
    if (!row.file.empty() && std::find(files.begin(), files.end(), row.file) == files.end()) {
      files.push_back(row.file);
    }
  }
  if (files.empty()) throw InputError(options.verify + " has no row with a file; there is nothing to verify");
  RowSelection selection = select_rows(configuration.cfg.checkpoint_path, files);
  std::erase_if(selection.rows, [](const RowRequest& row) { return !exists_here(row); });
  measurement_options.first_logit = false;
  measurement_options.latency = false;
  measurement_options.profile = false;
  const int count = base.context.dataset.images.value_or(0);
  const bool held_out = base.context.dataset.name == dataset_name(Split::validation);
  Measurement measurement(selection.rows, images_to_measure(configuration, count, held_out ? count : 0),
                          measurement_options);
  const Comparison comparison = verify(base, measurement.finish());
  for (const std::string& line : comparison.lines) std::cout << line << "\n";
  return comparison.failed ? 1 : 0;
}

/// Times the rows, round by round.
void run_rounds(Measurement& measurement, int runs) {
  for (int run = 0; run < runs; ++run) {
    std::cerr << fmt::format("\rbench: round {} of {} ", run + 1, runs) << std::flush;
    measurement.round();
  }
  std::cerr << std::endl;
}

std::string format_html_page(const Report& report, const Figures& figures) {
  const std::optional<std::string> library = read_plotting_library(plotting_library_files());
  if (!library) {
    std::cerr << "bench: Chart.js is not installed, so the page has tables but no charts; run scripts/setup "
                 "(package libjs-chart.js)"
              << std::endl;
  }
  return format_page(report, figures, library);
}

bool is_page(const BenchOptions& options) {
  return options.report == "html";
}

void emit(const Report& report, const Figures& figures, const BenchOptions& options) {
  emit_report(is_page(options) ? format_html_page(report, figures) : format_report(report, options.report),
              options.output);
}

/// Whether training made the file's weights; the others were made after it, without labels.
bool is_trained_here(const TensorFile& file) {
  return file.entry("format") == kFloatFormat || file.entry("provenance.method").starts_with("trained");
}

/// Images that a network was trained on say nothing about its accuracy on new ones.
void warn_of_training_images(const std::vector<RowRequest>& requests, int held_out) {
  std::set<std::filesystem::path> files;  // many rows can come from one
  for (const RowRequest& request : requests) {
    const bool own = is_trained_here(read_tensor_file(request.file));
    if (own || !request.reference.empty()) files.insert(own ? request.file : request.reference);
  }
  for (const std::filesystem::path& path : files) {
    const TensorFile file = read_tensor_file(path);
    const bool is_float = file.entry("format") == kFloatFormat;
    const std::string validation = file.entry(is_float ? "validation" : "provenance.held_out");
    if (validation.empty() || std::atoi(validation.c_str()) < held_out) {
      std::cerr << "bench: " << path.string() << " was trained on these images (it held out "
                << (validation.empty() ? "an unknown number" : validation)
                << "): neither its accuracy nor that of networks made from it is one of new images"
                << std::endl;
    }
  }
}

/// Measures the rows, emits the report and compares it with an earlier one. Returns the exit code.
int run_measurement(const BenchOptions& options, const Configuration& configuration,
                    const MeasurementOptions& measurement_options) {
  const double fail_above = options.fail_above.empty() ? HUGE_VAL : parse_fraction(options.fail_above);
  std::optional<Report> base;
  if (!options.compare.empty()) {
    base = read_report(options.compare);
    require_same_machine(base->context, cpu_name(), omp_get_max_threads());
  }
  const std::vector<RowRequest> requests = requests_for(configuration, options);
  if (options.held_out > 0 && !options.worker) warn_of_training_images(requests, options.held_out);
  std::vector<ReportRow> peers;
  const bool all_rows = options.models.empty() && options.held_out == 0;
  if (!options.worker && (all_rows || !options.peers.empty())) {
    peers =
        peer_rows(options.peers.empty() ? std::nullopt : std::optional<std::filesystem::path>(options.peers));
  }

  const std::filesystem::path log_folder =
      CheckpointPaths(configuration.cfg.checkpoint_path).log.parent_path();
  const bool page = is_page(options);
  Report report;
  Figures figures = Figures::object();
  if (options.isa_sweep) {
    report = sweep(sweep_steps(), arguments_for_children(options, measurement_options.batch), options.runs);
    if (page)
      figures = collect_figures(requests, images_to_measure(configuration, options.images, options.held_out),
                                {}, log_folder);
  } else {
    Dataset images = images_to_measure(configuration, options.images, options.held_out);
    Measurement measurement(requests, std::move(images), measurement_options);
    if (options.worker) return work_for_sweep(measurement);
    run_rounds(measurement, options.runs);
    report = measurement.finish();
    if (page) {
      std::cerr << "bench: drawing the page" << std::endl;
      figures = collect_figures(requests, measurement.images(), measurement.predictions(), log_folder);
    }
  }
  insert_peers(report, peers);
  emit(report, figures, options);
  return base ? emit_comparison(compare(*base, report, fail_above, options.models.empty())) : 0;
}

}  // namespace

void add_bench_options(CLI::App& app, BenchOptions& options) {
  app.add_option("--report", options.report, "Form of the report: md, json, html or csv")
      ->check(CLI::IsMember(report_formats()))
      ->capture_default_str();
  app.add_option("--cfg", options.configuration,
                 "Configuration: names the checkpoints, the data and the batch");
  CLI::Option* output = app.add_option("-o,--output", options.output,
                                       "Write the report to this file instead of standard output");
  CLI::Option* models =
      app.add_option("--models", options.models,
                     "Only these rows: names in the table (int4), files in chkp/ (64_200_int4) or paths")
          ->delimiter(',');
  app.add_option("--batch", options.batch,
                 "Images at a time (default: the configuration's cfg_dataloader_test.batch_size)")
      ->check(CLI::Range(1, 10000));
  CLI::Option* runs = app.add_option("--runs", options.runs, "Repetitions; the rows take turns")
                          ->check(CLI::Range(1, 1000))
                          ->capture_default_str();
  CLI::Option* images =
      app.add_option("--images", options.images, "Only the first N test images (default: all)")
          ->check(CLI::Range(0, 10000));
  CLI::Option* held_out =
      app.add_option("--held-out", options.held_out,
                     "Instead of the test images: the last N training images, which a training with "
                     "cfg_train.validation N left out")
          ->check(CLI::Range(1, 10000));
  CLI::Option* profile = app.add_flag("--profile", options.profile, "Time, GMAC/s and share of each layer");
  CLI::Option* isa_sweep = app.add_flag("--isa-sweep", options.isa_sweep,
                                        "Each instruction set of this CPU, in a process of its own");
  CLI::Option* peers =
      app.add_option("--peers", options.peers, "Rows of other engines (default: bench/peers.json)");
  CLI::Option* compare = app.add_option("--compare", options.compare,
                                        "Compare time, accuracy and size with an earlier JSON report");
  app.add_option(
         "--fail-above", options.fail_above,
         "With --compare: exit code 1 when a row is slower or larger by more than this, for example 3%, or "
         "significantly less accurate")
      ->needs(compare);
  CLI::Option* verify =
      app.add_option("--verify", options.verify,
                     "A checkpoint: check its bytes, bounds of sums, stored bits of each layer and "
                     "signature; an earlier JSON "
                     "report: check that this machine gives its accuracy, sizes and signatures");
  CLI::Option* render = app.add_option("--render", options.render,
                                       "An earlier JSON report in the form of --report; nothing is measured");
  // What measures nothing takes no options of a measurement.
  for (CLI::Option* other : {models, runs, images, held_out, profile, isa_sweep, peers, compare}) {
    verify->excludes(other);
    render->excludes(other);
  }
  verify->excludes(render)->excludes(output);
  app.add_flag("--worker", options.worker)->group("");
  app.add_option("--first-logit", options.first_logit)->group("");
}

int run_bench(const BenchOptions& options) {
  if (!options.first_logit.empty()) return print_first_logit_time(options.first_logit);
  if (options.held_out > 0 && options.images > 0) {
    throw InputError("--held-out N says how many images are measured; leave out --images");
  }

  const Configuration configuration = load_configuration(
      options.configuration.empty() ? default_configuration_file : options.configuration.c_str());
  MeasurementOptions measurement_options;
  measurement_options.batch =
      options.batch > 0 ? options.batch : configuration.cfg_dataloader_test.batch_size;
  measurement_options.num_workers = configuration.cfg_dataloader_test.num_workers;
  measurement_options.profile = options.profile;
  if (const auto file = checkpoint_named(options.verify)) return run_audit(*file, configuration);
  if (options.verify.ends_with(".safetensors")) {
    throw InputError("there is no file " + options.verify + "; name a checkpoint of train or quant");
  }
  if (!options.verify.empty()) return run_verification(options, configuration, measurement_options);

  if (!options.output.empty()) require_writable(options.output);
  if (!options.render.empty()) {
    emit(read_report(options.render), Figures::object(), options);
    return 0;
  }
  return run_measurement(options, configuration, measurement_options);
}

}  // namespace nibble
