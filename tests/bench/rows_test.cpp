#include "bench/rows.h"

#include <gmock/gmock.h>

#include <fstream>

#include "graph/data/sha256.h"
#include "graph/network/error.h"
#include "tests/bench/checkpoints.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class RowsTest : public testing::Test {
 protected:
  RowsTest() : network_(describe_network("he", 20, "A")) {}

  void write_float(const std::string& name, const std::string& validation = "0") {
    write_float_checkpoint(folder_ / (name + ".safetensors"), network_, validation);
  }
  void write_bits(const std::string& name, int bits,
                  const std::map<std::string, std::string>& provenance = {}) {
    write_quantized_checkpoint(folder_ / (name + ".safetensors"), network_, bits, provenance);
  }
  std::vector<std::string> names(const std::vector<std::string>& models = {}) {
    selection_ = select_rows((folder_ / "p").string(), models);
    std::vector<std::string> result;
    for (const RowRequest& row : selection_.rows) result.push_back(row.name);
    return result;
  }
  std::string refusal(const std::vector<std::string>& models) {
    try {
      names(models);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  }

  NetworkDescription network_;
  TemporaryFolder folder_;
  RowSelection selection_;
};

TEST_F(RowsTest, ComeInTheOrderOfTheTable) {
  write_bits("p_int2", 2);
  write_bits("p_int4", 4);
  write_bits("p_int8", 8);
  write_bits("p_int16", 16);
  write_float("p");
  EXPECT_THAT(names(),
              ElementsAre("FP32", "BF16", "int16", "int8 fused", "int8 fused", "int8", "int4", "int2"));
  for (const RowRequest& row : selection_.rows) EXPECT_EQ(row.reference, folder_ / "p.safetensors");
}

TEST_F(RowsTest, OnlyEightBitActivationsRunOnOnednn) {
  write_int8a4_checkpoint(folder_ / "p_int8a4.safetensors", network_);
  EXPECT_THAT(names(), ElementsAre("int8a4"));
}

TEST_F(RowsTest, OwnFilesStandBeforeOthers) {
  write_float("another");
  write_bits("another_int4", 4);
  write_bits("p_int2a8_trained", 2);
  write_bits("p_int2", 2);
  write_float("p");
  EXPECT_THAT(names(), ElementsAre("FP32", "BF16", "int2", "int2a8 trained", "FP32 (another)",
                                   "BF16 (another)", "int4 (another)"));
  EXPECT_EQ(selection_.rows.back().reference, folder_ / "another.safetensors");
}

/// Wherever the two lie and whatever they are called.
TEST_F(RowsTest, TheReferenceIsTheFileThatItWasMadeFrom) {
  write_float("p");
  write_float("elsewhere/source", "5000");
  const std::string source = (folder_ / "elsewhere/source.safetensors").string();
  write_bits("p_int4", 4, {{"source_sha256", sha256_of_file(source)}});
  write_bits("p_int2", 2,
             {{"source_sha256", "of the trained state"}, {"from_sha256", sha256_of_file(source)}});
  names();
  EXPECT_EQ(selection_.rows.back().reference, folder_ / "p.safetensors");  // the source is not at hand
  names({source, "int4", "int2"});
  for (const RowRequest& row : selection_.rows) EXPECT_EQ(row.reference, source) << row.name;
}

TEST_F(RowsTest, TheBestCheckpointCountsOnlyWithValidation) {
  write_float("p", "5000");
  write_float("p.best", "5000");
  names();
  EXPECT_EQ(selection_.rows[0].file, folder_ / "p.best.safetensors");
  write_float("p", "0");
  names();
  EXPECT_EQ(selection_.rows[0].file, folder_ / "p.safetensors");
  EXPECT_THAT(selection_.remarks, testing::Contains(HasSubstr("p.best.safetensors")));
}

TEST_F(RowsTest, FilesPutAsideAreLeftOut) {
  write_float("p");
  write_float("p.old");
  write_bits("p_int8.old2", 8);
  EXPECT_THAT(names(), ElementsAre("FP32", "BF16"));
}

TEST_F(RowsTest, MissingFilesAreRemarked) {
  write_float("p");
  names();
  EXPECT_THAT(selection_.remarks, testing::Contains(testing::AllOf(HasSubstr("p_int4.safetensors"),
                                                                   HasSubstr("quant --bits 4"))));
}

TEST_F(RowsTest, NothingThereSaysWhatToRun) {
  EXPECT_THAT(refusal({}),
              testing::AllOf(HasSubstr("p.safetensors"), HasSubstr("train"), HasSubstr("quant")));
}

TEST_F(RowsTest, ModelsSelect) {
  write_float("p");
  write_bits("p_int4", 4);
  write_bits("p_int2", 2);
  EXPECT_THAT(names({"int2", "FP32"}), ElementsAre("int2", "FP32"));
  EXPECT_THAT(names({"INT2"}), ElementsAre("int2"));
  EXPECT_THAT(names({"p_int4"}), ElementsAre("int4"));
  EXPECT_THAT(names({"p_int4.safetensors", "int4"}), ElementsAre("int4"));
  EXPECT_THAT(names({(folder_ / "p.safetensors").string()}), ElementsAre("FP32", "BF16"));
}

TEST_F(RowsTest, MixedFilesAreAKindOfTheirOwn) {
  write_float("p");
  write_bits("p_int8", 8);
  write_bits("p_mixed", 8, {{kMixedWidths, "8 4 2"}});
  EXPECT_THAT(names(), ElementsAre("FP32", "BF16", "int8 fused", "int8 fused", "int8", "mixed"));
  EXPECT_THAT(names({"mixed"}), ElementsAre("mixed"));
}

TEST_F(RowsTest, ModelsMayLieElsewhere) {
  write_float("p");
  std::filesystem::create_directory(folder_ / "elsewhere");
  write_bits("elsewhere/mine", 4);
  const std::filesystem::path mine = folder_ / "elsewhere/mine";
  EXPECT_THAT(names({mine.string() + ".safetensors"}), ElementsAre("int4 (" + mine.string() + ")"));
  EXPECT_EQ(selection_.rows[0].reference, folder_ / "p.safetensors");
}

TEST_F(RowsTest, APathIsNoOtherFileOfItsName) {
  write_float("p");
  write_bits("p_int4", 4);
  const std::filesystem::path other = folder_ / "elsewhere/p";
  const std::string file = other.string() + "_int4.safetensors";
  std::filesystem::create_directory(folder_ / "elsewhere");
  EXPECT_THAT(refusal({file}), HasSubstr("there is no file " + file));
  write_bits("elsewhere/p_int4", 4);
  write_float("elsewhere/p");
  EXPECT_THAT(names({file, other.string()}),
              ElementsAre("int4 (" + other.string() + ")", "FP32 (" + other.string() + ")",
                          "BF16 (" + other.string() + ")"));
  EXPECT_EQ(selection_.rows[0].file, file);
  EXPECT_EQ(selection_.rows[0].reference, other.string() + ".safetensors");
  EXPECT_EQ(names({"int4"}).size(), 1U);
  EXPECT_EQ(selection_.rows[0].reference, folder_ / "p.safetensors");
}

TEST_F(RowsTest, UnknownModelsGetTheNearestName) {
  write_float("p");
  write_bits("p_int4", 4);
  EXPECT_THAT(refusal({"int3"}), testing::AllOf(HasSubstr("'int3'"), HasSubstr("'int4'")));
  EXPECT_THAT(refusal({"p_imt4"}), HasSubstr("'p_int4'"));
}

TEST_F(RowsTest, OwnFilesMustBeSound) {
  write_float("p");
  std::ofstream(folder_ / "p_int4.safetensors") << "cut";
  EXPECT_THAT(refusal({}), HasSubstr("p_int4.safetensors"));
}

TEST_F(RowsTest, StrangersArePassedOver) {
  write_float("p");
  std::ofstream(folder_ / "stranger.safetensors") << "cut";
  EXPECT_THAT(names(), ElementsAre("FP32", "BF16"));
  EXPECT_THAT(selection_.remarks, testing::Contains(HasSubstr("stranger.safetensors")));
}

}  // namespace
}  // namespace nibble
