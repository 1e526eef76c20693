#include "bench/sweep.h"

#include <gtest/gtest.h>

#include "bench/child.h"
#include "graph/network/error.h"

namespace nibble {
namespace {

Report report_of(const std::string& isa, const std::vector<std::string>& names) {
  Report report;
  report.context.isa = isa;
  report.context.implementations = {"a", isa};
  report.context.peak_memory_bytes = static_cast<std::int64_t>(isa.size());
  for (const std::string& name : names) {
    ReportRow row;
    row.name = name;
    row.engine = "nibble";
    row.isa = isa;
    report.rows.push_back(row);
  }
  return report;
}

TEST(Merge, PutsTheRowsOfOneNetworkTogether) {
  const Report merged =
      merge({report_of("avx2", {"int4", "int2"}), report_of("avx512_vnni", {"int4", "int2"})});
  ASSERT_EQ(merged.rows.size(), 4U);
  EXPECT_EQ(merged.rows[0].name + merged.rows[0].isa, "int4avx2");
  EXPECT_EQ(merged.rows[1].name + merged.rows[1].isa, "int4avx512_vnni");
  EXPECT_EQ(merged.rows[2].name + merged.rows[2].isa, "int2avx2");
  EXPECT_EQ(merged.context.isa, "avx2, avx512_vnni");
  EXPECT_EQ(merged.context.implementations, (std::vector<std::string>{"a", "avx2", "avx512_vnni"}));
  EXPECT_EQ(merged.context.peak_memory_bytes, 11);
}

TEST(Merge, RefusesDifferentRows) {
  EXPECT_THROW(merge({report_of("avx2", {"int4"}), report_of("avx512_vnni", {"int4", "int2"})}), RunError);
}

TEST(SweepSteps, GoUpward) {
  const std::vector<SweepStep> steps = sweep_steps();
  ASSERT_FALSE(steps.empty());
  EXPECT_EQ(steps.size(), detected_instruction_set() == InstructionSet::reference
                              ? 1U
                              : static_cast<std::size_t>(detected_instruction_set()));
}

TEST(Child, ThatHasEndedIsAnErrorOfItsParent) {
  Child child({"--gtest_list_tests"}, {});  // this program again
  EXPECT_NE(child.receive_all(), "");
  EXPECT_EQ(child.wait(), 0);
  EXPECT_THROW(child.send("round"), RunError);
}

}  // namespace
}  // namespace nibble
