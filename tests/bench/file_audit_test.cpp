// bench --verify FILE, on made-up networks: what a file is, and what it is caught at not being.

#include "bench/file_audit.h"

#include <gmock/gmock.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "graph/network/error.h"
#include "graph/onednn/learned_scales.h"
#include "kernels/requantize.h"
#include "tests/bench/checkpoints.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

NetworkDescription small_network() {
  return describe_network("he", 20, "B");
}

TEST(FileAudit, CountsBitsAndBoundsSums) {
  const TemporaryFolder folder;
  for (const int bits : {16, 8, 4, 2}) {
    const std::filesystem::path file = folder / ("p_int" + std::to_string(bits) + ".safetensors");
    write_quantized_checkpoint(file, small_network(), bits);
    const FileAudit audit = audit_file(file, {});
    EXPECT_THAT(audit.objections, IsEmpty()) << bits;
    EXPECT_EQ(audit.weight_bits, bits);
    EXPECT_EQ(audit.layers.size(), small_network().convolutions.size() + 1);
    EXPECT_DOUBLE_EQ(audit.layers.at(1).stored_bits(), bits);
    EXPECT_DOUBLE_EQ(audit.layers.front().stored_bits(), bits == 16 ? 16 : 8);
    EXPECT_GT(audit.layers.at(1).largest_sum, 0);
    EXPECT_FALSE(audit.layers.at(1).kernel.empty());
    EXPECT_EQ(audit.signature_generated.size(), 16U);
    EXPECT_EQ(audit.signature, "");
    EXPECT_EQ(audit.engines.size(), bits == 8 ? 2U : 1U);
    EXPECT_THAT(to_lines(audit).back(), HasSubstr("ok"));
  }
}

TEST(FileAudit, BoundsAreOfTheWeights) {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder / "p_int4.safetensors";
  QuantizedNetwork quantized = synthetic_quantized(small_network(), 4);
  QuantizedLayer& layer = quantized.parameters.convolutions[1];
  std::fill(layer.weights.begin(), layer.weights.end(), std::int16_t{0});
  layer.weights[0] = -7;
  layer.weights[1] = 5;
  write_quantized(file, quantized);
  EXPECT_EQ(audit_file(file, {}).layers.at(1).largest_sum, 15 * 12);
}

TEST(FileAudit, CatchesAFileThatIsNotFourBits) {
  const TemporaryFolder folder;
  // Says 4 bits, but one of its layers is stored and computed with 8.
  QuantizedNetwork mixed = synthetic_quantized(small_network(), 4);
  mixed.parameters.convolutions[1] = synthetic_quantized(small_network(), 8).parameters.convolutions[1];
  write_quantized(folder / "p_int4.safetensors", mixed);
  const FileAudit audit = audit_file(folder / "p_int4.safetensors", {});
  EXPECT_THAT(audit.objections, Contains(HasSubstr("8.00 bits a weight, so this is not a 4-bit file")));
  EXPECT_THAT(audit.objections, Contains(HasSubstr("of the multiply-accumulates")));
  EXPECT_THAT(to_lines(audit).back(), HasSubstr("WRONG"));
}

TEST(FileAudit, CatchesAFileWithTheWrongName) {
  const TemporaryFolder folder;
  write_quantized_checkpoint(folder / "p_int4.safetensors", small_network(), 8);
  EXPECT_THAT(audit_file(folder / "p_int4.safetensors", {}).objections,
              Contains(HasSubstr("the name says 4 bits, the file says weights of 8 bits")));
  write_quantized_checkpoint(folder / "p_int2a8.safetensors", small_network(), 2);
  EXPECT_THAT(audit_file(folder / "p_int2a8.safetensors", {}).objections,
              Contains(HasSubstr("activations of 8 bits")));
  write_float_checkpoint(folder / "q_int2.safetensors", small_network());
  EXPECT_THAT(audit_file(folder / "q_int2.safetensors", {}).objections,
              Contains(HasSubstr("the name says 2 bits, the file says weights of 32 bits")));
  write_unfused_checkpoint(folder / "q_int4.safetensors", small_network());
  EXPECT_THAT(audit_file(folder / "q_int4.safetensors", {}).objections,
              Contains(HasSubstr("the name says 4 bits, the file says weights of 8 bits")));
}

TEST(FileAudit, AsksOnednnOnlyWhereItRunsTheFile) {
  const TemporaryFolder folder;
  write_int8a4_checkpoint(folder / "p_int8a4.safetensors", small_network());
  EXPECT_THAT(audit_file(folder / "p_int8a4.safetensors", {}).objections, IsEmpty());
}

TEST(FileAudit, BlocksMayDifferWhereTheFileSaysSo) {
  const TemporaryFolder folder;
  QuantizedNetwork quantized = synthetic_quantized(small_network(), 8);
  const QuantizedNetwork narrow = synthetic_quantized(small_network(), 2);
  const Block& block = quantized.network.blocks[1];
  for (const int index : {block.conv1, block.conv2}) {
    const auto i = static_cast<std::size_t>(index);
    quantized.parameters.convolutions[i] = narrow.parameters.convolutions[i];
  }
  quantized.parameters.blocks[1].input_bits = quantized.parameters.blocks[1].middle_bits = 2;
  write_quantized(folder / "p.safetensors", quantized);
  EXPECT_THAT(audit_file(folder / "p.safetensors", {}).objections, Contains(HasSubstr("run at 8 x 8 bits")));
  quantized.parameters.provenance[kMixedWidths] = "8 2 8 8 8 8 8 8 8";
  write_quantized(folder / "p_mixed.safetensors", quantized);
  EXPECT_THAT(audit_file(folder / "p_mixed.safetensors", {}).objections, IsEmpty());
  write_quantized(folder / "p_int8.safetensors", quantized);
  EXPECT_THAT(audit_file(folder / "p_int8.safetensors", {}).objections,
              Contains(HasSubstr("the file's blocks have different widths")));
}

TEST(FileAudit, AnswersForFloatAndUnfusedFiles) {
  const TemporaryFolder folder;
  write_float_checkpoint(folder / "p.safetensors", small_network());
  const FileAudit fp32 = audit_file(folder / "p.safetensors", {});
  EXPECT_THAT(fp32.objections, IsEmpty());
  EXPECT_DOUBLE_EQ(fp32.layers.at(1).stored_bits(), 32);
  EXPECT_THAT(to_lines(fp32), Contains(HasSubstr("bounds: none to prove")));

  write_unfused_checkpoint(folder / "p_int8_unfused.safetensors", small_network());
  const FileAudit unfused = audit_file(folder / "p_int8_unfused.safetensors", {});
  EXPECT_THAT(unfused.objections, IsEmpty());
  EXPECT_DOUBLE_EQ(unfused.layers.at(1).stored_bits(), 8);
  EXPECT_GT(unfused.layers.at(1).largest_sum, 0);
  EXPECT_EQ(unfused.signature_generated.size(), 16U);
}

TEST(FileAudit, RefusesDamagedFiles) {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder / "p_int2.safetensors";
  write_quantized_checkpoint(file, small_network(), 2);
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(-5, std::ios::end);
  stream.put('\x55');
  stream.close();
  EXPECT_THROW(audit_file(file, {}), InputError);
  TensorFile other;
  other.metadata["format"] = "something";
  write_tensor_file(folder / "other.safetensors", other);
  EXPECT_THROW(audit_file(folder / "other.safetensors", {}), InputError);

  other.metadata["format"] = kTrainedFormat;
  write_tensor_file(folder / "trained.safetensors", other);
  try {
    audit_file(folder / "trained.safetensors", {});
    FAIL() << "the state of a training was taken for a network";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), HasSubstr("quant exports it"));
  }
}

TEST(FileAuditProgram, HasItsExitCodes) {
  const TemporaryFolder folder;
  write_quantized_checkpoint(folder / "p_int2.safetensors", small_network(), 2);
  write_quantized_checkpoint(folder / "q_int4.safetensors", small_network(), 8);
  std::ofstream(folder / "cut.safetensors") << "cut";
  std::ofstream(folder / "p.json")
      << R"({"cfg": {"checkpoint_path": "./p"}, "cfg_CIFAR": {"root": "./none", "download": false}})";
  const auto code_of = [&](const std::string& arguments) {
    const std::string command = "cd '" + folder.path().string() +
                                "' && env -u CIFAR10_ROOT '" NIBBLE_BENCH "' --cfg p.json " + arguments +
                                " >out 2>err";
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  const auto text_of = [&](const char* name) {
    std::ostringstream text;
    text << std::ifstream(folder / name).rdbuf();
    return text.str();
  };
  EXPECT_EQ(code_of("--verify p_int2.safetensors"), 0);
  EXPECT_THAT(text_of("out"), HasSubstr("2.00"));
  EXPECT_EQ(code_of("--verify p_int2"), 0);
  EXPECT_EQ(code_of("--verify q_int4.safetensors"), 1);
  EXPECT_EQ(code_of("--verify cut.safetensors"), 2);
  EXPECT_THAT(text_of("err"), HasSubstr("cut.safetensors"));
  EXPECT_EQ(code_of("--verify missing.safetensors"), 2);
  EXPECT_THAT(text_of("err"), HasSubstr("missing.safetensors"));
}

}  // namespace
}  // namespace nibble
