#include "quant/program.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <utility>

#include "cfg/configuration.h"
#include "graph/data/cifar10.h"
#include "graph/data/download.h"
#include "graph/data/sha256.h"
#include "graph/network/checkpoint_path.h"
#include "graph/network/error.h"
#include "graph/network/instruction_set.h"
#include "graph/network/integer_network.h"
#include "graph/network/signature.h"
#include "graph/onednn/int8_unfused_network.h"
#include "quant/calibration.h"
#include "quant/image_groups.h"
#include "quant/mixed_widths.h"
#include "quant/observer.h"
#include "quant/quantize.h"
#include "quant/quantize_unfused.h"
#include "quant/trained.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int kSignatureImages = 1000;
constexpr int kQualityImages = 200;
constexpr int kSensitivityImages = 256;

Configuration configuration_of(const QuantOptions& options) {
  Configuration configuration = load_configuration(options.configuration);
  QuantConfiguration& quant = configuration.cfg_quant;
  if (options.bits) quant.bits = *options.bits;
  if (options.activation_bits) quant.activation_bits = *options.activation_bits;
  if (options.fuse || options.no_fuse) quant.fuse = options.fuse;
  if (options.pair_safe) quant.pair_safe = true;
  if (options.observer) quant.observer = *options.observer;
  if (options.calibration_images) quant.calibration_images = *options.calibration_images;
  if (options.method) quant.method = *options.method;
  if (options.checkpoint_path) configuration.cfg.checkpoint_path = *options.checkpoint_path;
  if (options.seed) quant.seed = *options.seed;
  return configuration;
}

bool has_budget(const QuantOptions& options) {
  return options.budget_bytes || options.budget_ms;
}

/// Nothing where neither a width nor a budget is given. With a budget the widths are chosen later.
std::optional<QuantizationOptions> quantization_of(const QuantOptions& command,
                                                   const QuantConfiguration& quant) {
  const bool mixed = has_budget(command);
  if (quant.bits == 0 && !mixed) return std::nullopt;
  QuantizationOptions options =
      mixed ? default_options(2, 2) : default_options(quant.bits, quant.activation_bits);
  if (quant.observer != "auto") options.observer = quant.observer;
  options.pair_safe = quant.pair_safe;
  options.method = quant.method == "auto" && quant.fuse
                       ? automatic_method(options.bits, options.activation_bits, options.pair_safe)
                   : quant.method == "auto" ? "nearest"
                                            : quant.method;
  options.learning_steps = command.learning_steps.value_or(0);
  options.seed = quant.seed;
  if (mixed && options.pair_safe) {
    throw InputError(
        "a budget gives blocks that no pairs are safe in; take \"pair_safe\": true out of cfg_quant");
  }
  check_options(options);
  if (find_method(options.method).has_steps && quant.calibration_images < static_cast<int>(kGroupImages)) {
    throw InputError(fmt::format(
        "the method '{}' learns from {} calibration images or more, not from {}; choose more or --method "
        "nearest",
        options.method, kGroupImages, quant.calibration_images));
  }
  if (!quant.fuse && mixed) {
    throw InputError("a budget is for fused networks; take \"fuse\": false out of cfg_quant");
  }
  if (!quant.fuse && (options.bits != 8 || options.activation_bits != 8)) {
    throw InputError(fmt::format(
        "--no-fuse is for 8-bit weights and activations only, not for {} and {} bits; leave it out",
        options.bits, options.activation_bits));
  }
  if (!quant.fuse && (options.method != "nearest" || command.learning_steps)) {
    throw InputError("--no-fuse rounds to nearest; leave out --method and --learning-steps");
  }
  if (!quant.fuse && options.pair_safe) {
    throw InputError("--pair-safe is for fused networks; leave out --no-fuse or --pair-safe");
  }
  return options;
}

/// P_int8, P_int8_unfused, P_int2a8, P_int8_pair_safe, P_mixed ...
fs::path output_file(const std::string& checkpoint_path, const QuantizationOptions& options, bool fuse,
                     bool mixed) {
  std::string name =
      mixed
          ? CheckpointPaths(checkpoint_path).last.replace_extension().string() + "_mixed"
          : integer_file(checkpoint_path, options.bits, options.activation_bits).replace_extension().string();
  if (!fuse) name += "_unfused";
  if (options.pair_safe) name += "_pair_safe";
  return name + ".safetensors";
}

/// Records that the source's training held out: they are not calibrated on either.
int held_out(const TensorFile& source) {
  const std::string count = source.entry("validation");
  if (count.empty()) return 0;
  try {
    return std::stoi(count);
  } catch (const std::exception&) {
    throw InputError(source.file.string() + ": the metadata entry 'validation' is '" + count +
                     "', expected a number");
  }
}

CalibrationImages calibration_images(const Configuration& configuration, int validation) {
  const QuantConfiguration& quant = configuration.cfg_quant;
  DownloadOptions download;
  download.url = configuration.cfg_CIFAR.url;
  const fs::path folder =
      prepare_cifar10(configuration.cfg_CIFAR.root, configuration.cfg_CIFAR.download, download);
  const Dataset training = read_cifar10(folder, Split::train, validation);
  return choose_calibration_images(training, quant.calibration_images, quant.seed);
}

void print_quality(const Quality& quality) {
  fmt::print("{:<20} {:>7} {:>11} {:>9}\n", "layer", "weights", "activations", "SQNR");
  for (const LayerQuality& layer : quality.layers) {
    const std::string output =
        layer.name == "linear" ? "float" : fmt::format("{} bits", layer.activation_bits);
    fmt::print("{:<20} {:>2} bits {:>11} {:>6.1f} dB\n", layer.name, layer.weight_bits, output, layer.sqnr);
  }
  fmt::print("agreement with FP32 on {} calibration images: {:.2f} %\n", quality.images,
             100 * quality.agreement);
}

void print_file(const fs::path& file, const std::string& signature) {
  fmt::print("file: {}\nsize: {:.3f} MB\nsignature on generated images: {}\n", file.string(),
             static_cast<double>(fs::file_size(file)) / 1e6, signature);
}

/// Before minutes of work, not after them. The training's own files are not overwritten, best and last.
void check_output(const fs::path& output, const Configuration& configuration, const fs::path& source) {
  const CheckpointPaths paths(configuration.cfg.checkpoint_path);
  for (const fs::path& own : {source, paths.last, paths.best}) {
    std::error_code ignored;
    if (fs::equivalent(output, own, ignored)) {
      throw InputError(output.string() + " is the training's own checkpoint; name another file with -o");
    }
  }
  require_writable(output);
}

/// A trained quantization is exported as it is.
void refuse_options_without_effect(const QuantOptions& options, const fs::path& source) {
  const std::pair<bool, const char*> given[] = {
      {options.budget_bytes.has_value(), "--budget-bytes"},
      {options.budget_ms.has_value(), "--budget-ms"},
      {options.no_fuse, "--no-fuse"},
      {options.pair_safe, "--pair-safe"},
      {options.observer.has_value(), "--observer"},
      {options.calibration_images.has_value(), "--calibration-images"},
      {options.method.has_value(), "--method"},
      {options.learning_steps.has_value(), "--learning-steps"},
      {options.seed.has_value(), "--seed"}};
  for (const auto& [is_given, name] : given) {
    if (!is_given) continue;
    throw InputError(
        fmt::format("{} has learned its integers in training; leave out {}, or name the FP32 "
                    "checkpoint it came from",
                    source.string(), name));
  }
}

/// The integer network of a trained quantization, written again as training wrote it.
int export_program(const QuantOptions& options, const Configuration& configuration,
                   const TensorFile& source) {
  refuse_options_without_effect(options, source.file);
  const QuantizedNetwork quantized = export_trained(source);
  const QuantizedParameters& parameters = quantized.parameters;
  if ((options.bits && *options.bits != parameters.weight_bits) ||
      (options.activation_bits && *options.activation_bits != parameters.activation_bits)) {
    throw InputError(
        fmt::format("{} was trained with {}-bit weights and {}-bit activations and has no other "
                    "widths; leave out --bits and --activation-bits",
                    source.file.string(), parameters.weight_bits, parameters.activation_bits));
  }
  const fs::path output = options.output ? fs::path(*options.output)
                                         : integer_file(configuration.cfg.checkpoint_path,
                                                        parameters.weight_bits, parameters.activation_bits);
  check_output(output, configuration, source.file);
  write_quantized(output, quantized);
  const Dataset generated = generated_images(kSignatureImages);
  std::vector<float> logits(static_cast<std::size_t>(kSignatureImages * quantized.network.classes));
  IntegerNetwork(read_quantized(output), effective_instruction_set())
      .run(generated.pixels.data(), kSignatureImages, logits.data());
  print_file(output, signature(logits));
  return 0;
}

/// One line that is written over on a terminal; elsewhere a line every ten seconds at most.
void show_progress(const std::string& text) {
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  static auto last = std::chrono::steady_clock::time_point();
  if (terminal) {
    fmt::print(stderr, "\rquant: {}\033[K", text);
    return;
  }
  const auto now = std::chrono::steady_clock::now();
  if (now - last < std::chrono::seconds(10)) return;
  last = now;
  fmt::print(stderr, "quant: {}\n", text);
}

void end_progress() {
  if (isatty(STDERR_FILENO) != 0) fmt::print(stderr, "\r\033[K");
}

/// Measures, chooses within the budget and says what was chosen.
void choose_block_bits(const QuantOptions& command, const NetworkDescription& network,
                       const FloatParameters& parameters, const CalibrationImages& images,
                       QuantizationOptions& quantization) {
  const std::span<const std::uint8_t> pixels = images.pixels;
  const CalibratedNetwork source = calibrated(
      network, parameters, pixels.first(std::min(pixels.size(), kSensitivityImages * cifar10_image_bytes)));
  const WidthTable table = measure_widths(source, quantization, images.provenance);
  end_progress();
  const Budget budget{static_cast<double>(command.budget_bytes.value_or(0)),
                      command.budget_ms.value_or(0) / 1e7};
  quantization.block_bits = choose_measured_widths(source, table, budget, quantization);
  quantization.bits = quantization.activation_bits =
      *std::max_element(quantization.block_bits.begin(), quantization.block_bits.end());
  fmt::print("{:<8}{:>6}{:>12}{:>12}{:>12}\n", "block", "bits", "loss", "KB", "ms");
  for (std::size_t b = 0; b < table.blocks.size(); ++b) {
    for (const BlockWidth& width : table.blocks[b]) {
      fmt::print("{:<8}{:>6}{:>12.4f}{:>12.1f}{:>12.1f}{}\n", b + 1, width.bits, width.loss,
                 width.bytes / 1e3, width.seconds * 1e7,
                 width.bits == quantization.block_bits[b] ? "   chosen" : "");
    }
  }
}

}  // namespace

void add_quant_options(CLI::App& app, QuantOptions& options) {
  std::string observer_names;
  for (const Observer& observer : observers()) observer_names += std::string(", ") + observer.name;
  std::string method_names;
  for (const Method& method : methods())
    method_names += std::string(method_names.empty() ? "" : ", ") + method.name;
  options.configuration = default_configuration_file;
  app.add_option("--cfg", options.configuration,
                 "Configuration; looked for in cfg/ too (default: 64_200.json)");
  CLI::Option* bits =
      app.add_option("--bits", options.bits, "Width of the convolutions' weights: 16, 8, 4 or 2");
  CLI::Option* activation_bits = app.add_option("--activation-bits", options.activation_bits,
                                                "Width of the convolutions' inputs (default: as --bits)");
  CLI::Option* fuse =
      app.add_flag("--fuse", options.fuse, "Convolution, bias, residual and ReLU as one operation (default)");
  app.add_flag("--no-fuse", options.no_fuse, "Each operation apart (8 bits only)")->excludes(fuse);
  app.add_flag("--pair-safe", options.pair_safe,
               "8 bits: make the sum of each pair of products fit 16 bits, for CPUs without VNNI");
  app.add_option("--observer", options.observer,
                 "How calibration finds the activations' scales: auto" + observer_names);
  app.add_option("--calibration-images", options.calibration_images,
                 "Training images that calibration looks at (default: 1000)")
      ->check(CLI::Range(1, 50000));
  app.add_option("--method", options.method,
                 "How weights are rounded: " + method_names +
                     "; auto (default) is brecq at 4 bits and blocks at 2, which take minutes, and nearest "
                     "at all others");
  app.add_option("--learning-steps", options.learning_steps,
                 "Steps of each stage of a method that learns (default: the method's own number)")
      ->check(CLI::Range(1, 1000000));
  CLI::Option* bytes =
      app.add_option("--budget-bytes", options.budget_bytes,
                     "Instead of --bits: a width for each block, so that the file has at most so many bytes")
          ->check(CLI::PositiveNumber);
  CLI::Option* milliseconds =
      app.add_option("--budget-ms", options.budget_ms,
                     "Instead of --bits: a width for each block, so that 10,000 images take at most so many "
                     "milliseconds on this machine")
          ->check(CLI::PositiveNumber);
  for (CLI::Option* budget : {bytes, milliseconds}) {
    budget->excludes(bits)->excludes(activation_bits)->excludes("--no-fuse")->excludes("--pair-safe");
  }
  app.add_option("--checkpoint-path", options.checkpoint_path,
                 "Instead of cfg.checkpoint_path: P for P.safetensors, or any FP32 checkpoint file");
  app.add_option("-o,--output", options.output, "The file to write (default: P_int8.safetensors and so on)");
  app.add_option("--seed", options.seed,
                 "Chooses the calibration images and the order in which a method learns (default: 1)");
}

int quant_program(const QuantOptions& options) {
  const Configuration configuration = configuration_of(options);
  // Wrong options are refused before a file is read; only a trained quantization needs none.
  const std::optional<QuantizationOptions> given = quantization_of(options, configuration.cfg_quant);
  const ChosenCheckpoint chosen = choose_checkpoint(configuration.cfg.checkpoint_path);
  if (!chosen.ignored_best.empty()) {
    fmt::print(stderr, "quant: {} is of an older training and is ignored\n", chosen.ignored_best.string());
  }
  const TensorFile source = read_tensor_file(chosen.file);
  if (is_trained(source)) return export_program(options, configuration, source);
  const std::string source_sha256 = sha256_of_file(chosen.file);  // at once: a training may be writing it
  if (!given) throw InputError("the width is not given; choose --bits 16, 8, 4 or 2, or a budget");
  QuantizationOptions quantization = *given;
  const bool fuse = configuration.cfg_quant.fuse;
  const NetworkDescription network = stored_network(source);
  const FloatParameters parameters = stored_parameters(network, source);
  const fs::path output = options.output ? fs::path(*options.output)
                                         : output_file(configuration.cfg.checkpoint_path, quantization, fuse,
                                                       has_budget(options));
  check_output(output, configuration, chosen.file);

  fmt::print(stderr, "quant: calibrating on {} training images for {}\n",
             configuration.cfg_quant.calibration_images, chosen.file.string());
  CalibrationImages images = calibration_images(configuration, held_out(source));
  images.provenance["source"] = chosen.file.filename().string();
  images.provenance["source_sha256"] = source_sha256;
  const Dataset generated = generated_images(kSignatureImages);
  std::vector<float> logits(static_cast<std::size_t>(kSignatureImages * network.classes));

  if (!fuse) {
    UnfusedNetwork unfused = quantize_unfused(network, parameters, images.pixels, quantization);
    unfused.parameters.provenance.merge(images.provenance);
    write_unfused(output, unfused);
    Int8UnfusedNetwork(read_unfused(output), kSignatureImages)
        .run(generated.pixels, kSignatureImages, logits);
    print_file(output, signature(logits));
    return 0;
  }
  quantization.progress = show_progress;
  if (has_budget(options)) choose_block_bits(options, network, parameters, images, quantization);
  QuantizedNetwork quantized = quantize(network, parameters, images.pixels, quantization);
  end_progress();
  quantized.parameters.provenance.merge(images.provenance);
  write_quantized(output, quantized);
  if (options.budget_ms) {
    fmt::print("10,000 images: {:.1f} ms by the median of some passes\n", measure_seconds(quantized) * 1e7);
  }
  fmt::print(stderr, "quant: comparing with the FP32 network\n");
  const std::size_t quality_bytes = std::min(images.pixels.size(), kQualityImages * cifar10_image_bytes);
  print_quality(measure_quality(parameters, quantized, std::span(images.pixels).first(quality_bytes)));
  IntegerNetwork(read_quantized(output), effective_instruction_set())
      .run(generated.pixels.data(), kSignatureImages, logits.data());
  print_file(output, signature(logits));
  return 0;
}

}  // namespace nibble
