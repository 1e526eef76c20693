// The program itself: exit codes, one sentence for each bad input, file names.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>

#include "graph/data/cifar10.h"
#include "graph/network/float_parameters.h"
#include "graph/network/quantized_parameters.h"
#include "graph/network/signature.h"
#include "graph/onednn/int8_unfused_parameters.h"
#include "quant/simulation.h"
#include "quant/trained.h"
#include "tests/graph/onednn/cases.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

class QuantProgram : public testing::Test {
 protected:
  QuantProgram() { write_checkpoint(parameters_); }

  void write_checkpoint(const FloatParameters& parameters,
                        const std::map<std::string, std::string>& metadata = {}) const {
    TensorFile file;
    file.metadata = metadata;
    store_parameters(network_, parameters, file);
    write_tensor_file(folder_ / "p.safetensors", file);
  }

  /// Runs `quant` on the checkpoint; `environment` is put before the command.
  int run(const std::string& options, const std::string& environment = "") {
    std::ofstream(folder_ / "cfg.json") << "{\"cfg\": {\"checkpoint_path\": \"" << (folder_ / "p").string()
                                        << "\"}, \"cfg_CIFAR\": {\"root\": \""
                                        << (folder_ / "nothing").string() << "\", \"download\": false}}";
    const std::string command = environment + " " QUANT_PROGRAM " --cfg " + (folder_ / "cfg.json").string() +
                                " " + options + " > " + (folder_ / "out").string() + " 2> " +
                                (folder_ / "err").string();
    const int status = std::system(command.c_str());
    output = text_of("out");
    message = text_of("err");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string text_of(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(folder_ / name).rdbuf();
    return text.str();
  }

  /// One line on stderr that begins with the program's name, nothing on stdout.
  void expect_refusal(const std::string& options, const std::string& sentence,
                      const std::string& environment = "") {
    EXPECT_EQ(run(options, environment), 2) << options;
    EXPECT_EQ(output, "");
    EXPECT_THAT(message, HasSubstr(sentence)) << options;
    const std::string last_line = message.substr(message.rfind("quant: "));
    EXPECT_EQ(std::count(last_line.begin(), last_line.end(), '\n'), 1) << message;
  }

  const TemporaryFolder folder_;
  const NetworkDescription network_ = describe_network("he", 20, "A");
  FloatParameters parameters_ = cases::random_parameters(network_, 1);
  std::string output;
  std::string message;
};

TEST_F(QuantProgram, RefusesOptionsThatMakeNoSense) {
  expect_refusal("", "quant: the width is not given; choose --bits 16, 8, 4 or 2");
  expect_refusal("--bits 5", "quant: weights of 5 bits do not exist; choose --bits 16, 8, 4 or 2");
  expect_refusal("--bits four", "--bits");
  expect_refusal("--bits 16 --activation-bits 8", "do not go together");
  expect_refusal(
      "--bits 4 --no-fuse",
      "quant: --no-fuse is for 8-bit weights and activations only, not for 4 and 4 bits; leave it out");
  expect_refusal("--bits 8 --activation-bits 4 --no-fuse", "not for 8 and 4 bits");
  expect_refusal("--bits 8 --no-fuse --pair-safe", "--pair-safe is for fused networks");
  expect_refusal("--bits 2 --pair-safe", "--pair-safe is about 8-bit weights");
  expect_refusal("--bits 8 --observer median", "there is no observer 'median'");
  expect_refusal("--bits 8 --method magic", "there is no rounding method 'magic'");
  expect_refusal("--bits 16 --method blocks", "the method 'blocks' is for 8, 4 and 2 bits, not for 16");
  expect_refusal("--bits 4 --learning-steps 0", "--learning-steps");
  expect_refusal("--bits 8 --learning-steps 9", "the method 'nearest' has no steps");
  expect_refusal("--bits 4 --method adaround --learning-steps 9", "the method 'adaround' has no steps");
  expect_refusal("--bits 8 --calibration-images 0", "calibration");
  expect_refusal("--bits 4 --calibration-images 3", "'brecq' learns from 4 calibration images or more, not");
  expect_refusal("--bits 8 --obsever mse", "did you mean --observer?");
}

TEST_F(QuantProgram, RefusesCheckpointsThatCannotBeQuantized) {
  expect_refusal("--bits 8 --checkpoint-path " + (folder_ / "other").string(),
                 "no checkpoint " + (folder_ / "other.safetensors").string());
  FloatParameters broken = parameters_;
  broken.convolutions[2].weight[5] = std::numeric_limits<float>::quiet_NaN();
  write_checkpoint(broken);
  expect_refusal("--bits 8", "tensor 'blocks.0.conv2.weight' has NaN or infinity at element 5");
  write_checkpoint(parameters_, {{"validation", "many"}});
  expect_refusal("--bits 8", "the metadata entry 'validation' is 'many', expected a number",
                 "CIFAR10_ROOT=" + (folder_ / "nothing").string());
  std::ofstream(folder_ / "p.safetensors") << "not a checkpoint";
  expect_refusal("--bits 8", "p.safetensors");
}

TEST_F(QuantProgram, RefusesToCalibrateWithoutData) {
  expect_refusal("--bits 8", "CIFAR", "env -u CIFAR10_ROOT");
  EXPECT_FALSE(fs::exists(folder_ / "p_int8.safetensors"));
}

TEST_F(QuantProgram, RefusesToOverwriteItsSource) {
  const std::string last = (folder_ / "p.safetensors").string();
  expect_refusal("--bits 8 -o " + last, "is the training's own checkpoint");
  // The last epoch is the training's too where the best one is quantized.
  fs::copy_file(last, folder_ / "p.best.safetensors");
  expect_refusal("--bits 8 --checkpoint-path " + (folder_ / "p.best.safetensors").string() + " -o " +
                     (folder_ / "p.best.safetensors").string(),
                 "is the training's own checkpoint");
  expect_refusal("--bits 8 -o " + (folder_ / "p.best.safetensors").string(),
                 "is the training's own checkpoint");
}

/// Before it calibrates, not after minutes of learning.
TEST_F(QuantProgram, RefusesAnOutputThatIsNoFile) {
  const fs::path pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  expect_refusal("--bits 8 -o " + pipe.string(), "pipe is a folder or a device and stays as it is");
  EXPECT_TRUE(fs::is_fifo(pipe));
  expect_refusal("--bits 8 -o " + (folder_ / "").string(), "is a folder or a device");
  expect_refusal("--bits 8 -o " + (folder_ / "p.safetensors" / "q").string(), "cannot be written");
}

/// There are no data here, and none are needed.
TEST_F(QuantProgram, ExportsATrainedNetworkWithoutCalibrating) {
  TensorFile file;
  store_parameters(network_, parameters_, file);
  store_scales(initial_scales(network_, parameters_, cases::random_pixels(network_, 4, 3), 2, 4, "auto"),
               file);
  write_tensor_file(folder_ / "p.safetensors", file);
  ASSERT_EQ(run(""), 0) << message;
  const QuantizedNetwork written = read_quantized(folder_ / "p_int2a4.safetensors");
  EXPECT_EQ(written.parameters.weight_bits, 2);
  EXPECT_EQ(written.parameters.activation_bits, 4);
  EXPECT_EQ(written.parameters.provenance.at("source"), "p.safetensors");
  const std::vector<float> logits =
      Simulation(network_).run(written.parameters, generated_images(1000).pixels);
  EXPECT_THAT(output, HasSubstr(signature(logits)));
  expect_refusal("--bits 4", "was trained with 2-bit weights and 4-bit activations and has no other widths");
  for (const char* option :
       {"--budget-bytes 9", "--budget-ms 9", "--no-fuse --bits 8", "--pair-safe --bits 8", "--observer mse",
        "--calibration-images 9", "--method brecq --bits 4", "--learning-steps 9 --bits 2", "--seed 2"}) {
    const std::string name(option, std::string(option).find(' '));
    expect_refusal(option, "has learned its integers in training; leave out " + name + ",");
  }
}

TEST_F(QuantProgram, WritesFilesUnderTheirNamesWithTheSignatureItPrints) {
  if (std::getenv("CIFAR10_ROOT") == nullptr) GTEST_SKIP() << "CIFAR10_ROOT is not set";
  // A training that held records out: they are not calibrated on.
  write_checkpoint(parameters_, {{"validation", "10000"}});
  EXPECT_EQ(run("--bits 4 --calibration-images 40001"), 2);
  EXPECT_THAT(message, HasSubstr("there are 40000 training images"));
  write_checkpoint(parameters_);
  ASSERT_EQ(run("--bits 2 --activation-bits 8 --calibration-images 10 --seed 7 --learning-steps 2"), 0)
      << message;
  const fs::path file = folder_ / "p_int2a8.safetensors";
  const QuantizedNetwork quantized = read_quantized(file);
  EXPECT_EQ(quantized.parameters.provenance.at("calibration_seed"), "7");
  EXPECT_EQ(quantized.parameters.provenance.at("calibration_count"), "10");
  EXPECT_EQ(quantized.parameters.provenance.at("method"), "blocks");
  EXPECT_EQ(quantized.parameters.provenance.at("calibration_sha256").size(), 64U);
  EXPECT_EQ(quantized.parameters.provenance.at("source"), "p.safetensors");
  EXPECT_EQ(quantized.parameters.provenance.at("source_sha256").size(), 64U);
  const std::string expected =
      signature(Simulation(network_).run(quantized.parameters, generated_images(1000).pixels));
  EXPECT_THAT(output, AllOf(HasSubstr("file: " + file.string() + "\n"),
                            HasSubstr("signature on generated images: " + expected + "\n"),
                            HasSubstr("agreement with FP32 on 10 calibration images: ")));

  ASSERT_EQ(run("--budget-bytes 90000 --calibration-images 4 --learning-steps 2"), 0) << message;
  const fs::path mixed = folder_ / "p_mixed.safetensors";
  EXPECT_LE(fs::file_size(mixed), 90000U);
  EXPECT_LT(nominal_mac_fraction(read_quantized(mixed)), 1);
  ASSERT_EQ(run("--budget-ms 1000000 --calibration-images 4 --learning-steps 2"), 0) << message;
  EXPECT_THAT(output, HasSubstr("10,000 images: "));
  expect_refusal("--budget-bytes 9000 --calibration-images 4", "the smallest may have");
  expect_refusal("--budget-ms 0.001 --calibration-images 4", "the fastest takes");

  ASSERT_EQ(run("--bits 8 --no-fuse --calibration-images 10"), 0) << message;
  EXPECT_EQ(read_unfused(folder_ / "p_int8_unfused.safetensors").network, network_);
  EXPECT_THROW(read_quantized(folder_ / "p_int8_unfused.safetensors"), std::runtime_error);
  ASSERT_EQ(run("--bits 8 --pair-safe --calibration-images 10"), 0) << message;
  EXPECT_TRUE(fs::exists(folder_ / "p_int8_pair_safe.safetensors"));
}

}  // namespace
}  // namespace nibble
