// bench --compare: time, accuracy and size of each row, gated together; and the order of the table's rows.

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "bench/comparison.h"
#include "bench/peers.h"
#include "bench/statistics.h"
#include "bench/table.h"
#include "graph/network/error.h"

namespace nibble {
namespace {

using testing::HasSubstr;

std::vector<bool> right_images(int count, int wrong_from, int wrong_to) {
  std::vector<bool> flags(static_cast<std::size_t>(count), true);
  for (int i = wrong_from; i < wrong_to; ++i) flags[static_cast<std::size_t>(i)] = false;
  return flags;
}

Report report_of(const std::vector<double>& runs, int wrong_from = 0, int wrong_to = 100) {
  Report report;
  report.context.cpu = "A CPU";
  report.context.threads = 2;
  report.context.dataset = {"CIFAR-10 test", 1000, "ab"};
  ReportRow row;
  row.name = "int8";
  row.engine = "nibble";
  row.isa = "avx2";
  row.batch = 1024;
  row.seconds_without_loader.runs = runs;
  row.file = "chkp/64_200_int8.safetensors";
  row.file_bytes = 400000;
  const int right = 1000 - (wrong_to - wrong_from);
  row.top1 = right / 1000.0;
  row.top1_interval = wilson_interval(right, 1000);
  row.correct_images = pack_flags(right_images(1000, wrong_from, wrong_to));
  report.rows.push_back(row);
  return report;
}

const std::vector<double> kRuns = {1.00, 1.01, 0.99, 1.005, 0.995};

std::vector<double> scaled_runs(double factor) {
  std::vector<double> runs = kRuns;
  for (double& run : runs) run *= factor;
  return runs;
}

TEST(RankSum, IsExact) {
  // All of 3 above all of 3: one of the 20 ways to choose 3 of 6 values.
  EXPECT_NEAR(rank_sum_p(std::vector{1.0, 2.0, 3.0}, std::vector{4.0, 5.0, 6.0}), 0.05, 1e-12);
  EXPECT_NEAR(rank_sum_p(std::vector{4.0, 5.0, 6.0}, std::vector{1.0, 2.0, 3.0}), 1, 1e-12);
  // R: wilcox.test(c(2,4,6,8), c(1,3,5,7,9), alternative = "greater") and its mirror: U = 10 of 20,
  // and 12 of the 126 choices have just that.
  EXPECT_NEAR(rank_sum_p(std::vector{1.0, 3.0, 5.0, 7.0, 9.0}, std::vector{2.0, 4.0, 6.0, 8.0}), 69.0 / 126,
              1e-12);
  EXPECT_NEAR(rank_sum_p(std::vector{1.0, 1.0}, std::vector{1.0, 1.0}), 1, 1e-12);
}

TEST(RankSum, GoesOverIntoTheNormalDistribution) {
  std::vector<double> first;
  std::vector<double> second;
  for (int i = 0; i < 30; ++i) {
    first.push_back(i);
    second.push_back(i + 0.5);
  }
  // U = 465 of 900, deviation sqrt(30 * 30 * 61 / 12): z = (15 - 0.5) / 67.64.
  EXPECT_NEAR(rank_sum_p(first, second), 0.4151, 1e-4);
}

TEST(Compare, FailsWhereTimeIsAboveTheLimit) {
  const Report base = report_of(kRuns);
  EXPECT_FALSE(compare(base, report_of(scaled_runs(1.02)), 0.03).failed);
  EXPECT_TRUE(compare(base, report_of(scaled_runs(1.04)), 0.03).failed);
  EXPECT_FALSE(compare(base, report_of(scaled_runs(0.5)), 0.0).failed);
  EXPECT_FALSE(compare(base, report_of(scaled_runs(9)), HUGE_VAL).failed);
}

TEST(Compare, DoesNotTakeNoiseForARegression) {
  // The median is 5 % above, but the runs lie among each other.
  const Report base = report_of({1.0, 1.2, 1.1, 0.9, 1.0});
  const Comparison noisy = compare(base, report_of({1.05, 0.95, 1.3, 1.06, 0.92}), 0.03);
  EXPECT_FALSE(noisy.failed);
  EXPECT_THAT(noisy.lines.at(0), HasSubstr("within the noise"));
  // One disturbed run of eight does not hide a regression.
  EXPECT_TRUE(compare(report_of({1, 1, 1, 1, 1, 1, 1, 9}),
                      report_of({1.04, 1.04, 1.04, 1.04, 1.04, 1.04, 1.04, 1.04}), 0.03)
                  .failed);
}

TEST(Compare, LetsTheMedianDecideWhereRunsAreTooFew) {
  const Comparison comparison = compare(report_of({1.0}), report_of({1.04}), 0.03);
  EXPECT_TRUE(comparison.failed);
  EXPECT_THAT(comparison.lines.at(0), HasSubstr("too few runs"));
}

TEST(Compare, TestsAccuracyImageByImage) {
  const Report base = report_of(kRuns);
  // 8 images more are wrong, and none is won: 2^-7.
  const Comparison lower = compare(base, report_of(kRuns, 0, 108), 0.03);
  EXPECT_TRUE(lower.failed);
  EXPECT_THAT(lower.lines.at(0), HasSubstr("McNemar p = 0.0078, 8 images lost, 0 won"));
  EXPECT_FALSE(compare(base, report_of(kRuns, 0, 108), HUGE_VAL).failed);
  // Five lost: 2^-4. Other images wrong, but as many.
  EXPECT_FALSE(compare(base, report_of(kRuns, 0, 105), 0.03).failed);
  EXPECT_FALSE(compare(base, report_of(kRuns, 50, 150), 0.03).failed);
  EXPECT_FALSE(compare(base, report_of(kRuns, 0, 50), 0.03).failed);
}

TEST(Compare, FallsBackToIntervals) {
  Report base = report_of(kRuns);
  base.rows[0].correct_images.clear();
  EXPECT_FALSE(compare(base, report_of(kRuns, 0, 108), 0.03).failed);
  EXPECT_TRUE(compare(base, report_of(kRuns, 0, 160), 0.03).failed);
}

TEST(Compare, GatesTheFilesSize) {
  const Report base = report_of(kRuns);
  Report other = base;
  other.rows[0].file_bytes = 411000;
  EXPECT_FALSE(compare(base, other, 0.03).failed);
  other.rows[0].file_bytes = 413000;
  const Comparison larger = compare(base, other, 0.03);
  EXPECT_TRUE(larger.failed);
  EXPECT_THAT(larger.lines.at(0), HasSubstr("larger than allowed"));
}

TEST(Compare, NamesRowsThatAreGone) {
  Report base = report_of(kRuns);
  const Report current = base;
  base.rows.push_back(base.rows[0]);
  base.rows.back().name = "gone";
  const Comparison gated = compare(base, current, 0.03);
  EXPECT_TRUE(gated.failed);
  EXPECT_THAT(gated.lines.at(1), HasSubstr("in the earlier report only"));
  EXPECT_FALSE(compare(base, current, HUGE_VAL).failed);
  EXPECT_FALSE(compare(base, current, 0.03, false).failed);  // only some rows were asked for
  Report not_run = base;
  not_run.rows[1].seconds.runs.clear();
  not_run.rows[1].seconds_without_loader.runs.clear();
  EXPECT_TRUE(compare(base, not_run, 0.03).failed);
}

TEST(Compare, RefusesWhatCannotBeCompared) {
  const Report base = report_of(kRuns);
  Report other = base;
  other.context.cpu = "Another CPU";
  EXPECT_THROW(compare(base, other, 0.03), InputError);
  other = base;
  other.context.threads = 1;
  EXPECT_THROW(compare(base, other, 0.03), InputError);
  other = base;
  other.context.dataset.images = 100;
  EXPECT_THROW(compare(base, other, 0.03), InputError);
  other = base;
  other.rows[0].batch = 1;
  EXPECT_THROW(compare(base, other, 0.03), InputError);
}

TEST(PackedFlags, FillTheLastDigit) {
  EXPECT_EQ(pack_flags({}), "");
  EXPECT_EQ(pack_flags({true, false, true, false, true}), "a8");
}

ReportRow row_named(const std::string& name, const std::string& engine) {
  ReportRow row;
  row.name = name;
  row.engine = engine;
  row.top1 = 0.9;
  return row;
}

TEST(TableRows, BeginWithTheReplacedSystem) {
  Report report;
  report.rows = {row_named("FP32", "onednn"), row_named("int8", "nibble")};
  std::vector<ReportRow> peers = peer_rows(std::nullopt);
  peers.push_back(row_named("OpenVINO int8", "openvino"));
  insert_peers(report, peers);
  std::vector<std::string> names;
  for (const ReportRow& row : report.rows) names.push_back(row.name);
  names.resize(7);
  EXPECT_THAT(names, testing::ElementsAre("Original", "PyTorch int2", "PyTorch int4", "PyTorch int8",
                                          "Fused PyTorch int8", "FP32", "int8"));
  EXPECT_EQ(report.rows.back().name, "OpenVINO int8");
}

TEST(TableRows, ShowNoFiguresOfOtherImages) {
  Report report;
  report.context.dataset = {"CIFAR-10 test", 1000, "ab"};
  ReportRow peer = row_named("OpenVINO int8", "openvino");
  peer.images_per_second = 5727.0;
  peer.measured = Provenance{"2026-11-23", "Some CPU", {}, "", 10000, 2};
  insert_peers(report, {peer});
  EXPECT_FALSE(report.rows.at(0).top1);
  EXPECT_FALSE(report.rows.at(0).images_per_second);
  EXPECT_THAT(report.rows.at(0).note, HasSubstr("10000 test images"));
  report.rows.clear();
  report.context.dataset = {"generated", 10000, ""};
  insert_peers(report, {peer});
  EXPECT_FALSE(report.rows.at(0).images_per_second);
  report.rows.clear();
  report.context.dataset = {"CIFAR-10 test", 10000, "ab"};
  insert_peers(report, {peer});
  EXPECT_EQ(report.rows.at(0).images_per_second, 5727.0);
}

TEST(TableFooter, HasALineForRowsThatWereMeasuredTogether) {
  Report report;
  for (const char* name : {"a", "b", "c"}) {
    report.rows.push_back(row_named(name, "openvino"));
    report.rows.back().measured = Provenance{"2026-11-23", "Some CPU", {{"OpenVINO", "1"}}, "p", 10000, 2};
  }
  report.rows[1].measured->date = "2026-11-24";
  const std::vector<std::string> lines = footer_lines(report);
  const auto has = [&](const char* line) { return std::count(lines.begin(), lines.end(), line); };
  EXPECT_EQ(has("a, c: measured 2026-11-23 on Some CPU, 2 threads, OpenVINO 1, with the weights of p."), 1);
  EXPECT_EQ(has("b: measured 2026-11-24 on Some CPU, 2 threads, OpenVINO 1, with the weights of p."), 1);
}

TEST(TableColumns, AreThoseOfTheReplacedSystemFirst) {
  Report report = report_of(kRuns);
  report.context.dataset.images = 10000;
  Table table = summary_table(report);
  table.header.resize(4);
  EXPECT_THAT(table.header, testing::ElementsAre("row", "top-1 (95 % interval)", "10,000 images", "size MB"));
}

TEST(TableColumns, SayNotMeasuredOfAnAbsentPeer) {
  Report report;
  ReportRow row;
  row.name = "Original";
  row.engine = "pytorch";
  report.rows.push_back(row);
  const std::vector<std::string> cells = summary_table(report).rows.at(0);
  EXPECT_EQ(cells.at(0), "Original");
  EXPECT_EQ(cells.at(1), "not measured");
  EXPECT_EQ(std::count(cells.begin(), cells.end(), "n/a"), 1);  // its widths
}

}  // namespace
}  // namespace nibble
