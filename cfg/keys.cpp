#include "cfg/keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "graph/network/error.h"

namespace nibble {
namespace {

// Larger seeds would not survive every reader of JSON: 2^53.
constexpr double kLargestSeed = 9007199254740992.0;

Limits range(double minimum, double maximum) {
  return {minimum, maximum, false, {}};
}
Limits above(double minimum, double maximum) {
  return {minimum, maximum, true, {}};
}
Limits one_of(std::vector<nlohmann::json> choices) {
  return {0, 0, false, std::move(choices)};
}
const Limits kAnything;

#define MEMBER(name)                \
  +[](Configuration & c) -> auto& { \
    return c.name;                  \
  }

std::vector<Key> make_keys() {
  constexpr Effect weights = Effect::weights;
  constexpr Effect none = Effect::none;
  return {
      {"cfg.checkpoint_path", MEMBER(cfg.checkpoint_path), kAnything, none,
       "P: training writes P.safetensors (last) and P.best.safetensors; quant writes P_int8.safetensors and "
       "so "
       "on. Relative to the current folder."},

      {"cfg_network.variant", MEMBER(cfg_network.variant), one_of({"resnet_344", "he"}), weights,
       "resnet_344: the reference network; he: He et al. 2015, 6n+2 layers."},
      {"cfg_network.depth", MEMBER(cfg_network.depth), one_of({0, 8, 20, 24, 32, 44, 56}), weights,
       "Layers with weights: 20, 32, 44 or 56 for he, 8 for quick trials. 0: the variant's own (resnet_344 "
       "has one only)."},
      {"cfg_network.shortcut", MEMBER(cfg_network.shortcut), one_of({"", "A", "B"}), weights,
       "For he: A (every second pixel, zero channels) or B (1x1 convolution and batch normalization). Empty: "
       "the "
       "variant's own."},

      {"cfg_CIFAR.root", MEMBER(cfg_CIFAR.root), kAnything, none,
       "Folder that holds the six files of the binary CIFAR-10, or cifar-10-batches-bin/ with them. The "
       "environment variable CIFAR10_ROOT goes first."},
      {"cfg_CIFAR.download", MEMBER(cfg_CIFAR.download), kAnything, none,
       "Fetch the published archive when the folder has none of the files."},
      {"cfg_CIFAR.url", MEMBER(cfg_CIFAR.url), kAnything, none,
       "Address of the archive, for a mirror: http, https or file."},

      {"cfg_dataloader_train.batch_size", MEMBER(cfg_dataloader_train.batch_size), range(1, 50000), weights,
       "Images in a training step."},
      {"cfg_dataloader_train.shuffle", MEMBER(cfg_dataloader_train.shuffle), kAnything, weights,
       "A new order each epoch, from the seed and the epoch alone."},
      {"cfg_dataloader_train.num_workers", MEMBER(cfg_dataloader_train.num_workers), range(0, 256), none,
       "Threads that prepare batches ahead; 0: none."},
      {"cfg_dataloader_train.pin_memory", MEMBER(cfg_dataloader_train.pin_memory), kAnything, none,
       "Accepted and without effect: there is no device to copy to."},
      {"cfg_dataloader_test.batch_size", MEMBER(cfg_dataloader_test.batch_size), range(1, 10000), none,
       "Images in a batch of evaluation, and of bench."},
      {"cfg_dataloader_test.shuffle", MEMBER(cfg_dataloader_test.shuffle), kAnything, none,
       "Changes no result: evaluation sums over all images."},
      {"cfg_dataloader_test.num_workers", MEMBER(cfg_dataloader_test.num_workers), range(0, 256), none,
       "Threads that prepare batches ahead; 0: none."},
      {"cfg_dataloader_test.pin_memory", MEMBER(cfg_dataloader_test.pin_memory), kAnything, none,
       "Accepted and without effect."},

      {"cfg_train.n_epoches", MEMBER(cfg_train.n_epoches), range(1, 100000), weights, "Epochs."},
      {"cfg_train.optimizer", MEMBER(cfg_train.optimizer), one_of({"adamw", "sgd"}), weights,
       "adamw (Loshchilov and Hutter 2019) or sgd with momentum."},
      {"cfg_train.learning_rate", MEMBER(cfg_train.learning_rate), above(0, 1000), weights,
       "The largest one of the schedule."},
      {"cfg_train.weight_decay", MEMBER(cfg_train.weight_decay), range(0, 10), weights,
       "Decoupled for adamw, added to the gradient for sgd."},
      {"cfg_train.weight_decay_on", MEMBER(cfg_train.weight_decay_on), one_of({"all", "convolutions"}),
       weights, "all parameters, or the weights of convolutions and of the linear layer only."},
      {"cfg_train.momentum", MEMBER(cfg_train.momentum), range(0, 0.99999), weights, "For sgd."},
      {"cfg_train.nesterov", MEMBER(cfg_train.nesterov), kAnything, weights, "For sgd."},
      {"cfg_train.schedule", MEMBER(cfg_train.schedule), one_of({"multistep", "cosine", "one_cycle"}),
       weights,
       "multistep: x gamma at each milestone; cosine: down to 0; one_cycle: up and down to 0 (Smith 2018)."},
      {"cfg_train.milestones", MEMBER(cfg_train.milestones), range(1, 100000), weights,
       "For multistep: epochs, ascending."},
      {"cfg_train.gamma", MEMBER(cfg_train.gamma), above(0, 1), weights, "For multistep."},
      {"cfg_train.warmup_epochs", MEMBER(cfg_train.warmup_epochs), range(0, 100000), weights,
       "Epochs, fractions allowed, of a linear rise of the learning rate. one_cycle: of its rise, a "
       "cosine; 0: three tenths of all."},
      {"cfg_train.loss_reduction", MEMBER(cfg_train.loss_reduction), one_of({"sum", "mean"}), weights,
       "Cross entropy summed over the batch, as the reference has it, or its mean."},
      {"cfg_train.label_smoothing", MEMBER(cfg_train.label_smoothing), range(0, 0.99), weights,
       "Share of the target spread evenly over the classes."},
      {"cfg_train.augmentation.flip", MEMBER(cfg_train.augmentation.flip), kAnything, weights,
       "Mirror half of the images left to right."},
      {"cfg_train.augmentation.crop_padding", MEMBER(cfg_train.augmentation.crop_padding), range(0, 31),
       weights, "Random 32x32 crop of the image with so many black pixels on each side; 0: no crop."},
      {"cfg_train.augmentation.cutout", MEMBER(cfg_train.augmentation.cutout), range(0, 32), weights,
       "Side of a square at a random place set to the mean (DeVries and Taylor 2017); 0: off."},
      {"cfg_train.augmentation.mixup", MEMBER(cfg_train.augmentation.mixup), range(0, 100), weights,
       "alpha of mixup's Beta distribution (Zhang et al. 2018); 0: off."},
      {"cfg_train.precision", MEMBER(cfg_train.precision), one_of({"fp32", "bf16"}), weights,
       "Of the convolutions in training; master weights and statistics stay FP32."},
      {"cfg_train.seed", MEMBER(cfg_train.seed), range(0, kLargestSeed), weights,
       "Initial weights, order of the images and augmentation follow from it."},
      {"cfg_train.validation", MEMBER(cfg_train.validation), range(0, 10000), weights,
       "Records held out from the end of data_batch_5.bin, whatever the seed. P.best.safetensors is written "
       "only "
       "when it is not 0."},
      {"cfg_train.weight_average", MEMBER(cfg_train.weight_average), range(0, 0.999999), weights,
       "Decay a step of an exponential moving average of the weights, which then is what is evaluated and "
       "written; 0: off."},
      {"cfg_train.distillation.teacher", MEMBER(cfg_train.distillation.teachers), kAnything, weights,
       "FP32 checkpoint whose logits are learned too (Hinton et al. 2015), or a list of them, whose logits' "
       "mean is. Empty: off."},
      {"cfg_train.distillation.weight", MEMBER(cfg_train.distillation.weight), range(0, 1), weights,
       "Of the teacher's term; the labels' term has 1 - weight."},
      {"cfg_train.distillation.temperature", MEMBER(cfg_train.distillation.temperature), above(0, 1000),
       weights, "Divides both logits in the teacher's term."},
      {"cfg_train.save_best_on_test", MEMBER(cfg_train.save_best_on_test), kAnything, none,
       "Also write P.best_on_test.safetensors, chosen on the test images: its top-1 is no estimate for new "
       "images."},
      {"cfg_train.checkpoint_minutes", MEMBER(cfg_train.checkpoint_minutes), above(0, 10), none,
       "State is written at least so often, and at the end of each epoch."},

      {"cfg_quant.bits", MEMBER(cfg_quant.bits), one_of({0, 16, 8, 4, 2}), weights,
       "Width of the convolutions' weights. 0: not given."},
      {"cfg_quant.activation_bits", MEMBER(cfg_quant.activation_bits), one_of({0, 16, 8, 4, 2}), weights,
       "Width of the convolutions' inputs. 0: as bits."},
      {"cfg_quant.from", MEMBER(cfg_quant.from), kAnything, weights,
       "FP32 checkpoint. With bits it makes train train quantized, starting there. Empty: none."},
      {"cfg_quant.observer", MEMBER(cfg_quant.observer),
       one_of({"auto", "minmax", "histogram", "percentile", "mse"}), weights,
       "How calibration finds the activations' scales; auto: what suits the width."},
      {"cfg_quant.calibration_images", MEMBER(cfg_quant.calibration_images), range(1, 50000), weights,
       "Training images that calibration looks at."},
      {"cfg_quant.method", MEMBER(cfg_quant.method), kAnything, weights,
       "How weights are rounded: auto (blocks at 2 bits, brecq at 4, else nearest), or one that quant --help "
       "lists."},
      {"cfg_quant.seed", MEMBER(cfg_quant.seed), range(0, kLargestSeed), weights,
       "Chooses the calibration images and the order in which a method learns."},
      {"cfg_quant.pair_safe", MEMBER(cfg_quant.pair_safe), kAnything, weights,
       "8 bits: make the sum of each pair of products fit 16 bits, for CPUs without VNNI."},
      {"cfg_quant.fuse", MEMBER(cfg_quant.fuse), kAnything, weights,
       "8 bits: convolution, bias, residual sum and ReLU as one operation."},
  };
}

#undef MEMBER

std::vector<std::string> make_sections() {
  std::vector<std::string> sections;
  for (const Key& key : configuration_keys()) {
    for (std::size_t dot = key.path.find('.'); dot != std::string::npos; dot = key.path.find('.', dot + 1)) {
      const std::string section = key.path.substr(0, dot);
      if (std::find(sections.begin(), sections.end(), section) == sections.end()) sections.push_back(section);
    }
  }
  return sections;
}

std::string number(double value) {
  return fmt::format("{}", value);
}

std::string type_name(const Member& member) {
  static constexpr const char* kNames[] = {"true or false",
                                           "an integer",
                                           "an integer",
                                           "a number",
                                           "a string",
                                           "a list of integers",
                                           "a string or a list of strings"};
  return kNames[member.index()];
}

/// "an integer from 1 to 100000", "one of 16, 8, 4, 2"
std::string requirement(const Key& key) {
  if (!key.limits.choices.empty()) {
    std::string list;
    for (const nlohmann::json& choice : key.limits.choices)
      list += (list.empty() ? "" : ", ") + choice.dump();
    return "one of " + list;
  }
  std::string text = type_name(key.member);
  if (key.limits.maximum > 0) {
    text += (key.limits.above_minimum ? " above " : " from ") + number(key.limits.minimum);
    text += (key.limits.above_minimum ? " and at most " : " to ") + fmt::format("{}", key.limits.maximum);
  }
  return text;
}

[[noreturn]] void refuse(const Key& key, const nlohmann::json& found, const std::string& source) {
  std::string text = found.dump();
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  throw InputError(source + ": " + key.path + " is " + text + "; it must be " + requirement(key));
}

bool allowed(double value, const Limits& limits) {
  if (!limits.choices.empty()) {
    return std::any_of(limits.choices.begin(), limits.choices.end(),
                       [&](const nlohmann::json& choice) { return choice == nlohmann::json(value); });
  }
  if (limits.maximum == 0) return true;
  return (limits.above_minimum ? value > limits.minimum : value >= limits.minimum) && value <= limits.maximum;
}

/// JSON Schema's integer: 200, 200.0 and 2e2 are the same number.
bool is_integer(const nlohmann::json& value) {
  if (value.is_number_integer()) return true;
  return value.is_number_float() && std::trunc(value.get<double>()) == value.get<double>();
}

void assign(const Key& key, const nlohmann::json& value, bool& member, const std::string& source) {
  if (!value.is_boolean()) refuse(key, value, source);
  member = value.get<bool>();
}

template <typename Integer>
requires std::is_integral_v<Integer>
void assign(const Key& key, const nlohmann::json& value, Integer& member, const std::string& source) {
  if (!is_integer(value) || !allowed(value.get<double>(), key.limits)) refuse(key, value, source);
  member = value.get<Integer>();
}

void assign(const Key& key, const nlohmann::json& value, double& member, const std::string& source) {
  if (!value.is_number() || !allowed(value.get<double>(), key.limits)) refuse(key, value, source);
  member = value.get<double>();
}

void assign(const Key& key, const nlohmann::json& value, std::string& member, const std::string& source) {
  const std::vector<nlohmann::json>& choices = key.limits.choices;
  const bool known = choices.empty() || std::find(choices.begin(), choices.end(), value) != choices.end();
  if (!value.is_string() || !known) refuse(key, value, source);
  member = value.get<std::string>();
}

void assign(const Key& key, const nlohmann::json& value, std::vector<int>& member,
            const std::string& source) {
  if (!value.is_array()) refuse(key, value, source);
  std::vector<int> elements;
  for (const nlohmann::json& element : value) {
    if (!is_integer(element) || !allowed(element.get<double>(), key.limits)) refuse(key, value, source);
    elements.push_back(element.get<int>());
  }
  member = std::move(elements);
}

/// One string is a list of one, the empty string a list of none.
void assign(const Key& key, const nlohmann::json& value, std::vector<std::string>& member,
            const std::string& source) {
  std::vector<std::string> elements;
  for (const nlohmann::json& element : value.is_array() ? value : nlohmann::json::array({value})) {
    if (!element.is_string()) refuse(key, value, source);
    elements.push_back(element.get<std::string>());
  }
  if (value.is_string() && elements.front().empty()) elements.clear();
  member = std::move(elements);
}

}  // namespace

const std::vector<Key>& configuration_keys() {
  static const std::vector<Key> keys = make_keys();
  return keys;
}

const std::vector<std::string>& configuration_sections() {
  static const std::vector<std::string> sections = make_sections();
  return sections;
}

nlohmann::json read_member(const Key& key, const Configuration& configuration) {
  // The table's members give references for writing; a copy keeps `configuration` constant.
  Configuration copy = configuration;
  return std::visit([&](auto member) { return nlohmann::json(member(copy)); }, key.member);
}

void write_member(const Key& key, const nlohmann::json& value, Configuration& configuration,
                  const std::string& source) {
  std::visit([&](auto member) { assign(key, value, member(configuration), source); }, key.member);
}

}  // namespace nibble
