#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cfg/configuration.h"
#include "graph/data/cifar10.h"
#include "graph/data/loader.h"
#include "graph/network/description.h"
#include "graph/network/tensor_file.h"
#include "graph/onednn/float_training.h"
#include "graph/onednn/quantized_training.h"
#include "graph/optimize/loss.h"
#include "graph/optimize/optimizer.h"
#include "graph/optimize/weight_average.h"
#include "train/evaluate.h"
#include "train/teachers.h"

namespace nibble {

/// A network in training: float network, or one that is quantized while it trains, loss, optimizer and weight
/// average. One step is a pure function of
/// the state and the batch, so state saved and restored goes on bit for bit (on the same machine with as many
/// threads).
class Learner {
 public:
  /// A trained quantization begins with the FP32 checkpoint of cfg_quant.from, calibrated on images of
  /// `training`, unless there is a `state` that restore() is going to get.
  Learner(const Configuration& configuration, const NetworkDescription& network, const Dataset& training,
          const TensorFile* state);

  /// Forward, loss, backward, optimizer. Returns the loss summed over the images, whatever the reduction.
  LossResult step(const Batch& batch, double learning_rate);

  /// The network as it stands: the weight average's where there is one.
  FloatParameters parameters() const;

  /// Of the network as it will be used: in integers where it is quantized.
  Evaluation evaluate(const Dataset& dataset, const DataLoaderConfiguration& loader) const;

  /// parameters(), and the scales of a quantized network.
  void store_network(TensorFile& file) const;
  /// store_network() and all of the state under "optimizer.".
  void store(TensorFile& file) const;
  void restore(const TensorFile& file);

 private:
  void start_quantized(const Configuration& configuration, const Dataset& training, const TensorFile* state);
  LossResult add_losses(std::span<const float> logits, const Batch& batch,
                        std::span<const std::uint8_t> pixels);

  TrainConfiguration configuration_;
  NetworkDescription description_;
  std::unique_ptr<FloatTraining> network_;
  QuantizedTraining* quantized_ = nullptr;         // network_, if it is that
  std::map<std::string, std::string> provenance_;  // of a quantized network
  std::unique_ptr<Optimizer> optimizer_;
  std::optional<WeightAverage> average_;
  std::vector<float> flat_;  // network_'s parameters for average_
  std::optional<Teachers> teachers_;

  // One batch each.
  std::vector<float> gradient_;
  std::vector<float> other_gradient_;
  std::vector<float> teacher_logits_;
  std::vector<std::uint8_t> mixed_pixels_;
  std::vector<std::uint8_t> mixed_labels_;
  double mixup_weight_ = 1;
};

/// Throws InputError when a teacher or cfg_quant.from cannot be read, is of another network, or is a file of
/// this training itself: before anything is moved or written for a training that could not begin. Returns a
/// sentence about each that is not finished or was trained on images that this training holds out.
std::vector<std::string> require_sources(const Configuration& configuration,
                                         const NetworkDescription& network);

OptimizerSettings optimizer_settings(const TrainConfiguration& configuration);
Precision precision_of(const TrainConfiguration& configuration);

}  // namespace nibble
