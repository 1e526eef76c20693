// What a training process does with signals and with its files: each test runs train_generated.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "graph/network/checkpoint_path.h"
#include "graph/network/tensor_file.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// State on disk after every step, so that a kill at any time finds some. 24 steps, of which tests wait for 6:
// a busy machine must not finish them first.
const char* const kConfiguration = R"({
  "cfg_network": {"variant": "he", "depth": 20, "shortcut": "A"},
  "cfg_dataloader_train": {"batch_size": 16},
  "cfg_train": {"n_epoches": 6, "checkpoint_minutes": 1e-9}
})";

class TrainingProcess : public testing::Test {
 protected:
  TrainingProcess() { std::ofstream(folder_ / "cfg.json") << kConfiguration; }

  std::vector<std::string> command(const std::string& name, std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments = {NIBBLE_TRAIN_GENERATED,
                                          "--cfg",
                                          (folder_ / "cfg.json").string(),
                                          "--checkpoint-path",
                                          (folder_ / name).string(),
                                          "--threads",
                                          "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }

  pid_t start(const std::vector<std::string>& arguments) const {
    std::vector<char*> pointers;
    for (const std::string& argument : arguments) pointers.push_back(const_cast<char*>(argument.c_str()));
    pointers.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, (folder_ / "stderr").c_str(),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0666);
    pid_t process = 0;
    EXPECT_EQ(posix_spawn(&process, pointers[0], &actions, nullptr, pointers.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return process;
  }

  /// The exit code, or minus the signal that ended the process.
  static int wait_for(pid_t process) {
    int status = 0;
    EXPECT_EQ(waitpid(process, &status, 0), process);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  int run(const std::vector<std::string>& arguments) const { return wait_for(start(arguments)); }

  std::string messages() const {
    std::ostringstream text;
    text << std::ifstream(folder_ / "stderr").rdbuf();
    return text.str();
  }

  fs::path last(const std::string& name) const { return CheckpointPaths((folder_ / name).string()).last; }

  /// Steps that the state on disk has seen; -1 without a state.
  int steps_on_disk(const std::string& name) const {
    if (!fs::exists(last(name))) return -1;
    const TensorFile file = read_tensor_file(last(name));
    return std::stoi(file.metadata.at("epoch")) * 4 + std::stoi(file.metadata.at("step"));
  }

  void wait_for_steps(const std::string& name, int steps, pid_t process) const {
    for (int i = 0; i < 60000 && steps_on_disk(name) < steps; ++i) {
      ASSERT_EQ(waitpid(process, nullptr, WNOHANG), 0) << "ended too early: " << messages();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  void expect_same_tensors(const std::string& a, const std::string& b) const {
    const TensorFile first = read_tensor_file(last(a));
    const TensorFile second = read_tensor_file(last(b));
    ASSERT_EQ(first.tensors.size(), second.tensors.size());
    for (const auto& [name, tensor] : first.tensors) {
      EXPECT_TRUE(tensor.bytes == second.tensors.at(name).bytes) << name;
    }
  }

  TemporaryFolder folder_;
};

TEST_F(TrainingProcess, InterruptedInTheMiddleOfAnEpochGoesOnWithTheSameBits) {
  ASSERT_EQ(run(command("straight")), 0) << messages();
  for (const int signal : {SIGINT, SIGTERM}) {
    const std::string name = "stopped" + std::to_string(signal);
    const pid_t process = start(command(name));
    ASSERT_NO_FATAL_FAILURE(wait_for_steps(name, 1, process));
    kill(process, signal);
    EXPECT_EQ(wait_for(process), 128 + signal) << messages();
    EXPECT_NE(messages().find("holds the state"), std::string::npos) << messages();
    const int steps = steps_on_disk(name);
    EXPECT_GE(steps, 1);
    EXPECT_LT(steps, 24);
    EXPECT_FALSE(fs::exists(folder_ / (name + ".lock")));
    ASSERT_EQ(run(command(name)), 0) << messages();
    expect_same_tensors("straight", name);
  }
}

TEST_F(TrainingProcess, KilledAgainAndAgainGoesOnWithTheSameBits) {
  ASSERT_EQ(run(command("straight")), 0) << messages();
  for (const int steps : {0, 2, 3, 5, 6}) {
    const pid_t process = start(command("killed"));
    ASSERT_NO_FATAL_FAILURE(wait_for_steps("killed", steps, process));
    kill(process, SIGKILL);
    ASSERT_EQ(wait_for(process), -SIGKILL);
  }
  ASSERT_EQ(run(command("killed")), 0) << messages();
  expect_same_tensors("straight", "killed");
}

TEST_F(TrainingProcess, SecondTrainingOnOnePathIsRefused) {
  const pid_t process = start(command("a"));
  ASSERT_NO_FATAL_FAILURE(wait_for_steps("a", 1, process));
  EXPECT_EQ(run(command("a")), 2);
  EXPECT_NE(messages().find("another training (process " + std::to_string(process) + ") is writing"),
            std::string::npos)
      << messages();
  EXPECT_EQ(run(command("a", {"--no-resume"})), 2);
  EXPECT_TRUE(fs::exists(last("a"))) << "--no-resume moved the files of a training that runs";
  EXPECT_EQ(wait_for(process), 0);
}

TEST_F(TrainingProcess, ALockOfAKilledTrainingDoesNotHinder) {
  std::ofstream(folder_ / "a.lock") << "1";
  EXPECT_EQ(run(command("a")), 0) << messages();
}

TEST_F(TrainingProcess, FolderThatCannotBeMadeIsNamedAtTheStart) {
  std::ofstream(folder_ / "file") << "no folder";
  EXPECT_EQ(run(command("file/a")), 2);
  EXPECT_NE(messages().find("the checkpoint folder " + (folder_ / "file").string() + " cannot be made"),
            std::string::npos)
      << messages();
}

TEST_F(TrainingProcess, FolderThatCannotBeWrittenIsNamedAtTheStart) {
  // /proc refuses new files even for root, who may write to folders without the permission.
  std::vector<std::string> arguments = command("");
  arguments[4] = "/proc/self/a";
  EXPECT_EQ(run(arguments), 2);
  EXPECT_NE(messages().find("the checkpoint folder /proc/self cannot be written"), std::string::npos)
      << messages();
}

TEST_F(TrainingProcess, FullFolderIsNamedAtTheStart) {
  // A limit on the size of files fails like a full disk, before the first step.
  std::string line = "trap '' XFSZ; ulimit -f 2000; exec";
  for (const std::string& argument : command("a")) line += " '" + argument + "'";
  EXPECT_EQ(run({"/bin/sh", "-c", line}), 1);
  EXPECT_NE(messages().find("no room for a checkpoint of"), std::string::npos) << messages();
  EXPECT_FALSE(fs::exists(last("a")));
  EXPECT_FALSE(fs::exists(folder_ / "a.safetensors.space.tmp"));
}

TEST_F(TrainingProcess, DiskThatBecomesFullLeavesTheLastState) {
  ASSERT_EQ(run(command("straight")), 0) << messages();
  std::string line = "trap '' XFSZ; exec";
  for (const std::string& argument : command("full")) line += " '" + argument + "'";
  const pid_t process = start({"/bin/sh", "-c", line});
  ASSERT_NO_FATAL_FAILURE(wait_for_steps("full", 1, process));
  const rlimit limit = {1 << 20, RLIM_INFINITY};
  ASSERT_EQ(prlimit(process, RLIMIT_FSIZE, &limit, nullptr), 0);
  EXPECT_EQ(wait_for(process), 1);
  EXPECT_NE(messages().find(last("full").string()), std::string::npos) << messages();
  EXPECT_NE(messages().find("File too large"), std::string::npos) << messages();
  const int steps = steps_on_disk("full");
  EXPECT_GE(steps, 1);
  EXPECT_LT(steps, 24);
  ASSERT_EQ(run(command("full")), 0) << messages();
  expect_same_tensors("straight", "full");
}

TEST_F(TrainingProcess, TooFewImagesAreRefused) {
  EXPECT_EQ(run(command("a", {"--images", "10"})), 2);
  EXPECT_NE(messages().find("batch_size is 16, more than the 10 training images"), std::string::npos)
      << messages();
}

}  // namespace
}  // namespace nibble
