#include "train/learner.h"

#include <algorithm>
#include <filesystem>
#include <string>

#include "graph/data/sha256.h"
#include "graph/network/checkpoint_path.h"
#include "graph/network/error.h"
#include "quant/calibration.h"
#include "quant/trained.h"
#include "train/initialize.h"
#include "train/mixup.h"

namespace nibble {
namespace {

constexpr const char* kTeachers = "teachers_sha256";

std::vector<OptimizedTensor> optimized_tensors(FloatTraining& network,
                                               const TrainConfiguration& configuration) {
  const bool decay_all = configuration.weight_decay_on == "all";
  std::vector<OptimizedTensor> tensors;
  for (const ParameterGroup& group : network.groups()) {
    const bool is_weight =
        group.kind == ParameterKind::convolution_weight || group.kind == ParameterKind::linear_weight;
    tensors.push_back({.name = group.name,
                       .values = network.trainable().subspan(group.offset, group.count),
                       .gradients = network.gradients().subspan(group.offset, group.count),
                       .decay = is_weight || (decay_all && group.kind != ParameterKind::quantizer_scale)});
  }
  return tensors;
}

void add_scaled(std::span<float> sum, double scale, std::span<const float> values, double values_scale) {
  const float a = static_cast<float>(scale);
  const float b = static_cast<float>(values_scale);
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = a * sum[i] + b * values[i];
}

/// The FP32 checkpoint that a trained quantization begins with.
TensorFile read_start(const QuantConfiguration& quant, const NetworkDescription& network) {
  TensorFile file = read_tensor_file(choose_checkpoint(quant.from).file);
  if (stored_network(file) != network) {
    throw InputError(file.file.string() +
                     " (cfg_quant.from) is of another network than the configuration's; choose one of this");
  }
  return file;
}

void refuse_own_file(const CheckpointPaths& own, const TensorFile& source) {
  for (const std::filesystem::path& path : {own.last, own.best, own.best_on_test}) {
    std::error_code ignored;
    if (std::filesystem::equivalent(source.file, path, ignored)) {
      throw InputError(
          source.file.string() +
          " is what this training learns from and a file that it would move away; choose another "
          "--checkpoint-path");
    }
  }
}

}  // namespace

std::vector<std::string> require_sources(const Configuration& configuration,
                                         const NetworkDescription& network) {
  const CheckpointPaths own(configuration.cfg.checkpoint_path);
  std::vector<std::string> remarks;
  const auto look_at = [&](const TensorFile& file) {
    refuse_own_file(own, file);
    if (file.entry("finished") == "false" && file.entry("selected_on").empty()) {  // P.best may be any epoch
      remarks.push_back(file.file.string() + " is of a training that is not finished");
    }
    if (held_out_by(file) < configuration.cfg_train.validation) {
      remarks.push_back(file.file.string() +
                        " was trained on images that are held out here: the accuracy on them is not one of "
                        "new images");
    }
  };
  if (configuration.trains_quantized()) {
    const TensorFile file = read_start(configuration.cfg_quant, network);
    stored_parameters(network, file);
    look_at(file);
  }
  for (const std::string& teacher : configuration.cfg_train.distillation.teachers) {
    const TensorFile file = read_tensor_file(teacher);
    stored_parameters(stored_network(file), file);
    look_at(file);
  }
  return remarks;
}

OptimizerSettings optimizer_settings(const TrainConfiguration& configuration) {
  OptimizerSettings settings;
  settings.kind = configuration.optimizer == "sgd" ? OptimizerKind::sgd : OptimizerKind::adamw;
  settings.weight_decay = configuration.weight_decay;
  settings.momentum = configuration.momentum;
  settings.nesterov = configuration.nesterov;
  return settings;
}

Precision precision_of(const TrainConfiguration& configuration) {
  return configuration.precision == "bf16" ? Precision::bf16 : Precision::fp32;
}

Learner::Learner(const Configuration& configuration, const NetworkDescription& network,
                 const Dataset& training, const TensorFile* state)
    : configuration_(configuration.cfg_train), description_(network) {
  if (!configuration_.distillation.teachers.empty()) {
    teachers_.emplace(configuration_.distillation.teachers, configuration.cfg_dataloader_train.batch_size,
                      precision_of(configuration_));
  }
  if (configuration.trains_quantized()) {
    start_quantized(configuration, training, state);
  } else {
    network_ = std::make_unique<FloatTraining>(network, configuration.cfg_dataloader_train.batch_size,
                                               precision_of(configuration_));
    network_->set_parameters(initial_parameters(network, configuration_.seed));
  }
  optimizer_ =
      make_optimizer(optimizer_settings(configuration_), optimized_tensors(*network_, configuration_));
  if (configuration_.weight_average > 0) {
    flatten(network_->parameters(), flat_);
    average_.emplace(configuration_.weight_average, flat_);
  }
  const std::size_t batch = static_cast<std::size_t>(configuration.cfg_dataloader_train.batch_size);
  const std::size_t logits = batch * static_cast<std::size_t>(network.classes);
  gradient_.resize(logits);
  if (teachers_) {
    teacher_logits_.resize(logits);
    other_gradient_.resize(logits);
  }
  if (configuration_.augmentation.mixup > 0) {
    mixed_pixels_.resize(batch * cifar10_image_bytes);
    mixed_labels_.resize(batch);
    other_gradient_.resize(logits);
  }
}

void Learner::start_quantized(const Configuration& configuration, const Dataset& training,
                              const TensorFile* state) {
  const QuantConfiguration& quant = configuration.cfg_quant;
  const int batch_size = configuration.cfg_dataloader_train.batch_size;
  const auto make = [&](const LearnedScales& scales) {
    auto made =
        std::make_unique<QuantizedTraining>(description_, scales, batch_size, precision_of(configuration_));
    quantized_ = made.get();
    network_ = std::move(made);
  };
  if (state != nullptr) {
    provenance_ = trained_provenance(*state);
    make(stored_scales(description_, *state));
    return;
  }
  const TensorFile file = read_start(quant, description_);
  const FloatParameters parameters = stored_parameters(description_, file);
  const CalibrationImages images = choose_calibration_images(training, quant.calibration_images, quant.seed);
  make(initial_scales(description_, parameters, images.pixels, quant.bits, quant.input_bits(),
                      quant.observer));
  network_->set_parameters(parameters);
  provenance_ = images.provenance;
  provenance_["from"] = file.file.filename().string();
  provenance_["from_sha256"] = sha256_of_file(file.file);
  provenance_["observer"] = quant.observer == "auto" ? "mse" : quant.observer;
  if (configuration.cfg_train.validation > 0) {
    const int held_out = std::min(configuration.cfg_train.validation, held_out_by(file));
    provenance_["held_out"] =
        std::to_string(teachers_ ? std::min(held_out, teachers_->held_out()) : held_out);
  }
}

LossResult Learner::step(const Batch& batch, double learning_rate) {
  std::span<const std::uint8_t> pixels = batch.pixels;
  if (configuration_.augmentation.mixup > 0) {
    const Mixup mixup = draw_mixup(configuration_.augmentation.mixup, configuration_.seed, batch.epoch,
                                   batch.number, batch.size);
    const std::span<std::uint8_t> mixed = std::span(mixed_pixels_).first(pixels.size());
    mix_images(mixup, batch.size, pixels, mixed);
    pixels = mixed;
    mixup_weight_ = mixup.weight;
    std::rotate_copy(batch.labels.begin(), batch.labels.begin() + mixup.shift, batch.labels.end(),
                     mixed_labels_.begin());
  }
  const std::span<const float> logits = network_->forward(pixels, batch.size);
  LossResult result = add_losses(logits, batch, pixels);
  if (configuration_.loss_reduction == "mean") result.loss *= batch.size;
  network_->backward(std::span(gradient_).first(logits.size()));
  optimizer_->step(learning_rate);
  if (quantized_ != nullptr) quantized_->keep_scales_positive();
  if (average_) {
    flatten(network_->parameters(), flat_);
    average_->update(flat_);
  }
  return result;
}

// The labels' loss, mixed and joined with the teachers' as configured; leaves the gradient in gradient_.
LossResult Learner::add_losses(std::span<const float> logits, const Batch& batch,
                               std::span<const std::uint8_t> pixels) {
  const Reduction reduction = configuration_.loss_reduction == "mean" ? Reduction::mean : Reduction::sum;
  const double smoothing = configuration_.label_smoothing;
  const int classes = description_.classes;
  const std::span<float> gradient = std::span(gradient_).first(logits.size());
  LossResult result = softmax_cross_entropy(logits, batch.labels, classes, reduction, smoothing, gradient);
  if (configuration_.augmentation.mixup > 0) {
    const std::span<float> other = std::span(other_gradient_).first(logits.size());
    const LossResult mixed = softmax_cross_entropy(
        logits, std::span(mixed_labels_).first(batch.labels.size()), classes, reduction, smoothing, other);
    result.loss = mixup_weight_ * result.loss + (1 - mixup_weight_) * mixed.loss;
    add_scaled(gradient, mixup_weight_, other, 1 - mixup_weight_);
  }
  if (teachers_) {
    const double weight = configuration_.distillation.weight;
    const std::span<float> other = std::span(other_gradient_).first(logits.size());
    const std::span<float> teacher_logits = std::span(teacher_logits_).first(logits.size());
    teachers_->run(pixels, batch.size, teacher_logits);
    const LossResult distilled = distillation_loss(logits, teacher_logits, classes, reduction,
                                                   configuration_.distillation.temperature, other);
    result.loss = (1 - weight) * result.loss + weight * distilled.loss;
    add_scaled(gradient, 1 - weight, other, weight);
  }
  return result;
}

FloatParameters Learner::parameters() const {
  FloatParameters parameters = network_->parameters();
  if (average_) unflatten(average_->values(), parameters);
  return parameters;
}

Evaluation Learner::evaluate(const Dataset& dataset, const DataLoaderConfiguration& loader) const {
  if (quantized_ != nullptr) {
    return evaluate_integers(
        {description_, integer_parameters(description_, parameters(), quantized_->scales())}, dataset,
        loader.batch_size, loader.num_workers);
  }
  return nibble::evaluate(description_, parameters(), dataset, loader.batch_size, loader.num_workers,
                          precision_of(configuration_));
}

void Learner::store_network(TensorFile& file) const {
  store_parameters(description_, parameters(), file);
  if (teachers_) file.metadata[kTeachers] = teachers_->sha256();
  if (quantized_ == nullptr) return;
  store_scales(quantized_->scales(), file);
  file.metadata.insert(provenance_.begin(), provenance_.end());
}

void Learner::store(TensorFile& file) const {
  store_network(file);
  optimizer_->store(file);
  if (average_) {
    average_->store(file);
    std::vector<float> current;
    flatten(network_->parameters(), current);
    const std::int64_t shape[] = {std::ssize(current)};
    file.set<float>("optimizer.weights", shape, current);
  }
}

void Learner::restore(const TensorFile& file) {
  if (stored_network(file, quantized_ == nullptr ? kFloatFormat : kTrainedFormat) != description_) {
    throw InputError(file.file.string() + ": its network is not the configuration's");
  }
  if (!file.entry(kTeachers).empty() && (!teachers_ || file.entry(kTeachers) != teachers_->sha256())) {
    throw InputError(
        file.file.string() +
        ": a teacher's file is not the one that this training began with; put that back, or begin "
        "anew with --no-resume");
  }
  FloatParameters parameters = stored_parameters(description_, file);
  if (average_) {
    const std::int64_t shape[] = {std::ssize(flat_)};
    unflatten(file.values<float>("optimizer.weights", shape), parameters);
    average_->restore(file);
  }
  optimizer_->restore(file);
  network_->set_parameters(parameters);
  if (quantized_ != nullptr) quantized_->set_scales(stored_scales(description_, file));
}

}  // namespace nibble
