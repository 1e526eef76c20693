#include "bench/comparison.h"

#include <gmock/gmock.h>

#include <fstream>

#include "graph/network/error.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

Report report_of(const std::vector<double>& runs) {
  Report report;
  report.context.cpu = "A CPU";
  report.context.threads = 2;
  report.context.dataset = {"CIFAR-10 test", 10000, "ab"};
  ReportRow row;
  row.name = "int8";
  row.engine = "nibble";
  row.isa = "avx2";
  row.weight_bits = 8;
  row.batch = 1024;
  row.seconds_without_loader.runs = runs;
  row.file = "chkp/64_200_int8.safetensors";
  row.file_bytes = 400000;
  row.top1 = 0.9;
  row.signature = "00";
  row.signature_generated = "11";
  report.rows.push_back(row);
  return report;
}

TEST(Fraction, IsPercentOrPlain) {
  EXPECT_DOUBLE_EQ(parse_fraction("3%"), 0.03);
  EXPECT_DOUBLE_EQ(parse_fraction("3 %"), 0.03);
  EXPECT_DOUBLE_EQ(parse_fraction("0.5"), 0.5);
  for (const char* text : {"", "%", "-1%", "3 percent", "x"})
    EXPECT_THROW(parse_fraction(text), InputError) << text;
}

TEST(Verify, DemandsEqualSignatures) {
  const Report base = report_of({1});
  EXPECT_FALSE(verify(base, base).failed);
  Report other = base;
  other.rows[0].signature = "01";
  EXPECT_TRUE(verify(base, other).failed);
  other = base;
  other.rows[0].signature_generated = "12";
  EXPECT_TRUE(verify(base, other).failed);
  other = base;
  other.rows[0].top1 = 0.9001;
  EXPECT_TRUE(verify(base, other).failed);
  other = base;
  other.rows[0].file_bytes = 400001;
  EXPECT_TRUE(verify(base, other).failed);
}

TEST(Verify, ComparesAtLeastOneRow) {
  const Report base = report_of({1});
  Report other = base;
  other.rows[0].name = "another";
  EXPECT_THROW(verify(base, other), InputError);
}

TEST(Verify, DemandsTheSameKindOfNetworkInAFile) {
  Report base = report_of({1});
  base.rows.push_back(base.rows[0]);
  base.rows[1].name = "int4";
  base.rows[1].file = "chkp/64_200_int4.safetensors";
  Report other = base;
  EXPECT_FALSE(verify(base, other).failed);
  other.rows[1].name = "int8 (64_200_int4)";
  EXPECT_TRUE(verify(base, other).failed);
  // What the machine decides: oneDNN with saturating sums, and oneDNN beside our kernels.
  other.rows[1].name = "int4";
  other.rows[1].engine = "onednn+nibble";
  EXPECT_FALSE(verify(base, other).failed);
  other.rows.pop_back();
  base.rows[1].note = "sums of two products saturate";
  EXPECT_FALSE(verify(base, other).failed);
}

TEST(Verify, DoesNotCallASizeAlone) {
  Report base = report_of({1});
  base.rows.push_back(base.rows[0]);
  base.rows[1].name = "FP32";
  base.rows[1].weight_bits = 32;
  base.rows[1].engine = "onednn";
  Report other = base;
  other.context.dataset = {"generated", 10000, ""};
  other.rows[1].signature_generated = "12";
  const Comparison comparison = verify(base, other);
  EXPECT_FALSE(comparison.failed);
  EXPECT_THAT(comparison.lines[0], testing::HasSubstr("as stated"));
  EXPECT_THAT(comparison.lines[1], testing::HasSubstr("of the stated size; no more could be compared"));
  base.rows.erase(base.rows.begin());
  EXPECT_THROW(verify(base, other), InputError);
}

TEST(Verify, HoldsAcrossInstructionSetsForOurOwnKernels) {
  const Report base = report_of({1});
  Report other = base;
  other.rows[0].isa = "avx512_vnni";
  other.rows[0].signature_generated = "12";
  EXPECT_TRUE(verify(base, other).failed);
}

TEST(Verify, AllowsAFewImagesWhereFloatsAreRounded) {
  Report base = report_of({1});
  base.rows[0].weight_bits = 32;
  base.rows[0].engine = "onednn";
  Report other = base;
  other.rows[0].signature = "01";
  other.rows[0].top1 = 0.9003;
  EXPECT_FALSE(verify(base, other).failed);
  other.rows[0].top1 = 0.9004;
  EXPECT_TRUE(verify(base, other).failed);
}

TEST(Verify, WithoutTheDataSetComparesGeneratedImages) {
  const Report base = report_of({1});
  Report other = base;
  other.context.dataset = {"generated", 10000, ""};
  other.rows[0].top1.reset();
  other.rows[0].signature.clear();
  EXPECT_FALSE(verify(base, other).failed);
  other.rows[0].signature_generated = "12";
  EXPECT_TRUE(verify(base, other).failed);
}

TEST(ReadReport, NamesTheFile) {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder / "base.json";
  EXPECT_THROW(read_report(file), InputError);
  std::ofstream(file) << "{\"rows\": 3";
  try {
    read_report(file);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("base.json"));
  }
}

}  // namespace
}  // namespace nibble
