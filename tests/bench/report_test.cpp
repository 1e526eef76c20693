#include "bench/report.h"

#include <gmock/gmock.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "graph/network/error.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

using testing::HasSubstr;
using testing::Not;

Report sample_report() {
  Report report;
  report.context = {
      "A CPU",  "avx2", 2, "3.2.0", {"brgconv:avx2"}, "0123456789ab", {"CIFAR-10 test", 10000, "ab12"},
      123456789};
  ReportRow row;
  row.name = "int2";
  row.engine = "nibble";
  row.weight_bits = 2;
  row.activation_bits = 2;
  row.fused = true;
  row.isa = "avx2";
  row.top1 = 0.9;
  row.top1_interval = Interval{0.894, 0.906};
  row.agreement = 0.95;
  row.batch = 1024;
  row.seconds.runs = {1.0, 1.5, 2.0};
  row.seconds_without_loader.runs = {0.5};
  row.images_per_second = 10000 / 1.5;
  row.images_per_second_without_loader = 20000;
  row.file_bytes = 115000;
  row.payload_bytes = 110000;
  row.residual_bits = 8;
  row.mac_fraction = 0.99;
  row.signature = "0011223344556677";
  row.signature_generated = "8899aabbccddeeff";
  row.file = "chkp/64_200_int2.safetensors";
  row.latency = Latency{0.0005, 0.0009};
  row.mcnemar_p = 0.25;
  row.bits_per_parameter = 2.3;
  row.peak_fraction = 0.5;
  row.first_logit_seconds = 0.1;
  row.layers = {{"conv1", 0.25, 5e8, 0.25}, {"pool and linear", 0.75, 0, 0.75}};
  report.rows.push_back(row);
  ReportRow missing;
  missing.name = "PyTorch int4";
  missing.engine = "pytorch";
  report.rows.push_back(missing);
  return report;
}

TEST(JsonReport, HasTheContractsKeys) {
  const nlohmann::ordered_json json = to_json(sample_report());
  for (const char* key : {"cpu", "isa", "threads", "onednn", "commit", "dataset"}) {
    EXPECT_TRUE(json.at("context").contains(key)) << key;
  }
  for (const char* key : {"name", "images", "sha256"}) {
    EXPECT_TRUE(json.at("context").at("dataset").contains(key)) << key;
  }
  for (const auto& row : json.at("rows")) {
    for (const char* key : {"name",
                            "engine",
                            "weight_bits",
                            "activation_bits",
                            "fused",
                            "isa",
                            "top1",
                            "top1_ci95",
                            "agreement",
                            "batch",
                            "seconds",
                            "images_per_second",
                            "images_per_second_without_loader",
                            "file_bytes",
                            "payload_bytes",
                            "residual_bits",
                            "mac_fraction",
                            "signature",
                            "file",
                            "latency_seconds",
                            "signature_generated",
                            "mcnemar_p",
                            "bits_per_parameter",
                            "peak_fraction"}) {
      EXPECT_TRUE(row.contains(key)) << key;
    }
  }
}

TEST(JsonReport, WritesValuesInTheirUnits) {
  const nlohmann::ordered_json row = to_json(sample_report().rows[0]);
  EXPECT_EQ(row.at("top1_ci95"), (nlohmann::ordered_json{0.894, 0.906}));
  EXPECT_DOUBLE_EQ(row.at("seconds").at("mean").get<double>(), 1.5);
  EXPECT_DOUBLE_EQ(row.at("seconds").at("std").get<double>(), 0.5);
  EXPECT_EQ(row.at("seconds").at("runs").size(), 3U);
  EXPECT_EQ(row.at("latency_seconds"), (nlohmann::ordered_json{{"median", 0.0005}, {"p99", 0.0009}}));
  EXPECT_DOUBLE_EQ(row.at("layers")[0].at("gmac_per_second").get<double>(), 2.0);
  EXPECT_TRUE(row.at("layers")[1].at("gmac_per_second").is_null());
}

TEST(JsonReport, SaysNullForWhatWasNotMeasured) {
  const nlohmann::ordered_json row = to_json(sample_report().rows[1]);
  for (const auto& [key, value] : row.items()) {
    EXPECT_EQ(value.is_null(), key != "name" && key != "engine") << key;
  }
}

TEST(JsonReport, ComesBackAsItWas) {
  const std::string text = to_json(sample_report()).dump();
  const Report back = report_from_json(nlohmann::json::parse(text), "test");
  EXPECT_EQ(to_json(back).dump(), text);
}

TEST(JsonReport, NamesTheKeyThatIsWrong) {
  nlohmann::json json = nlohmann::json::parse(to_json(sample_report()).dump());
  json["rows"][0]["top1"] = "much";
  try {
    report_from_json(json, "base.json");
    FAIL();
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), HasSubstr("base.json"));
    EXPECT_THAT(error.what(), HasSubstr("'top1'"));
    EXPECT_THAT(error.what(), HasSubstr("int2"));
  }
  EXPECT_THROW(report_from_json(nlohmann::json::parse("{\"rows\": []}"), "base.json"), InputError);
}

TEST(MarkdownReport, IsOneTableWithAFooter) {
  const std::string text = format_report(sample_report(), "md");
  std::istringstream lines(text);
  std::string header;
  std::string rule;
  std::string row;
  std::getline(lines, header);
  std::getline(lines, rule);
  std::getline(lines, row);
  const auto cells = [](const std::string& line) { return std::count(line.begin(), line.end(), '|'); };
  EXPECT_EQ(cells(header), cells(rule));
  EXPECT_EQ(cells(header), cells(row));
  EXPECT_THAT(row, HasSubstr("90.00 % (89.40 to 90.60)"));
  EXPECT_THAT(row, HasSubstr("1.500 ± 0.500 s"));
  EXPECT_THAT(row, HasSubstr("20,000"));
  EXPECT_THAT(row, HasSubstr("0.115"));
  EXPECT_THAT(row, HasSubstr("0.500 ms"));
  EXPECT_THAT(text, HasSubstr("not measured"));
  for (const char* part : {"A CPU", "2 threads", "oneDNN 3.2.0", "brgconv:avx2", "0123456789ab", "ab12"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
}

TEST(MarkdownReport, ShowsLayersWhenProfiled) {
  const std::string text = format_report(sample_report(), "md");
  EXPECT_THAT(text, HasSubstr("pool and linear"));
  EXPECT_THAT(text, HasSubstr("75.0 %"));
}

TEST(CsvReport, HasOneLineARowAndQuotesWhatNeedsIt) {
  Report report = sample_report();
  report.rows[0].note = "slow, \"very\"";
  const std::string text = format_report(report, "csv");
  std::istringstream stream(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_THAT(lines[0], HasSubstr("seconds_mean"));
  EXPECT_THAT(lines[1], HasSubstr("\"slow, \"\"very\"\"\""));
  EXPECT_THAT(lines[1], HasSubstr(",1.5,0.5,\"[1.0,1.5,2.0]\","));
  EXPECT_EQ(lines[2].substr(0, 22), "PyTorch int4,pytorch,,");
  // Empty cells, as many as there are columns.
  EXPECT_EQ(std::count(lines[2].begin(), lines[2].end(), ','),
            std::count(lines[0].begin(), lines[0].end(), ','));
}

TEST(CsvReport, HasEveryKeyOfARowButTheLongOnes) {
  const std::string text = format_report(sample_report(), "csv");
  const std::string header = "," + text.substr(0, text.find("\r\n")) + ",";
  const nlohmann::ordered_json row = to_json(ReportRow{});
  for (const auto& [key, value] : row.items()) {
    if (key == "layers" || key == "correct_images" || key == "measured") continue;
    const std::string stem = key == "latency_seconds" ? "latency" : key;
    EXPECT_THAT(header, testing::AnyOf(HasSubstr("," + stem + ","), HasSubstr("," + stem + "_")));
  }
}

TEST(JsonReport, TakesNamesOfFilesThatAreNotUtf8) {
  Report report = sample_report();
  report.rows[0].file = "caf\xe9.safetensors";
  EXPECT_THAT(format_report(report, "json"), HasSubstr("caf\xef\xbf\xbd.safetensors"));
  EXPECT_THAT(format_report(report, "html"), HasSubstr("caf\xef\xbf\xbd.safetensors"));
}

TEST(HtmlReport, StandsAloneAndEscapes) {
  Report report = sample_report();
  report.rows[0].name = "a<b>&\"c\"";
  const std::string text = format_report(report, "html");
  EXPECT_THAT(text, HasSubstr("a&lt;b&gt;&amp;&quot;c&quot;"));
  EXPECT_THAT(text, Not(HasSubstr("a<b>")));
  for (const char* elsewhere : {"src=\"", "href=\"", "@import", "url("}) {
    EXPECT_THAT(text.substr(0, text.find("<script")), Not(HasSubstr(elsewhere))) << elsewhere;
  }
  EXPECT_THAT(text, HasSubstr("</html>"));
}

TEST(Report, RefusesUnknownFormats) {
  EXPECT_THROW(format_report(sample_report(), "pdf"), InputError);
}

TEST(Report, WritesAFile) {
  const TemporaryFolder folder;
  emit_report("text\n", folder / "new/report.md");
  std::ostringstream content;
  content << std::ifstream(folder / "new/report.md").rdbuf();
  EXPECT_EQ(content.str(), "text\n");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder / "new"), {}), 1);
}

TEST(Report, FailsWhereNothingCanBeWritten) {
  EXPECT_THROW(emit_report("text", "/proc/nowhere/report.md"), RunError);
}

}  // namespace
}  // namespace nibble
