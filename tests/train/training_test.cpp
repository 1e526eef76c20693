#include "train/training.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "graph/network/error.h"
#include "graph/optimize/loss.h"
#include "kernels/cpu.h"
#include "quant/simulation.h"
#include "quant/trained.h"
#include "tests/environment.h"
#include "tests/messages.h"
#include "tests/temporary_folder.h"
#include "tests/train/generated_data.h"
#include "train/initialize.h"
#include "train/learner.h"
#include "train/program.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// 40 images in batches of 16: three steps an epoch, the last one short.
const char* const kAdamw = R"({
  "cfg_network": {"variant": "he", "depth": 20, "shortcut": "A"},
  "cfg_dataloader_train": {"batch_size": 16, "num_workers": 2},
  "cfg_dataloader_test": {"batch_size": 16},
  "cfg_train": {"n_epoches": 2, "milestones": [1]}
})";

const char* const kEverything = R"({
  "cfg_network": {"variant": "he", "depth": 20, "shortcut": "B"},
  "cfg_dataloader_train": {"batch_size": 16, "num_workers": 1},
  "cfg_train": {"n_epoches": 2, "optimizer": "sgd", "learning_rate": 0.1, "schedule": "cosine", "warmup_epochs": 1,
                "weight_decay_on": "convolutions", "loss_reduction": "mean", "label_smoothing": 0.1, "validation": 20,
                "weight_average": 0.9, "augmentation": {"cutout": 8, "mixup": 0.5}}
})";

// Goes on from a float network of the same shape, which is its teacher too.
const char* const kQuantized = R"({
  "cfg_network": {"variant": "he", "depth": 20, "shortcut": "B"},
  "cfg_dataloader_train": {"batch_size": 16, "num_workers": 1},
  "cfg_train": {"n_epoches": 2, "optimizer": "sgd", "learning_rate": 0.01, "schedule": "cosine",
                "weight_decay_on": "convolutions", "loss_reduction": "mean", "distillation": {"temperature": 2}},
  "cfg_quant": {"bits": 2, "activation_bits": 4, "calibration_images": 16}
})";

class Training : public testing::Test {
 protected:
  // One thread, unless a test is about threads: on a busy machine threads that wait for each other take long.
  Training() { omp_set_num_threads(1); }
  ~Training() override { omp_set_num_threads(omp_get_num_procs()); }

  Configuration configuration(const char* text, const std::string& name) {
    Configuration result = parse_configuration(text, "test");
    result.cfg.checkpoint_path = (folder_ / name).string();
    return result;
  }

  /// Of the float network that a quantized one starts from.
  Configuration one_epoch(const char* text) {
    Configuration result = configuration(text, "float");
    result.cfg_train.n_epoches = 1;
    return result;
  }

  /// Goes on from `start`, which is its teacher too.
  Configuration quantized_from(const Configuration& start, const std::string& name) {
    Configuration result = configuration(kQuantized, name);
    result.cfg_quant.from = start.cfg.checkpoint_path;
    result.cfg_train.distillation.teachers = {CheckpointPaths(start.cfg.checkpoint_path).last};
    return result;
  }

  TrainingEnd train(
      const Configuration& how, const std::function<bool()>& stop = [] { return false; }) {
    TrainingFiles files(how, true);
    const Dataset* validation = how.cfg_train.validation > 0 ? &validation_ : nullptr;
    return train_network(how, {&training_, validation, &test_}, files, stop);
  }

  static TensorFile last(const Configuration& how) {
    return read_tensor_file(CheckpointPaths(how.cfg.checkpoint_path).last);
  }

  static TensorFile best(const Configuration& how) {
    return read_tensor_file(CheckpointPaths(how.cfg.checkpoint_path).best);
  }

  static std::vector<nlohmann::json> epochs_of(const Configuration& how) {
    std::ifstream file(CheckpointPaths(how.cfg.checkpoint_path).log);
    std::vector<nlohmann::json> lines;
    for (std::string line; std::getline(file, line);) {
      nlohmann::json json = nlohmann::json::parse(line);
      if (json.contains("epoch")) lines.push_back(json);
    }
    return lines;
  }

  TemporaryFolder folder_;
  Dataset training_ = labelled_images(40);
  // Other images than those that are trained on.
  Dataset validation_ = labelled_images(20, 40);
  Dataset test_ = labelled_images(10, 60);
};

void expect_same_tensors(const TensorFile& a, const TensorFile& b) {
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (const auto& [name, tensor] : a.tensors) {
    const auto other = b.tensors.find(name);
    ASSERT_NE(other, b.tensors.end()) << name;
    EXPECT_TRUE(tensor.bytes == other->second.bytes) << name;
  }
}

TEST_F(Training, StoppedAnywhereGoesOnWithTheSameBits) {
  for (const std::string recipe : {"adamw", "everything", "bf16"}) {
    const bool bf16 = recipe == "bf16";
    if (bf16 && !has_avx512_bf16()) continue;
    const auto named = [&](const std::string& name) {
      Configuration result = configuration(recipe == "adamw" ? kAdamw : kEverything, recipe + name);
      if (bf16) result.cfg_train.precision = "bf16";
      return result;
    };
    const Configuration straight = named("_straight");
    ASSERT_EQ(train(straight), TrainingEnd::finished);
    // Of six steps: after 1, in the middle of an epoch; after 3, at its end; after 4; and after every one.
    for (const int steps : {1, 3, 4, 0}) {
      const Configuration stopped = named(std::to_string(steps));
      int done = 0;
      int starts = 0;
      const auto stop = [&] { return ++done, steps == 0 || done == steps; };
      while (train(stopped, stop) == TrainingEnd::interrupted) {
        ASSERT_LT(++starts, 10);
        EXPECT_EQ(last(stopped).metadata.at("finished"), "false");
      }
      EXPECT_GE(starts, 1);
      expect_same_tensors(last(straight), last(stopped));
      if (straight.cfg_train.validation > 0) expect_same_tensors(best(straight), best(stopped));
      const std::vector<nlohmann::json> expected = epochs_of(straight);
      const std::vector<nlohmann::json> epochs = epochs_of(stopped);
      ASSERT_EQ(epochs.size(), 2U);
      for (std::size_t i = 0; i < 2; ++i) {
        for (const char* key :
             {"epoch", "train_loss", "train_top1", "test_top1", "test_loss", "learning_rate"}) {
          EXPECT_EQ(epochs[i].at(key), expected[i].at(key)) << recipe << " " << steps << " " << key;
        }
      }
    }
  }
}

/// Scales and their momentum are part of the state; what a log and a file say of a quantized network is of
/// its integers.
TEST_F(Training, QuantizedGoesOnWithTheSameBitsAndIsItsIntegers) {
  const Configuration start = one_epoch(kEverything);
  ASSERT_EQ(train(start), TrainingEnd::finished);
  for (const char* precision : {"bf16", "fp32"}) {
    if (precision == std::string("bf16") && !has_avx512_bf16()) continue;
    const auto named = [&](const std::string& name) {
      Configuration how = quantized_from(start, precision + name);
      how.cfg_train.precision = precision;
      return how;
    };
    ASSERT_EQ(train(named("straight")), TrainingEnd::finished);
    const TensorFile straight = last(named("straight"));
    for (const int steps : {1, 4}) {
      const Configuration stopped = named(std::to_string(steps));
      int done = 0;
      ASSERT_EQ(train(stopped, [&] { return ++done == steps; }), TrainingEnd::interrupted);
      ASSERT_EQ(train(stopped), TrainingEnd::finished);
      expect_same_tensors(straight, last(stopped));
      EXPECT_EQ(straight.metadata.at("from_sha256"), last(stopped).metadata.at("from_sha256"));
    }
  }

  const Configuration straight = quantized_from(start, "fp32straight");
  const TensorFile file = last(straight);
  EXPECT_THROW(stored_network(file), InputError);  // not a float network
  const QuantizedNetwork exported = export_trained(file);
  EXPECT_EQ(exported.parameters.weight_bits, 2);
  EXPECT_EQ(exported.parameters.activation_bits, 4);
  const std::vector<float> logits = Simulation(exported.network).run(exported.parameters, test_.pixels);
  const LossResult loss = softmax_cross_entropy(logits, test_.labels, 10, Reduction::mean, 0, {});
  const nlohmann::json epoch = epochs_of(straight).back();
  EXPECT_DOUBLE_EQ(epoch.at("test_loss"), loss.loss);
  EXPECT_EQ(epoch.at("test_top1"), loss.correct / 10.0);
}

/// As after a kill between the last save and the export: the program is started again and makes up for it.
/// Then it wants to evaluate, for which there is no data here.
TEST_F(Training, AMissingIntegerFileIsExportedByTheNextStart) {
  const Configuration start = one_epoch(kEverything);
  ASSERT_EQ(train(start), TrainingEnd::finished);
  const Configuration quantized = quantized_from(start, "quantized");
  ASSERT_EQ(train(quantized), TrainingEnd::finished);

  const fs::path integers = integer_file(quantized.cfg.checkpoint_path, 2, 4);
  EXPECT_FALSE(fs::exists(integers));
  TrainOptions options;
  options.configuration = (folder_ / "quantized.json").string();
  std::ofstream(options.configuration) << to_json(quantized);
  const EnvironmentVariable no_data("CIFAR10_ROOT", (folder_ / "nothing").c_str());
  EXPECT_THROW(train_program(options), std::runtime_error);
  EXPECT_EQ(read_quantized(integers).parameters.provenance.at("source"), "quantized.safetensors");
  const auto written = fs::last_write_time(integers);
  EXPECT_THROW(train_program(options), std::runtime_error);
  EXPECT_EQ(fs::last_write_time(integers), written);
  fs::resize_file(integers, 100);
  EXPECT_THROW(train_program(options), std::runtime_error);
  EXPECT_EQ(read_quantized(integers).parameters.provenance.at("source"), "quantized.safetensors");

  // Another width is not passed off as the one that is asked for.
  Configuration wider = quantized;
  wider.cfg_quant.bits = 4;
  std::ofstream(options.configuration) << to_json(wider);
  EXPECT_NE(message_of([&] {
              train_program(options);
            }).find("2-bit weights and 4-bit activations, but the configuration asks for"),
            std::string::npos);
}

/// -e on the integer file says what it says on the training's own.
TEST_F(Training, IntegerFilesAreEvaluatedToo) {
  if (std::getenv("CIFAR10_ROOT") == nullptr) GTEST_SKIP() << "CIFAR10_ROOT is not set";
  const Configuration start = one_epoch(kEverything);
  ASSERT_EQ(train(start), TrainingEnd::finished);
  const Configuration quantized = quantized_from(start, "quantized");
  ASSERT_EQ(train(quantized), TrainingEnd::finished);
  const fs::path integers = integer_file(quantized.cfg.checkpoint_path, 2, 4);
  write_quantized(integers, export_trained(last(quantized)));
  TrainOptions options;
  options.configuration = (folder_ / "quantized.json").string();
  std::ofstream(options.configuration) << to_json(quantized);
  options.evaluate = true;
  const auto said_of = [&](const fs::path& file) {
    options.checkpoint_path = file.string();
    testing::internal::CaptureStdout();
    EXPECT_EQ(train_program(options), 0);
    std::fflush(stdout);
    const std::string line = testing::internal::GetCapturedStdout();
    return line.substr(file.string().size(), line.rfind(',') - file.string().size());  // without images/s
  };
  const std::string trained = said_of(CheckpointPaths(quantized.cfg.checkpoint_path).last);
  EXPECT_NE(trained.find("of 10000)"), std::string::npos) << trained;
  EXPECT_EQ(said_of(integers), trained);
}

TEST_F(Training, QuantizedFromAnotherNetworkIsRefused) {
  const Configuration start = one_epoch(kAdamw);
  ASSERT_EQ(train(start), TrainingEnd::finished);
  Configuration other = configuration(kQuantized, "other");
  other.cfg_quant.from = start.cfg.checkpoint_path;
  EXPECT_NE(message_of([&] { train(other); }).find("cfg_quant.from"), std::string::npos);
  other.cfg_quant.from = (folder_ / "missing").string();
  EXPECT_NE(message_of([&] { train(other); }).find("missing"), std::string::npos);
}

TEST_F(Training, NothingIsMovedForATrainingThatCannotBegin) {
  const Configuration start = one_epoch(kAdamw);
  ASSERT_EQ(train(start), TrainingEnd::finished);
  Configuration again = start;
  again.cfg_train.distillation.teachers = {(folder_ / "missing.safetensors").string()};
  EXPECT_NE(message_of([&] { TrainingFiles files(again, false); }).find("missing"), std::string::npos);
  EXPECT_EQ(last(start).metadata.at("finished"), "true");
  // What it learns from is not moved away before it is read.
  again.cfg_train.distillation.teachers = {CheckpointPaths(start.cfg.checkpoint_path).last};
  EXPECT_NE(message_of([&] { TrainingFiles files(again, false); }).find("a file that it would move away"),
            std::string::npos);
  EXPECT_EQ(last(start).metadata.at("finished"), "true");
}

TEST_F(Training, GoesOnOnlyWithTheTeacherThatItBeganWith) {
  const Configuration teacher = one_epoch(kAdamw);
  ASSERT_EQ(train(teacher), TrainingEnd::finished);
  const fs::path file = CheckpointPaths(teacher.cfg.checkpoint_path).last;
  Configuration student = configuration(kAdamw, "student");
  student.cfg_train.distillation.teachers = {file};
  ASSERT_EQ(train(student, [] { return true; }), TrainingEnd::interrupted);
  TensorFile another = last(teacher);
  another.metadata["seed"] = "77";
  write_tensor_file(file, another);
  EXPECT_NE(message_of([&] { train(student); }).find("a teacher's file is not the one"), std::string::npos);
  EXPECT_EQ(last(student).metadata.at("finished"), "false");
}

TEST_F(Training, SaysWhatItLearnsFromTooSoon) {
  Configuration teacher = configuration(kAdamw, "teacher");
  ASSERT_EQ(train(teacher, [] { return true; }), TrainingEnd::interrupted);
  Configuration student = configuration(kAdamw, "student");
  student.cfg_train.distillation.teachers = {CheckpointPaths(teacher.cfg.checkpoint_path).last};
  student.cfg_train.validation = 20;
  const NetworkDescription network = describe_network("he", 20, "A");
  const std::vector<std::string> remarks = require_sources(student, network);
  ASSERT_EQ(remarks.size(), 2U);
  EXPECT_NE(remarks[0].find("teacher.safetensors is of a training that is not finished"), std::string::npos);
  EXPECT_NE(remarks[1].find("teacher.safetensors was trained on images that are held out here"),
            std::string::npos);
  ASSERT_EQ(train(teacher), TrainingEnd::finished);
  student.cfg_train.validation = 0;
  EXPECT_TRUE(require_sources(student, network).empty());
}

/// What bench says of an integer file's accuracy on held-out images needs to know who saw them.
TEST_F(Training, AnIntegerFileSaysWhatItAndItsSourcesHeldOut) {
  const Configuration start = one_epoch(kEverything);  // holds out 20
  ASSERT_EQ(train(start), TrainingEnd::finished);
  Configuration how = quantized_from(start, "held_out");
  how.cfg_train.validation = 30;
  ASSERT_EQ(train(how), TrainingEnd::finished);
  EXPECT_EQ(export_trained(last(how)).parameters.provenance.at("held_out"), "20");
}

/// A name of a file is any bytes, JSON is not.
TEST_F(Training, ANameThatIsNotUtf8IsNoHindrance) {
  const Configuration how = configuration(kAdamw, "caf\xe9");
  ASSERT_EQ(train(how, [] { return true; }), TrainingEnd::interrupted);
  EXPECT_TRUE(fs::exists(folder_ / "caf\xe9.safetensors"));
  EXPECT_FALSE(epochs_of(how).size() > 0);
}

TEST_F(Training, TwoThreadsGiveTheSameBitsEachTime) {
  omp_set_num_threads(2);
  const Configuration straight = configuration(kAdamw, "straight");
  ASSERT_EQ(train(straight), TrainingEnd::finished);
  const Configuration stopped = configuration(kAdamw, "stopped");
  int done = 0;
  ASSERT_EQ(train(stopped, [&] { return ++done == 2; }), TrainingEnd::interrupted);
  ASSERT_EQ(train(stopped), TrainingEnd::finished);
  expect_same_tensors(last(straight), last(stopped));
}

TEST_F(Training, LoaderThreadsDoNotChangeTheResult) {
  Configuration one = configuration(kAdamw, "one");
  one.cfg_dataloader_train.num_workers = 0;
  Configuration three = configuration(kAdamw, "three");
  three.cfg_dataloader_train.num_workers = 3;
  train(one);
  train(three);
  expect_same_tensors(last(one), last(three));
}

TEST_F(Training, SeedChangesTheResult) {
  Configuration one = configuration(kAdamw, "one");
  Configuration two = configuration(kAdamw, "two");
  two.cfg_train.seed = 2;
  train(one);
  train(two);
  EXPECT_TRUE(last(one).tensors.at("conv1.weight").bytes != last(two).tensors.at("conv1.weight").bytes);
}

TEST_F(Training, LearnsImagesThatShowTheirLabel) {
  Configuration how = configuration(kAdamw, "learn");
  how.cfg_train.n_epoches = 15;
  how.cfg_train.schedule = "one_cycle";
  how.cfg_train.augmentation.flip = false;
  how.cfg_train.augmentation.crop_padding = 0;
  training_ = labelled_images(160);
  train(how);
  const std::vector<nlohmann::json> epochs = epochs_of(how);
  EXPECT_LT(epochs.back().at("train_loss").get<double>(), 0.1);
  EXPECT_GE(epochs.back().at("test_top1").get<double>(), 0.9);
}

TEST_F(Training, FinishedCheckpointIsTheNetworkAloneAndIsNotGoneOnWith) {
  const Configuration how = configuration(kAdamw, "a");
  train(how);
  const TensorFile file = last(how);
  EXPECT_EQ(file.metadata.at("finished"), "true");
  EXPECT_EQ(file.metadata.at("epoch"), "2");
  EXPECT_EQ(file.metadata.at("validation"), "0");
  EXPECT_EQ(file.tensors.count("optimizer.steps"), 0U);
  EXPECT_EQ(stored_configuration(file).cfg_train.n_epoches, 2);
  const NetworkDescription network = stored_network(file);
  EXPECT_EQ(network.depth, 20);
  stored_parameters(network, file);
  const std::string message = message_of([&] { TrainingFiles files(how, true); });
  EXPECT_NE(message.find("a.safetensors is finished"), std::string::npos) << message;
  EXPECT_FALSE(fs::exists(CheckpointPaths(how.cfg.checkpoint_path).best));
  EXPECT_FALSE(fs::exists(CheckpointPaths(how.cfg.checkpoint_path).lock));
}

TEST_F(Training, KeepsTheBestOnValidation) {
  Configuration how = configuration(kAdamw, "a");
  how.cfg_train.validation = 20;
  how.cfg_train.n_epoches = 4;
  train(how);
  double best = -1;
  for (const nlohmann::json& epoch : epochs_of(how)) {
    best = std::max(best, epoch.at("validation_top1").get<double>());
    EXPECT_EQ(epoch.at("test_top1").is_number(), epoch.at("epoch") == 4);
  }
  const TensorFile file = read_tensor_file(CheckpointPaths(how.cfg.checkpoint_path).best);
  EXPECT_EQ(file.metadata.at("selected_on"), "validation");
  const NetworkDescription network = stored_network(file);
  const Evaluation result =
      evaluate(network, stored_parameters(network, file), validation_, 8, 1, Precision::fp32);
  EXPECT_EQ(result.top1(), best);
  EXPECT_EQ(choose_checkpoint(how.cfg.checkpoint_path).file, CheckpointPaths(how.cfg.checkpoint_path).best);
}

TEST_F(Training, BestOnTestIsWrittenUnderItsOwnNameAndNeverChosen) {
  Configuration how = configuration(kAdamw, "a");
  how.cfg_train.save_best_on_test = true;
  train(how);
  const CheckpointPaths paths(how.cfg.checkpoint_path);
  EXPECT_EQ(read_tensor_file(paths.best_on_test).metadata.at("selected_on"), "test");
  for (const nlohmann::json& epoch : epochs_of(how)) EXPECT_TRUE(epoch.at("test_top1").is_number());
  EXPECT_EQ(choose_checkpoint(how.cfg.checkpoint_path).file, paths.last);
}

TEST_F(Training, OlderBestIsNamedAndIgnored) {
  const Configuration how = configuration(kAdamw, "a");
  const CheckpointPaths paths(how.cfg.checkpoint_path);
  std::ofstream(paths.best) << "old";
  testing::internal::CaptureStderr();
  train(how);
  const std::string messages = testing::internal::GetCapturedStderr();
  EXPECT_NE(messages.find("a.best.safetensors is of an older training and is ignored"), std::string::npos)
      << messages;
  const ChosenCheckpoint chosen = choose_checkpoint(how.cfg.checkpoint_path);
  EXPECT_EQ(chosen.file, paths.last);
  EXPECT_EQ(chosen.ignored_best, paths.best);
}

TEST_F(Training, AnotherConfigurationIsRefusedNamingTheKeys) {
  const Configuration how = configuration(kAdamw, "a");
  ASSERT_EQ(train(how, [] { return true; }), TrainingEnd::interrupted);
  Configuration other = how;
  other.cfg_train.seed = 9;
  other.cfg_train.learning_rate = 0.5;
  const std::string message = message_of([&] { TrainingFiles files(other, true); });
  EXPECT_NE(message.find("cfg_train.learning_rate, cfg_train.seed"), std::string::npos) << message;
  // What does not change the result may differ.
  Configuration same = how;
  same.cfg_dataloader_train.num_workers = 5;
  same.cfg_train.checkpoint_minutes = 1;
  same.cfg_CIFAR.root = "elsewhere";
  EXPECT_TRUE(TrainingFiles(same, true).state().has_value());
}

TEST_F(Training, NoResumeMovesTheOldFilesAway) {
  const Configuration how = configuration(kAdamw, "a");
  for (const char* old : {"a.old", "a.old.2"}) {
    ASSERT_EQ(train(how, [] { return true; }), TrainingEnd::interrupted);
    TrainingFiles files(how, false);
    EXPECT_FALSE(files.state().has_value());
    EXPECT_FALSE(fs::exists(files.paths().last));
    EXPECT_TRUE(fs::exists(CheckpointPaths((folder_ / old).string()).last)) << old;
    EXPECT_TRUE(fs::exists(CheckpointPaths((folder_ / old).string()).log)) << old;
  }
}

TEST_F(Training, ACheckpointWithoutTrainingStateIsNotGoneOnWith) {
  const Configuration how = configuration(kAdamw, "a");
  const NetworkDescription network = describe_network("he", 20, "A");
  TensorFile file;
  store_parameters(network, initial_parameters(network, 1), file);
  write_tensor_file(CheckpointPaths(how.cfg.checkpoint_path).last, file);
  const std::string message = message_of([&] { TrainingFiles files(how, true); });
  EXPECT_NE(message.find("not the checkpoint of a training"), std::string::npos) << message;
}

TEST_F(Training, ADamagedPositionIsRefused) {
  const Configuration how = configuration(kAdamw, "a");
  ASSERT_EQ(train(how, [] { return true; }), TrainingEnd::interrupted);
  const fs::path path = CheckpointPaths(how.cfg.checkpoint_path).last;
  const TensorFile good = read_tensor_file(path);
  for (const auto& [key, value] : std::vector<std::pair<std::string, std::string>>{
           {"step", "3"}, {"step", "-1"}, {"epoch", "2"}, {"epoch", "one"}, {"configuration", "{"}}) {
    TensorFile bad = good;
    bad.metadata[key] = value;
    write_tensor_file(path, bad);
    const std::string message = message_of([&] { train(how); });
    EXPECT_NE(message.find("a.safetensors"), std::string::npos) << key << "=" << value << ": " << message;
  }
  TensorFile cut = good;
  cut.tensors.erase("optimizer.second_moment");
  write_tensor_file(path, cut);
  const std::string message = message_of([&] { train(how); });
  EXPECT_NE(message.find("optimizer.second_moment"), std::string::npos) << message;
}

TEST_F(Training, ATornLogIsMendedWhenGoingOn) {
  const Configuration how = configuration(kAdamw, "a");
  int steps = 0;
  ASSERT_EQ(train(how, [&] { return ++steps == 4; }), TrainingEnd::interrupted);
  const fs::path log = CheckpointPaths(how.cfg.checkpoint_path).log;
  // As after kill -9 between the log and the checkpoint of epoch 2, and in the middle of a line.
  std::ofstream(log, std::ios::app) << "{\"epoch\":2,\"train_loss\":1}\n{\"epoch\":3,\"tra";
  ASSERT_EQ(train(how), TrainingEnd::finished);
  const std::vector<nlohmann::json> epochs = epochs_of(how);
  ASSERT_EQ(epochs.size(), 2U);
  EXPECT_EQ(epochs[0].at("epoch"), 1);
  EXPECT_EQ(epochs[1].at("epoch"), 2);
  EXPECT_TRUE(epochs[1].at("test_top1").is_number());
}

TEST_F(Training, BatchLargerThanTheDataIsRefused) {
  Configuration how = configuration(kAdamw, "a");
  how.cfg_dataloader_train.batch_size = 41;
  const std::string message = message_of([&] { train(how); });
  EXPECT_NE(message.find("batch_size is 41, more than the 40 training images"), std::string::npos) << message;
}

TEST_F(Training, LossThatIsNotFiniteEndsTheTraining) {
  Configuration how = configuration(kEverything, "a");
  how.cfg_train.learning_rate = 1000;
  how.cfg_train.weight_decay = 10;
  how.cfg_train.warmup_epochs = 0;
  how.cfg_train.n_epoches = 50;
  EXPECT_THROW(train(how), RunError);
  // Whatever was saved before can be read.
  if (fs::exists(CheckpointPaths(how.cfg.checkpoint_path).last)) {
    const TensorFile file = last(how);
    stored_parameters(stored_network(file), file);
  }
}

TEST_F(Training, DistillsFromATeacher) {
  Configuration teacher = configuration(kAdamw, "teacher");
  train(teacher);
  Configuration plain = configuration(kAdamw, "plain");
  plain.cfg_train.seed = 3;
  Configuration student = plain;
  student.cfg.checkpoint_path = (folder_ / "student").string();
  student.cfg_train.distillation.teachers = {CheckpointPaths(teacher.cfg.checkpoint_path).last.string()};
  train(plain);
  train(student);
  EXPECT_TRUE(last(plain).tensors.at("conv1.weight").bytes != last(student).tensors.at("conv1.weight").bytes);
  Configuration unheard = student;  // with weight 0 the teacher changes nothing
  unheard.cfg.checkpoint_path = (folder_ / "unheard").string();
  unheard.cfg_train.distillation.weight = 0;
  train(unheard);
  expect_same_tensors(last(plain), last(unheard));
}

TEST(InitialParameters, AreUniformAsPyTorchs) {
  const NetworkDescription network = describe_network("resnet_344", 0, "");
  const FloatParameters parameters = initial_parameters(network, 1);
  std::set<float> first_values;
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& shape = network.convolutions[i];
    const double bound = 1 / std::sqrt(static_cast<double>(shape.weight_count() / shape.output_channels));
    double largest = 0;
    double sum = 0;
    double squares = 0;
    for (const float value : parameters.convolutions[i].weight) {
      largest = std::max(largest, std::abs(double{value}));
      sum += value;
      squares += double{value} * value;
    }
    const double count = static_cast<double>(shape.weight_count());
    EXPECT_LE(largest, bound);
    EXPECT_GT(largest, 0.98 * bound);
    EXPECT_NEAR(sum / count, 0, 4 * bound / std::sqrt(3 * count));
    EXPECT_NEAR(squares / count, bound * bound / 3, 0.15 * bound * bound / 3);
    first_values.insert(parameters.convolutions[i].weight.front());
  }
  EXPECT_EQ(first_values.size(), network.convolutions.size());

  std::vector<float> flat;
  flatten(parameters, flat);
  FloatParameters copy = make_parameters(network);
  unflatten(flat, copy);
  std::vector<float> again;
  flatten(copy, again);
  EXPECT_EQ(flat, again);
  EXPECT_EQ(copy.linear_bias, parameters.linear_bias);
  EXPECT_THROW(unflatten(std::span(flat).first(10), copy), InputError);
}

}  // namespace
}  // namespace nibble
