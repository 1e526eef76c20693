#include "train/program.h"

#include <fmt/format.h>

#include <filesystem>

#include "cfg/configuration.h"
#include "graph/data/cifar10.h"
#include "graph/data/download.h"
#include "graph/network/checkpoint_path.h"
#include "graph/network/error.h"
#include "graph/onednn/learned_scales.h"
#include "graph/optimize/denormals.h"
#include "quant/trained.h"
#include "train/evaluate.h"
#include "train/interrupt.h"
#include "train/learner.h"
#include "train/training.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

Configuration configuration_of(const TrainOptions& options) {
  Configuration configuration = load_configuration(options.configuration);
  if (options.seed) configuration.cfg_train.seed = *options.seed;
  if (options.epochs) configuration.cfg_train.n_epoches = *options.epochs;
  if (options.precision) configuration.cfg_train.precision = *options.precision;
  if (options.checkpoint_path) configuration.cfg.checkpoint_path = *options.checkpoint_path;
  check_configuration(configuration, "the command line");
  if (!options.evaluate) {  // P.safetensors is P here, whose P.best may count
    configuration.cfg.checkpoint_path =
        CheckpointPaths(configuration.cfg.checkpoint_path).last.replace_extension().string();
  }
  return configuration;
}

fs::path data_folder(const Configuration& configuration) {
  DownloadOptions download;
  download.url = configuration.cfg_CIFAR.url;
  return prepare_cifar10(configuration.cfg_CIFAR.root, configuration.cfg_CIFAR.download, download);
}

void print_evaluation(const fs::path& file, const Evaluation& result) {
  fmt::print("{}: top-1 {:.2f} % ({} of {}), loss {:.4f}, {:.0f} images/s\n", file.string(),
             100 * result.top1(), result.correct, result.images, result.loss, result.images / result.seconds);
}

int evaluate_quantized(const Configuration& configuration, const fs::path& file,
                       const QuantizedNetwork& quantized) {
  const Dataset test = read_cifar10(data_folder(configuration), Split::test);
  print_evaluation(file, evaluate_integers(quantized, test, configuration.cfg_dataloader_test.batch_size,
                                           configuration.cfg_dataloader_test.num_workers));
  return 0;
}

/// Whether `output` was made from the checkpoint that `quantized` is of.
bool is_exported(const QuantizedNetwork& quantized, const fs::path& output) {
  if (!fs::exists(output)) return false;
  try {
    return read_quantized(output).parameters.provenance["source_sha256"] ==
           quantized.parameters.provenance.at("source_sha256");
  } catch (const InputError&) {
    return false;  // damaged: it is written again
  }
}

/// Writes the integer network of a finished trained quantization, unless it is there, and evaluates what was
/// written.
int export_checkpoint(const Configuration& configuration) {
  const ChosenCheckpoint chosen = choose_checkpoint(configuration.cfg.checkpoint_path);
  const QuantizedNetwork quantized = export_trained(read_tensor_file(chosen.file));
  const fs::path output = integer_file(configuration.cfg.checkpoint_path, quantized.parameters.weight_bits,
                                       quantized.parameters.activation_bits);
  if (!is_exported(quantized, output)) write_quantized(output, quantized);
  return evaluate_quantized(configuration, output, read_quantized(output));
}

int evaluate_checkpoint(const Configuration& configuration) {
  const ChosenCheckpoint chosen = choose_checkpoint(configuration.cfg.checkpoint_path);
  if (!chosen.ignored_best.empty()) {
    fmt::print(stderr, "train: {} is of an older training and is ignored\n", chosen.ignored_best.string());
  }
  const TensorFile file = read_tensor_file(chosen.file);
  if (is_trained(file)) return evaluate_quantized(configuration, chosen.file, export_trained(file));
  if (file.entry("format") == kIntegerFormat) {
    return evaluate_quantized(configuration, chosen.file, read_quantized(chosen.file));
  }
  const NetworkDescription network = stored_network(file);
  const FloatParameters parameters = stored_parameters(network, file);
  const Dataset test = read_cifar10(data_folder(configuration), Split::test);
  flush_denormals();
  const Evaluation result =
      evaluate(network, parameters, test, configuration.cfg_dataloader_test.batch_size,
               configuration.cfg_dataloader_test.num_workers, precision_of(configuration.cfg_train));
  print_evaluation(chosen.file, result);
  return 0;
}

bool is_finished(const std::string& checkpoint_path) {
  const fs::path last = CheckpointPaths(checkpoint_path).last;
  return fs::exists(last) && stored_position(read_tensor_file(last)).finished;
}

std::string text_of(const NetworkDescription& network, int weight_bits, int activation_bits) {
  const std::string bits = weight_bits == 32 ? ""
                                             : fmt::format(", {}-bit weights and {}-bit activations",
                                                           weight_bits, activation_bits);
  return fmt::format("{} of depth {} with shortcut {}{}", network.variant, network.depth, network.shortcut,
                     bits);
}

/// Who asks for the training of one network must not get the accuracy of another.
void require_same_network(const Configuration& configuration) {
  const TensorFile file = read_tensor_file(CheckpointPaths(configuration.cfg.checkpoint_path).last);
  const bool trained = is_trained(file);
  const NetworkDescription stored = trained ? stored_network(file, kTrainedFormat) : stored_network(file);
  LearnedScales widths;
  widths.weight_bits = widths.activation_bits = 32;
  if (trained) widths = stored_scales(stored, file);
  const NetworkConfiguration& asked = configuration.cfg_network;
  const QuantConfiguration& quant = configuration.cfg_quant;
  const NetworkDescription network = describe_network(asked.variant, asked.depth, asked.shortcut);
  const int weight_bits = configuration.trains_quantized() ? quant.bits : 32;
  const int activation_bits = configuration.trains_quantized() ? quant.input_bits() : 32;
  if (stored == network && widths.weight_bits == weight_bits && widths.activation_bits == activation_bits)
    return;
  throw InputError(
      fmt::format("{} is a finished {}, but the configuration asks for {}: choose another --checkpoint-path, "
                  "move it away with --no-resume, or evaluate it with -e",
                  file.file.string(), text_of(stored, widths.weight_bits, widths.activation_bits),
                  text_of(network, weight_bits, activation_bits)));
}

}  // namespace

void add_train_options(CLI::App& app, TrainOptions& options) {
  options.configuration = default_configuration_file;
  CLI::Option* cfg = app.add_option("--cfg", options.configuration,
                                    "Configuration; looked for in cfg/ too (default: 64_200.json)");
  app.add_option("FILE", options.configuration, "The same, without --cfg")->excludes(cfg);
  app.add_flag("-e,--evaluate", options.evaluate, "Only evaluate the checkpoint on the test images");
  app.add_option("--seed", options.seed, "Instead of cfg_train.seed");
  app.add_option("--epochs", options.epochs, "Instead of cfg_train.n_epoches");
  app.add_option("--precision", options.precision, "fp32 or bf16, instead of cfg_train.precision");
  app.add_flag("--no-resume", options.no_resume,
               "Move what is at the checkpoint path to P.old* and begin anew");
  app.add_option("--checkpoint-path", options.checkpoint_path,
                 "Instead of cfg.checkpoint_path: P for P.safetensors; with -e also any file of train or "
                 "quant but unfused ones");
}

int run_training(const Configuration& configuration, const TrainingData& data, TrainingFiles& files) {
  catch_interrupts();
  const TrainingEnd end = train_network(configuration, data, files, [] { return interrupted_by() != 0; });
  return end == TrainingEnd::interrupted ? 128 + interrupted_by() : 0;
}

int train_program(const TrainOptions& options) {
  const Configuration configuration = configuration_of(options);
  if (options.evaluate) return evaluate_checkpoint(configuration);
  require_precision(precision_of(configuration.cfg_train));
  if (!options.no_resume && is_finished(configuration.cfg.checkpoint_path)) {
    require_same_network(configuration);
    fmt::print(stderr,
               "train: {} is finished, so it is evaluated (--no-resume moves it away and trains anew)\n",
               CheckpointPaths(configuration.cfg.checkpoint_path).last.string());
    // A run that ended between its last save and its export is made up for.
    return configuration.trains_quantized() ? export_checkpoint(configuration)
                                            : evaluate_checkpoint(configuration);
  }

  TrainingFiles files(configuration, !options.no_resume);
  const fs::path folder = data_folder(configuration);
  const int held_out = configuration.cfg_train.validation;
  const Dataset training = read_cifar10(folder, Split::train, held_out);
  const Dataset validation = held_out > 0 ? read_cifar10(folder, Split::validation, held_out) : Dataset{};
  const Dataset test = read_cifar10(folder, Split::test);

  const int code =
      run_training(configuration, {&training, held_out > 0 ? &validation : nullptr, &test}, files);
  if (code != 0) return code;
  return configuration.trains_quantized() ? export_checkpoint(configuration)
                                          : evaluate_checkpoint(configuration);
}

}  // namespace nibble
