// The page of bench --report html: self-contained, with and without the plotting library, with and without
// data.

#include "bench/page.h"

#include <gmock/gmock.h>

#include <fstream>

#include "bench/statistics.h"
#include "tests/bench/checkpoints.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

using testing::HasSubstr;
using testing::Not;

Report small_report() {
  Report report;
  report.context = {"A CPU", "avx2", 2, "3.2.0", {}, "0123456789ab", {"CIFAR-10 test", 40, "ab12"}, 1000};
  for (const char* name : {"FP32", "int2"}) {
    ReportRow row;
    row.name = name;
    row.engine = row.name == "FP32" ? "onednn" : "nibble";
    row.file = row.name + ".safetensors";
    row.top1 = 0.9;
    row.top1_interval = wilson_interval(36, 40);
    row.images_per_second = 100;
    row.payload_bytes = row.name == "FP32" ? 1600000 : 100000;
    row.bits_per_parameter = row.name == "FP32" ? 32 : 2.5;
    row.layers = {{"conv1", 0.25, 5e8, 0.25, "int8_avx2", 0.1}};
    report.rows.push_back(row);
  }
  return report;
}

Dataset labelled_images(int count) {
  Dataset images = generated_images(count);
  for (int i = 0; i < count; ++i) images.labels.push_back(static_cast<std::uint8_t>(i % 10));
  images.name = "CIFAR-10 test";
  return images;
}

class PageFigures : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    const NetworkDescription network = describe_network("he", 20, "B");
    write_float_checkpoint(*folder_ / "p.safetensors", network);
    for (const int bits : {8, 2}) {
      write_quantized_checkpoint(*folder_ / ("p_int" + std::to_string(bits) + ".safetensors"), network, bits);
    }
    std::ofstream(*folder_ / "p.log.jsonl")
        << "{\"event\":\"start\",\"epochs_done\":0}\n"
           "{\"epoch\":1,\"train_loss\":2.5,\"train_top1\":0.1,\"test_top1\":null,\"learning_rate\":0.1,"
           "\"images_per_second\":300}\n"
           "{\"epoch\":2,\"train_loss\":2.25,\"train_top1\":0.2}\n"
           "{\"event\":\"resume\",\"epochs_done\":1}\n"
           "{\"epoch\":2,\"train_loss\":2.0,\"train_top1\":0.3}\n"
           "{\"epoch\":3,\"train_lo";
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }
  static std::vector<RowRequest> requests() { return select_rows((*folder_ / "p").string(), {}).rows; }

  static TemporaryFolder* folder_;
};
TemporaryFolder* PageFigures::folder_ = nullptr;

TEST_F(PageFigures, AreOfTheFilesThatAreThere) {
  const Figures figures = collect_figures(requests(), generated_images(2), {}, folder_->path());
  const auto& sensitivity = figures.at("sensitivity");
  EXPECT_EQ(sensitivity.at("images"), 2);
  ASSERT_EQ(sensitivity.at("networks").size(), 2U);
  EXPECT_EQ(sensitivity.at("networks")[0].at("name"), "int8");
  EXPECT_EQ(sensitivity.at("networks")[1].at("name"), "int2");
  const std::size_t convolutions = describe_network("he", 20, "B").convolutions.size();
  EXPECT_EQ(sensitivity.at("layers").size(), convolutions + 1);
  EXPECT_EQ(sensitivity.at("networks")[1].at("sqnr").size(), convolutions + 1);

  ASSERT_EQ(figures.at("histograms").size(), convolutions + 1);
  const auto& second = figures.at("histograms")[1];
  const auto sum = [](const auto& counts) {
    std::int64_t total = 0;
    for (const auto& count : counts) total += count.template get<std::int64_t>();
    return total;
  };
  const std::int64_t weights = describe_network("he", 20, "B").convolutions[1].weight_count();
  for (const auto& network : second.at("weights")) {
    EXPECT_EQ(sum(network.at("integers")), weights);
    EXPECT_EQ(sum(network.at("fp32")), weights);
  }
  // Four levels at 2 bits: four bins.
  const auto& integers = second.at("weights")[1].at("integers");
  EXPECT_EQ(std::count_if(integers.begin(), integers.end(), [](const auto& c) { return c != 0; }), 4);
  EXPECT_EQ(sum(second.at("activations").at("counts")), 2 * 16 * 32 * 32);
  EXPECT_EQ(second.at("activations").at("clips")[1].at("levels"), 4);
  EXPECT_TRUE(figures.at("histograms").back().at("activations").is_null());
  EXPECT_FALSE(figures.contains("confusion"));  // no labels
}

TEST_F(PageFigures, CountConfusionsAndLostImages) {
  const Dataset images = labelled_images(40);
  std::vector<int> right;
  for (const std::uint8_t label : images.labels) right.push_back(label);
  std::vector<int> narrow = right;
  for (std::size_t i = 0; i < 30; ++i) narrow[i] = (narrow[i] + 1) % 10;
  const Figures figures =
      collect_figures(requests(), images, {{"FP32", right}, {"int2", narrow}}, folder_->path());
  ASSERT_EQ(figures.at("confusion").size(), 2U);
  EXPECT_EQ(figures.at("confusion")[0].at("counts")[3][3], 4);
  EXPECT_EQ(figures.at("confusion")[1].at("counts")[3][4], 3);
  EXPECT_EQ(figures.at("lost").at("name"), "int2");
  EXPECT_EQ(figures.at("lost").at("total"), 30);
  EXPECT_EQ(figures.at("lost").at("images").size(), 24U);
  EXPECT_EQ(figures.at("lost").at("images")[5].at("said"), 6);
  EXPECT_EQ(figures.at("lost").at("images")[5].at("pixels").get<std::string>().size(), 4096U);
}

TEST_F(PageFigures, TakeCurvesFromTheLog) {
  const Figures figures = collect_figures({}, generated_images(1), {}, folder_->path());
  ASSERT_EQ(figures.at("curves").size(), 1U);
  const auto& epochs = figures.at("curves")[0].at("epochs");
  ASSERT_EQ(epochs.size(), 2U);                // the third line was cut
  EXPECT_EQ(epochs[1].at("train_loss"), 2.0);  // epoch 2 as it was trained last
  EXPECT_TRUE(epochs[1].at("learning_rate").is_null());
  EXPECT_TRUE(collect_figures({}, generated_images(1), {}, *folder_ / "missing").empty());
}

TEST(Page, HasTheLibraryInside) {
  const std::string text = format_page(small_report(), Figures::object(), "/* the library */");
  EXPECT_THAT(text, HasSubstr("/* the library */"));
  EXPECT_THAT(text, HasSubstr("id=\"accuracy-time\""));
  EXPECT_THAT(text, HasSubstr("id=\"layers\""));
  EXPECT_THAT(text, Not(HasSubstr("id=\"sensitivity\"")));
  EXPECT_THAT(text, HasSubstr("1 / 16.0"));
  EXPECT_THAT(text, HasSubstr("prefers-color-scheme: dark"));
  for (const char* elsewhere : {"src=\"", "href=\"", "@import", "url("}) {
    EXPECT_THAT(text, Not(HasSubstr(elsewhere))) << elsewhere;
  }
}

TEST(Page, WithoutTheLibraryHasTheTables) {
  const std::string text = format_page(small_report(), Figures::object(), std::nullopt);
  EXPECT_THAT(text, HasSubstr("libjs-chart.js"));
  EXPECT_THAT(text, HasSubstr("90.00 %"));
  EXPECT_THAT(text, HasSubstr("Layers in numbers"));
  EXPECT_THAT(text, Not(HasSubstr("<canvas")));
}

TEST(Page, DataCannotEndTheScript) {
  Report report = small_report();
  report.rows[0].note = "</script><b>";
  const std::string text = format_page(report, Figures::object(), std::nullopt);
  EXPECT_THAT(text, Not(HasSubstr("</script><b>")));
  EXPECT_THAT(text, HasSubstr("\\u003c/script>"));
}

TEST(PlottingLibrary, IsTheFirstThatCanBeUsed) {
  const TemporaryFolder folder;
  std::ofstream(folder / "broken.js") << "x = '</script>'";
  std::ofstream(folder / "chart.js") << "chart";
  EXPECT_EQ(read_plotting_library({folder / "missing.js", folder / "broken.js", folder / "chart.js"}),
            "chart");
  EXPECT_EQ(read_plotting_library({folder / "missing.js"}), std::nullopt);
}

}  // namespace
}  // namespace nibble
