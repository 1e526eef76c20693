#include "train/training.h"

#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "graph/data/loader.h"
#include "graph/network/error.h"
#include "graph/optimize/denormals.h"
#include "nibble_version.h"
#include "train/augmentation.h"
#include "train/engine.h"
#include "train/learner.h"
#include "train/log.h"
#include "train/progress.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

NetworkDescription network_of(const Configuration& configuration) {
  const NetworkConfiguration& network = configuration.cfg_network;
  return describe_network(network.variant, network.depth, network.shortcut);
}

std::string join(const std::vector<std::string>& keys) {
  std::string text;
  for (const std::string& key : keys) text += (text.empty() ? "" : ", ") + key;
  return text;
}

void say(const std::string& sentence) {
  fmt::print(stderr, "train: {}\n", sentence);
}

class TrainingRun {
 public:
  TrainingRun(const Configuration& configuration, const TrainingData& data, TrainingFiles& files)
      : configuration_(configuration),
        train_(configuration_.cfg_train),
        data_(data),
        paths_(files.paths()),
        network_(network_of(configuration)),
        learner_(configuration_, network_, *data.training, files.state() ? &*files.state() : nullptr),
        loader_(*data.training, loader_options()),
        schedule_(schedule_of(train_)),
        steps_(loader_.batches_per_epoch()),
        position_(files.state() ? stored_position(*files.state()) : TrainingPosition{}) {
    // A state that is refused must leave the log as it is.
    if (files.state()) resume(*files.state());
    if (train_.warmup_epochs > 0 && train_.warmup_epochs >= train_.n_epoches) {
      say(fmt::format("the learning rate only rises: cfg_train.warmup_epochs is {:g} of {} epochs",
                      train_.warmup_epochs, train_.n_epoches));
    }
    log_.emplace(paths_.log, position_.epoch, files.state().has_value());
    write_header(files.state().has_value());
  }

  TrainingEnd run(const std::function<bool()>& stop) {
    while (run_epoch(stop)) {
      if (position_.finished) return TrainingEnd::finished;
      if (stop()) {
        interrupted();
        break;
      }
    }
    return TrainingEnd::interrupted;
  }

 private:
  LoaderOptions loader_options() const {
    LoaderOptions options;
    options.batch_size = configuration_.cfg_dataloader_train.batch_size;
    options.shuffle = configuration_.cfg_dataloader_train.shuffle;
    options.num_workers = configuration_.cfg_dataloader_train.num_workers;
    options.seed = train_.seed;
    options.transform = [augmentation = train_.augmentation, seed = train_.seed](
                            std::span<const std::uint8_t> image, std::uint32_t index, std::uint64_t epoch,
                            std::span<std::uint8_t> result) {
      augment(augmentation, seed, epoch, index, image, result);
    };
    return options;
  }

  void resume(const TensorFile& state) {
    if (position_.epoch < 0 || position_.epoch >= train_.n_epoches || position_.step < 0 ||
        position_.step >= steps_) {
      throw InputError(fmt::format("{}: epoch {}, step {} is not within {} epochs of {} steps",
                                   state.file.string(), position_.epoch, position_.step, train_.n_epoches,
                                   steps_));
    }
    learner_.restore(state);
    say(fmt::format("going on with {} after epoch {}, step {} of {}", paths_.last.string(), position_.epoch,
                    position_.step, steps_));
    const auto warn_if_changed = [&](const char* key, const std::string& now) {
      const auto stored = state.metadata.find(key);
      if (stored == state.metadata.end() || stored->second == now) return;
      say(fmt::format("{} of the training: {} so far, {} now; the last bits may differ", key, stored->second,
                      now));
    };
    warn_if_changed("threads", std::to_string(omp_get_max_threads()));
    warn_if_changed("version", version_and_commit);
  }

  void write_header(bool resumed) {
    nlohmann::ordered_json line;
    line["event"] = resumed ? "resume" : "start";
    line["epochs_done"] = position_.epoch;
    line["step"] = position_.step;
    line["steps_per_epoch"] = steps_;
    line["images"] = data_.training->count();
    line["dataset_sha256"] = data_.training->sha256;
    line["parameters"] = network_.parameter_count();
    line["threads"] = omp_get_max_threads();
    line["version"] = version;
    line["commit"] = commit;
    line["engine"] = engine_name();
    line["configuration"] = to_json(configuration_);
    log_->append(line);
  }

  // False: stopped in the middle, state saved.
  bool run_epoch(const std::function<bool()>& stop) {
    loader_.start(static_cast<std::uint64_t>(position_.epoch), static_cast<int>(position_.step));
    Clock::time_point last = Clock::now();
    double rate = 0;
    while (const Batch* batch = loader_.next()) {
      rate = learning_rate(schedule_, position_.epoch, position_.step, steps_);
      const LossResult loss = learner_.step(*batch, rate);
      require_finite(loss.loss);
      ++position_.step;
      position_.epoch_loss += loss.loss;
      position_.epoch_correct += loss.correct;
      position_.epoch_images += batch->size;
      const Clock::time_point now = Clock::now();
      const double seconds = std::chrono::duration<double>(now - std::exchange(last, now)).count();
      position_.epoch_seconds += seconds;
      seconds_here_ += seconds;
      ++steps_here_;
      bar_.show(progress(rate));
      if (position_.step == steps_) break;
      if (stop()) return interrupted();
      if (seconds_since(saved_) >= 60 * train_.checkpoint_minutes) {
        save(paths_.last);
        last = Clock::now();
      }
    }
    end_epoch(rate);
    return true;
  }

  void require_finite(double loss) {
    if (std::isfinite(loss)) return;
    bar_.clear();
    throw RunError(
        fmt::format("the loss is {} in epoch {}, step {}: lower cfg_train.learning_rate or lengthen "
                    "cfg_train.warmup_epochs",
                    loss, position_.epoch + 1, position_.step + 1));
  }

  // A loss can be finite once more after a weight or a variance is not: what was saved before stays then.
  void require_finite(const TensorFile& file) {
    for (const auto& [name, tensor] : file.tensors) {
      if (tensor.type != DataType::f32) continue;
      std::vector<float> values(tensor.bytes.size() / sizeof(float));
      if (!values.empty()) std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
      if (std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); }))
        continue;
      bar_.clear();
      throw RunError(
          fmt::format("{} has NaN or infinity, and {} stays as it was: lower cfg_train.learning_rate or "
                      "lengthen cfg_train.warmup_epochs",
                      name, paths_.last.string()));
    }
  }

  bool interrupted() {
    bar_.clear();
    save(paths_.last);
    say(fmt::format(
        "stopped in epoch {} after step {} of {}; {} holds the state, and the same command goes on from it",
        position_.epoch + 1, position_.step, steps_, paths_.last.string()));
    return false;
  }

  void end_epoch(double rate) {
    bar_.clear();
    const TrainingPosition done = position_;
    position_.epoch += 1;
    position_.step = 0;
    position_.epoch_loss = 0;
    position_.epoch_correct = 0;
    position_.epoch_images = 0;
    position_.epoch_seconds = 0;
    position_.finished = position_.epoch == train_.n_epoches;

    const double images = static_cast<double>(done.epoch_images);
    nlohmann::ordered_json line;
    line["epoch"] = position_.epoch;
    line["train_loss"] = done.epoch_loss / images;
    line["train_top1"] = static_cast<double>(done.epoch_correct) / images;
    line["validation_loss"] = nullptr;
    line["validation_top1"] = nullptr;
    line["test_loss"] = nullptr;
    line["test_top1"] = nullptr;
    if (data_.validation != nullptr) {
      evaluate_on("validation", *data_.validation, position_.best_validation, paths_.best, line);
    }
    // Looking at the test images while training is only for who asks for it; otherwise once, at the end.
    if (data_.test != nullptr && train_.save_best_on_test) {
      evaluate_on("test", *data_.test, position_.best_test, paths_.best_on_test, line);
    } else if (data_.test != nullptr && position_.finished) {
      int ignored = data_.test->count();
      evaluate_on("test", *data_.test, ignored, {}, line);
    }
    line["learning_rate"] = rate;
    line["images_per_second"] = images / done.epoch_seconds;
    line["seconds"] = done.epoch_seconds;

    // The log goes first: a line too many is dropped by the next start, a missing one would be lost.
    log_->append(line);
    print_epoch(line);
    save(paths_.last);
  }

  Evaluation evaluation_of(const Dataset& dataset) const {
    try {
      return learner_.evaluate(dataset, configuration_.cfg_dataloader_test);
    } catch (const InputError& error) {  // no network that could be read again
      throw RunError(
          fmt::format("the training has diverged in epoch {} ({}): lower cfg_train.learning_rate or lengthen "
                      "cfg_train.warmup_epochs",
                      position_.epoch, error.what()));
    }
  }

  // Evaluates on a data set; writes `best_file` when this is the best so far.
  void evaluate_on(const std::string& name, const Dataset& dataset, int& best, const fs::path& best_file,
                   nlohmann::ordered_json& line) {
    const Evaluation result = evaluation_of(dataset);
    line[name + "_loss"] = result.loss;
    line[name + "_top1"] = result.top1();
    if (result.correct <= best) return;
    best = result.correct;
    TensorFile file;
    learner_.store_network(file);
    describe(file);
    file.metadata["selected_on"] = name;
    file.metadata["selected_top1"] = fmt::format("{}", result.top1());
    write_tensor_file(best_file, file);
  }

  void describe(TensorFile& file) const {
    store_position(position_, configuration_, file);
    file.metadata["version"] = version_and_commit;
    file.metadata["dataset_sha256"] = data_.training->sha256;
    file.metadata["threads"] = std::to_string(omp_get_max_threads());
  }

  // A finished checkpoint is the network alone: there is nothing to go on with.
  void save(const fs::path& path) {
    TensorFile file;
    if (position_.finished) {
      learner_.store_network(file);
    } else {
      learner_.store(file);
    }
    describe(file);
    require_finite(file);
    write_tensor_file(path, file);
    saved_ = Clock::now();
  }

  ProgressState progress(double rate) const {
    const double images = static_cast<double>(position_.epoch_images);
    const std::int64_t left = (train_.n_epoches - position_.epoch) * steps_ - position_.step;
    ProgressState state;
    state.epoch = position_.epoch + 1;
    state.epochs = train_.n_epoches;
    state.step = position_.step;
    state.steps = steps_;
    state.loss = position_.epoch_loss / images;
    state.accuracy = static_cast<double>(position_.epoch_correct) / images;
    state.learning_rate = rate;
    state.images_per_second = images / position_.epoch_seconds;
    state.seconds_left = seconds_here_ / static_cast<double>(steps_here_) * static_cast<double>(left);
    return state;
  }

  void print_epoch(const nlohmann::ordered_json& line) const {
    std::string text =
        fmt::format("epoch {}/{}  loss {:.4f}  top-1 {:.2f} %", position_.epoch, train_.n_epoches,
                    line["train_loss"].get<double>(), 100 * line["train_top1"].get<double>());
    for (const char* name : {"validation", "test"}) {
      const auto& top1 = line[std::string(name) + "_top1"];
      if (top1.is_number()) text += fmt::format("  {} {:.2f} %", name, 100 * top1.get<double>());
    }
    fmt::print(stderr, "{}  lr {:.3g}  {:.0f} images/s  {}\n", text, line["learning_rate"].get<double>(),
               line["images_per_second"].get<double>(), clock_time(line["seconds"].get<double>()));
  }

  const Configuration configuration_;
  const TrainConfiguration& train_;
  const TrainingData data_;
  const CheckpointPaths paths_;
  const NetworkDescription network_;
  Learner learner_;
  Loader loader_;
  const Schedule schedule_;
  const std::int64_t steps_;  // in an epoch
  TrainingPosition position_;
  std::optional<TrainingLog> log_;
  ProgressBar bar_;
  Clock::time_point saved_ = Clock::now();
  double seconds_here_ = 0;  // of steps in this process
  std::int64_t steps_here_ = 0;
};

void require_trainable(const Configuration& configuration, const TrainingData& data) {
  const int batch = configuration.cfg_dataloader_train.batch_size;
  if (batch > data.training->count()) {
    throw InputError(fmt::format("cfg_dataloader_train.batch_size is {}, more than the {} training images",
                                 batch, data.training->count()));
  }
}

}  // namespace

TrainingFiles::TrainingFiles(const Configuration& configuration, bool resume)
    : paths_(configuration.cfg.checkpoint_path), lock_(paths_) {
  const NetworkDescription network = network_of(configuration);
  const bool goes_on = resume && fs::exists(paths_.last);
  if (!goes_on) {
    for (const std::string& remark : require_sources(configuration, network)) say(remark);
  }
  // Parameters, up to four buffers of state, the old file beside the new one, P.best: twelve times the
  // parameters and a little for metadata and log.
  require_space(paths_,
                static_cast<std::uintmax_t>(network.parameter_count()) * sizeof(float) * 12 + (1U << 20));
  if (!resume) {
    if (const std::optional<std::string> old = move_to_old(paths_)) {
      say(fmt::format("{} and what belongs to it are now {}.*", paths_.last.string(), *old));
    }
    return;
  }
  if (goes_on) {
    TensorFile file = read_tensor_file(paths_.last);
    if (stored_position(file).finished) {
      throw InputError(
          fmt::format("{} is finished: --no-resume moves it away and trains anew", paths_.last.string()));
    }
    const std::vector<std::string> keys = differing_training_keys(stored_configuration(file), configuration);
    if (!keys.empty()) {
      throw InputError(
          fmt::format("{} is an unfinished training with another configuration (different: {}): go on with "
                      "its own configuration, "
                      "choose another --checkpoint-path, or move it away with --no-resume",
                      paths_.last.string(), join(keys)));
    }
    state_ = std::move(file);
  } else if (fs::exists(paths_.log) || (configuration.cfg_train.validation > 0 && fs::exists(paths_.best))) {
    // A new training is going to write its own; what there is from before is kept under another name.
    if (const std::optional<std::string> old = move_to_old(paths_)) {
      say(fmt::format("what an older training left beside {} is now {}.*", paths_.last.string(), *old));
    }
  }
  if (configuration.cfg_train.validation == 0 && fs::exists(paths_.best)) {
    say(fmt::format("{} is of an older training and is ignored", paths_.best.string()));
  }
}

Schedule schedule_of(const TrainConfiguration& configuration) {
  Schedule schedule;
  schedule.shape = configuration.schedule == "cosine"      ? ScheduleShape::cosine
                   : configuration.schedule == "one_cycle" ? ScheduleShape::one_cycle
                                                           : ScheduleShape::multistep;
  schedule.learning_rate = configuration.learning_rate;
  schedule.epochs = configuration.n_epoches;
  schedule.warmup_epochs = configuration.warmup_epochs;
  schedule.milestones = configuration.milestones;
  schedule.gamma = configuration.gamma;
  return schedule;
}

TrainingEnd train_network(const Configuration& configuration, const TrainingData& data, TrainingFiles& files,
                          const std::function<bool()>& stop) {
  require_trainable(configuration, data);
  flush_denormals();
  TrainingRun run(configuration, data, files);
  return run.run(stop);
}

}  // namespace nibble
