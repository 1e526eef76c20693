#include "train/learner.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <numeric>
#include <string>
#include <vector>

#include "graph/onednn/float_network.h"
#include "tests/temporary_folder.h"
#include "tests/train/generated_data.h"
#include "train/initialize.h"
#include "train/mixup.h"
#include "train/training.h"

namespace nibble {
namespace {

constexpr int kImages = 8;

Configuration configuration_of(const std::string& train) {
  return parse_configuration(R"({"cfg_network": {"variant": "he", "depth": 8, "shortcut": "B"},
                                 "cfg_dataloader_train": {"batch_size": 8}, "cfg_train": )" +
                                 train + "}",
                             "test");
}

Batch batch_of(const Dataset& images) {
  Batch batch;
  batch.pixels = images.pixels;
  batch.labels = images.labels;
  batch.size = images.count();
  batch.epoch = 2;
  batch.number = 5;
  return batch;
}

/// A batch as a learner of seed 4 mixes it with alpha 0.5.
struct Mixed {
  explicit Mixed(const Batch& batch)
      : mixup(draw_mixup(0.5, 4, batch.epoch, batch.number, batch.size)),
        pixels(batch.pixels.size()),
        others(kImages) {
    EXPECT_GT(mixup.shift, 0);
    EXPECT_GT(std::abs(mixup.weight - 0.5), 0.05);
    mix_images(mixup, kImages, batch.pixels, pixels);
    for (int i = 0; i < kImages; ++i) {
      others[static_cast<std::size_t>(i)] =
          batch.labels[static_cast<std::size_t>((i + mixup.shift) % kImages)];
    }
    EXPECT_NE(others, batch.labels);
  }

  Mixup mixup;
  std::vector<std::uint8_t> pixels;
  std::vector<std::uint8_t> others;  ///< labels of the images that are mixed in
};

class LearnerTest : public testing::Test {
 protected:
  LearnerTest() { omp_set_num_threads(1); }
  ~LearnerTest() override { omp_set_num_threads(omp_get_num_procs()); }

  NetworkDescription network_ = describe_network("he", 8, "B");
  Dataset images_ = labelled_images(kImages);
};

TEST(Settings, FollowTheConfiguration) {
  const TrainConfiguration sgd =
      configuration_of(R"({"optimizer": "sgd", "learning_rate": 0.3, "momentum": 0.7,
      "nesterov": true, "weight_decay": 0.02, "schedule": "cosine", "warmup_epochs": 1.5, "n_epoches": 7})")
          .cfg_train;
  EXPECT_EQ(optimizer_settings(sgd).kind, OptimizerKind::sgd);
  EXPECT_EQ(optimizer_settings(sgd).momentum, 0.7);
  EXPECT_TRUE(optimizer_settings(sgd).nesterov);
  EXPECT_EQ(optimizer_settings(sgd).weight_decay, 0.02);
  const Schedule cosine = schedule_of(sgd);
  EXPECT_EQ(cosine.shape, ScheduleShape::cosine);
  EXPECT_EQ(cosine.learning_rate, 0.3);
  EXPECT_EQ(cosine.warmup_epochs, 1.5);
  EXPECT_EQ(cosine.epochs, 7);

  const TrainConfiguration adamw = configuration_of(R"({"optimizer": "adamw", "nesterov": false,
      "schedule": "multistep", "milestones": [3, 5], "gamma": 0.4})")
                                       .cfg_train;
  EXPECT_EQ(optimizer_settings(adamw).kind, OptimizerKind::adamw);
  EXPECT_FALSE(optimizer_settings(adamw).nesterov);
  EXPECT_EQ(schedule_of(adamw).shape, ScheduleShape::multistep);
  EXPECT_EQ(schedule_of(adamw).milestones, (std::vector<int>{3, 5}));
  EXPECT_EQ(schedule_of(adamw).gamma, 0.4);
  EXPECT_EQ(schedule_of(configuration_of(R"({"schedule": "one_cycle"})").cfg_train).shape,
            ScheduleShape::one_cycle);
}

/// The factor of `before` in `after`.
double left_of(const std::vector<float>& before, const std::vector<float>& after) {
  return std::inner_product(before.begin(), before.end(), after.begin(), 0.0) /
         std::inner_product(before.begin(), before.end(), before.begin(), 0.0);
}

/// learning_rate * weight_decay = 0.1 where the gradient counts little: what decays loses a tenth.
TEST_F(LearnerTest, DecaysWhatTheConfigurationSays) {
  const FloatParameters before = initial_parameters(network_, 1);
  for (const bool all : {false, true}) {
    const Configuration how = configuration_of(
        std::string(R"({"optimizer": "sgd", "momentum": 0, "nesterov": false, "loss_reduction": "mean",
                        "weight_decay": 10, "seed": 1, "weight_decay_on": )") +
        (all ? R"("all"})" : R"("convolutions"})"));
    Learner learner(how, network_, images_, nullptr);
    learner.step(batch_of(images_), 0.01);
    const FloatParameters after = learner.parameters();
    EXPECT_NEAR(left_of(before.convolutions[2].weight, after.convolutions[2].weight), 0.9, 0.02);
    EXPECT_NEAR(left_of(before.linear_weight, after.linear_weight), 0.9, 0.02);
    EXPECT_NEAR(left_of(before.convolutions[2].gamma, after.convolutions[2].gamma), all ? 0.9 : 1.0, 0.02);
  }
}

/// A step's loss from its parts: what the network says of the mixed images, each label with its weight.
TEST_F(LearnerTest, MixesLossesAsTheImages) {
  const FloatParameters parameters = initial_parameters(network_, 4);
  const Batch batch = batch_of(images_);
  const Mixed mixed(batch);
  FloatTraining network(network_, kImages);
  network.set_parameters(parameters);
  const std::span<const float> logits = network.forward(mixed.pixels, kImages);
  const double own = softmax_cross_entropy(logits, batch.labels, 10, Reduction::sum, 0.1, {}).loss;
  const double other = softmax_cross_entropy(logits, mixed.others, 10, Reduction::sum, 0.1, {}).loss;
  Learner learner(configuration_of(R"({"seed": 4, "label_smoothing": 0.1, "augmentation": {"mixup": 0.5}})"),
                  network_, images_, nullptr);
  EXPECT_NEAR(learner.step(batch, 0.01).loss, mixed.mixup.weight * own + (1 - mixed.mixup.weight) * other,
              1e-4 * own);
}

/// Three teachers, one of another variant: their logits' mean is what the student's loss is measured against.
TEST_F(LearnerTest, LearnsTheMeanOfItsTeachersLogits) {
  const TemporaryFolder folder;
  std::string names;
  std::vector<float> mean(kImages * 10);
  for (int i = 0; i < 3; ++i) {
    const NetworkDescription network = i == 1 ? describe_network("resnet_344", 0, "") : network_;
    const FloatParameters parameters = initial_parameters(network, static_cast<std::uint64_t>(10 + i));
    TensorFile file;
    store_parameters(network, parameters, file);
    const std::string name = (folder.path() / std::to_string(i)).string();
    write_tensor_file(name, file);
    names += (i == 0 ? "\"" : ", \"") + name + "\"";
    std::vector<float> logits(mean.size());
    FloatNetwork(network, parameters, kImages).run(images_.pixels, kImages, logits);
    for (std::size_t j = 0; j < mean.size(); ++j) mean[j] += logits[j] / 3;
  }
  FloatTraining student(network_, kImages);
  student.set_parameters(initial_parameters(network_, 4));
  const std::span<const float> logits = student.forward(images_.pixels, kImages);
  const double expected = distillation_loss(logits, mean, 10, Reduction::sum, 2, {}).loss;
  Learner learner(
      configuration_of(R"({"seed": 4, "distillation": {"weight": 1, "temperature": 2, "teacher": [)" + names +
                       "]}}"),
      network_, images_, nullptr);
  EXPECT_NEAR(learner.step(batch_of(images_), 0.01).loss, expected, 1e-5 * expected);
}

/// Mixed labels and a teacher together: what a step takes off the linear layer's biases is the learning rate
/// times the sum of the logits' gradients, put together here.
TEST_F(LearnerTest, FollowsTheGradientOfItsLosses) {
  const TemporaryFolder folder;
  const std::string teacher = (folder.path() / "teacher").string();
  const FloatParameters taught = initial_parameters(network_, 10);
  TensorFile file;
  store_parameters(network_, taught, file);
  write_tensor_file(teacher, file);

  const Batch batch = batch_of(images_);
  const Mixed mixed(batch);
  std::vector<float> teacher_logits(kImages * 10);
  FloatNetwork(network_, taught, kImages).run(mixed.pixels, kImages, teacher_logits);
  FloatTraining student(network_, kImages);
  const FloatParameters before = initial_parameters(network_, 4);
  student.set_parameters(before);
  const std::span<const float> logits = student.forward(mixed.pixels, kImages);
  std::vector<float> own(kImages * 10);
  std::vector<float> other(own.size());
  std::vector<float> distilled(own.size());
  softmax_cross_entropy(logits, batch.labels, 10, Reduction::sum, 0, own);
  softmax_cross_entropy(logits, mixed.others, 10, Reduction::sum, 0, other);
  distillation_loss(logits, teacher_logits, 10, Reduction::sum, 2, distilled);

  Learner learner(configuration_of(R"({"seed": 4, "optimizer": "sgd", "momentum": 0, "nesterov": false,
      "weight_decay": 0, "augmentation": {"mixup": 0.5},
      "distillation": {"weight": 0.3, "temperature": 2, "teacher": ")" +
                                   teacher + "\"}}"),
                  network_, images_, nullptr);
  constexpr double rate = 0.01;
  learner.step(batch, rate);
  const std::vector<float> after = learner.parameters().linear_bias;
  for (std::size_t c = 0; c < 10; ++c) {
    double gradient = 0;
    for (std::size_t i = c; i < own.size(); i += 10) {
      gradient += 0.7 * (mixed.mixup.weight * double{own[i]} + (1 - mixed.mixup.weight) * double{other[i]}) +
                  0.3 * double{distilled[i]};
    }
    EXPECT_NEAR((double{before.linear_bias[c]} - double{after[c]}) / rate, gradient, 1e-3) << c;
  }
}

}  // namespace
}  // namespace nibble
