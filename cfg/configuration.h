#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace nibble {

// The members carry the names of the JSON keys, so that a key is found in the code by searching for it.

struct CheckpointConfiguration {
  std::string checkpoint_path = "./chkp/64_200";  ///< P: gives P.safetensors, P.best.safetensors, P_int8 ...
};

struct NetworkConfiguration {
  std::string variant = "resnet_344";  ///< see describe_network
  int depth = 0;                       ///< 0: the variant's own
  std::string shortcut;                ///< empty: the variant's own
};

struct CifarConfiguration {
  std::string root = "./data";
  bool download = true;
  std::string url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz";
};

struct DataLoaderConfiguration {
  int batch_size = 64;
  bool shuffle = true;
  int num_workers = 2;
  bool pin_memory = true;  ///< accepted and without effect: there is no device to copy to
};

struct AugmentationConfiguration {
  bool flip = true;
  int crop_padding = 4;  ///< pixels on each side; 0: no crop
  int cutout = 0;        ///< side of the square in pixels; 0: off
  double mixup = 0;      ///< alpha of the Beta distribution; 0: off
};

struct DistillationConfiguration {
  std::vector<std::string> teachers;  ///< FP32 checkpoints, whose logits' mean is learned; empty: off
  double weight = 0.5;                ///< of the teachers' term; the labels' term has 1 - weight
  double temperature = 1;
};

struct TrainConfiguration {
  int n_epoches = 200;
  std::string optimizer = "adamw";  ///< adamw, sgd
  double learning_rate = 1e-2;
  double weight_decay = 1e-2;
  std::string weight_decay_on = "all";  ///< all, convolutions
  double momentum = 0.9;                ///< sgd only
  bool nesterov = true;                 ///< sgd only
  std::string schedule = "multistep";   ///< multistep, cosine, one_cycle
  std::vector<int> milestones = {100, 150};
  double gamma = 0.1;
  double warmup_epochs = 0;
  std::string loss_reduction = "sum";  ///< sum, mean
  double label_smoothing = 0;
  AugmentationConfiguration augmentation;
  std::string precision = "fp32";  ///< fp32, bf16
  std::uint64_t seed = 1;
  int validation = 0;         ///< records held out from the end of data_batch_5.bin
  double weight_average = 0;  ///< decay of the exponential moving average of the weights; 0: off
  DistillationConfiguration distillation;
  bool save_best_on_test = false;
  double checkpoint_minutes = 10;
};

struct QuantConfiguration {
  int bits = 0;             ///< 16, 8, 4, 2; 0: not given
  int activation_bits = 0;  ///< 16, 8, 4, 2; 0: as bits
  int input_bits() const { return activation_bits == 0 ? bits : activation_bits; }
  std::string from;               ///< FP32 checkpoint from which trained quantization starts; empty: none
  std::string observer = "auto";  ///< minmax, histogram, percentile, mse; auto: what suits the width
  int calibration_images = 1000;
  std::string method = "auto";  ///< the methods are listed in quant/
  std::uint64_t seed = 1;
  bool pair_safe = false;
  bool fuse = true;
};

/// Everything that a configuration file can say; the defaults are the reference system's where it has the
/// key. Table of keys, ranges and meanings: cfg/keys.cpp; for users: cfg/schema.json.
struct Configuration {
  CheckpointConfiguration cfg;
  NetworkConfiguration cfg_network;
  CifarConfiguration cfg_CIFAR;
  DataLoaderConfiguration cfg_dataloader_train;
  DataLoaderConfiguration cfg_dataloader_test = {1024, false, 2, true};
  TrainConfiguration cfg_train;
  QuantConfiguration cfg_quant;

  /// Whether this describes trained quantization: a width and the FP32 checkpoint to start from.
  bool trains_quantized() const { return !cfg_quant.from.empty(); }

  std::filesystem::path file;  ///< where it was read from; only for messages
};

/// The default of every program's --cfg.
inline constexpr const char* default_configuration_file = "64_200.json";

/// The file that `name` stands for: as given, else in cfg/ of the current folder, else in cfg/ of the
/// installed prefix, else of the source checkout. Throws InputError naming the places looked in.
std::filesystem::path find_configuration(const std::filesystem::path& name);

/// Reads a configuration: JSON with // comments, keys beginning with `_comment` skipped, every other key
/// known, of the right type, within its range and given once. Throws InputError with file, key and what was
/// found.
Configuration load_configuration(const std::filesystem::path& name);

/// The same from text; `source` names it in messages.
Configuration parse_configuration(const std::string& text, const std::string& source);

/// Checks ranges and combinations; for configurations changed by command line options.
void check_configuration(const Configuration& configuration, const std::string& source);

/// The effective configuration: every key with its value, defaults included. Stored in checkpoints.
nlohmann::json to_json(const Configuration& configuration);

/// The inverse of to_json. Keys that `json` does not have keep their defaults.
Configuration from_json(const nlohmann::json& json, const std::string& source);

/// Paths of the keys in which two configurations differ, "cfg_train.n_epoches", in the table's order.
std::vector<std::string> differing_keys(const Configuration& a, const Configuration& b);

/// Those of them that change the weights that training gives: not the data folder, the number of loader
/// threads and the like, and cfg_quant only where one of the two trains quantized.
std::vector<std::string> differing_training_keys(const Configuration& a, const Configuration& b);

/// JSON Schema (draft 2020-12) of the configuration files, made from the table of keys.
nlohmann::ordered_json configuration_schema();

}  // namespace nibble
