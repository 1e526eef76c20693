// The programs as users start them, on made-up checkpoints and without a data set.

#include <gmock/gmock.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "bench/sweep.h"
#include "kernels/cpu.h"
#include "tests/bench/checkpoints.h"
#include "tests/environment.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

using testing::HasSubstr;
using Json = nlohmann::json;

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

std::string content_of(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

class BenchProgram : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    const NetworkDescription network = describe_network("he", 8, "B");  // small: each row runs 1,000 images
    write_float_checkpoint(*folder_ / "chkp/p.safetensors", network);
    for (const int bits : {16, 8, 4, 2}) {
      write_quantized_checkpoint(*folder_ / ("chkp/p_int" + std::to_string(bits) + ".safetensors"), network,
                                 bits);
    }
    write_unfused_checkpoint(*folder_ / "chkp/p_int8_unfused.safetensors", network);
    std::ofstream(*folder_ / "p.json")
        << R"({"cfg": {"checkpoint_path": "./chkp/p"}, "cfg_CIFAR": {"root": "./none", "download": false}})";
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }

  /// In the folder, without a data set unless `environment` leaves it.
  static Outcome run(const std::string& program, const std::string& arguments,
                     const std::string& environment = "env -u CIFAR10_ROOT") {
    const std::filesystem::path out = *folder_ / "stdout";
    const std::filesystem::path err = *folder_ / "stderr";
    const std::string command = "cd '" + folder_->path().string() + "' && " + environment + " '" + program +
                                "' " + arguments + " >'" + out.string() + "' 2>'" + err.string() + "'";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, content_of(out), content_of(err)};
  }
  static Outcome bench(const std::string& arguments) {
    return run(NIBBLE_BENCH, "--cfg p.json " + arguments);
  }
  static Json bench_json(const std::string& arguments) {
    const Outcome outcome = bench("--report json --images 96 --batch 32 --runs 2 " + arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return Json::parse(outcome.out, nullptr, false);
  }

  static TemporaryFolder* folder_;
};
TemporaryFolder* BenchProgram::folder_ = nullptr;

TEST_F(BenchProgram, MeasuresHeldOutImages) {
  if (std::getenv("CIFAR10_ROOT") == nullptr) GTEST_SKIP() << "CIFAR10_ROOT is not set";
  const auto with_data = [](const std::string& arguments) {
    return run(NIBBLE_BENCH, "--cfg p.json " + arguments, "env");
  };
  const Outcome measured =
      with_data("--held-out 70 --batch 32 --runs 1 --models int8 --report json -o held_out.json");
  ASSERT_EQ(measured.code, 0) << measured.err;
  const Json json = Json::parse(content_of(*folder_ / "held_out.json"));
  EXPECT_EQ(json.at("context").at("dataset").at("name"), "CIFAR-10 validation");
  EXPECT_EQ(json.at("context").at("dataset").at("images"), 70);
  EXPECT_FALSE(json.at("rows").at(0).at("top1").is_null());
  const Outcome verified = with_data("--verify held_out.json");
  EXPECT_EQ(verified.code, 0) << verified.out << verified.err;
  Json other = json;
  other.at("rows").at(0).at("top1") = json.at("rows").at(0).at("top1").get<double>() + 1.0 / 70;
  std::ofstream(*folder_ / "held_out.json") << other;
  EXPECT_EQ(with_data("--verify held_out.json").code, 1);  // the same images were looked at
  EXPECT_EQ(with_data("--held-out 10001").code, 2);
}

TEST_F(BenchProgram, MeasuresEveryFile) {
  std::ofstream(*folder_ / "no_peers.json")
      << R"({"date": "2026-01-01", "cpu": "", "versions": {}, "rows": []})";
  const Json json = bench_json("--peers no_peers.json");
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json.at("context").at("dataset").at("images"), 96);
  EXPECT_TRUE(json.at("context").at("dataset").at("sha256").is_null());
  EXPECT_GT(json.at("context").at("peak_memory_bytes").get<double>(), 1e6);
  std::vector<std::string> names;
  for (const Json& row : json.at("rows")) {
    const auto name = row.at("name").get<std::string>();
    if (names.empty() || names.back() != name) names.push_back(name);
    EXPECT_TRUE(row.at("top1").is_null());
    EXPECT_TRUE(row.at("signature").is_null());
    if (row.at("file").is_null() || row.at("isa").is_null()) continue;  // a peer's, or BF16 without BF16
    EXPECT_EQ(row.at("seconds").at("runs").size(), 2U) << name;
    EXPECT_NEAR(row.at("images_per_second").get<double>(), 96 / row.at("seconds").at("mean").get<double>(),
                1e-6);
    EXPECT_EQ(row.at("signature_generated").get<std::string>().size(), 16U);
    EXPECT_GE(row.at("agreement").get<double>(), 0);
    EXPECT_LE(row.at("agreement").get<double>(), 1);
    EXPECT_EQ(row.at("file_bytes").get<std::uintmax_t>(),
              std::filesystem::file_size(*folder_ / row.at("file").get<std::string>()));
    EXPECT_LT(row.at("payload_bytes").get<double>(), row.at("file_bytes").get<double>());
    EXPECT_GT(row.at("first_logit_seconds").get<double>(), 0);
    EXPECT_LT(row.at("first_logit_seconds").get<double>(), 60);
  }
  EXPECT_THAT(names, testing::ElementsAre("Original", "PyTorch int2", "PyTorch int4", "PyTorch int8",
                                          "Fused PyTorch int8", "FP32", "BF16", "int16", "int8 unfused",
                                          "int8 fused", "int8", "int4", "int2"));
}

TEST_F(BenchProgram, BothEnginesGiveOneSignatureAtEightBits) {
  const Json rows = bench_json("--models p_int8").at("rows");
  std::map<std::string, std::string> signatures;
  for (const Json& row : rows) {
    signatures[row.at("name").get<std::string>() + "/" + row.at("engine").get<std::string>()] =
        row.at("signature_generated").get<std::string>();
  }
  const auto fused = signatures.contains("int8 fused/onednn+nibble")
                         ? signatures.at("int8 fused/onednn+nibble")
                         : signatures.at("int8 fused/onednn");
  EXPECT_EQ(fused, signatures.at("int8/nibble"));
}

TEST_F(BenchProgram, OneImageAtATimeGivesTheLatency) {
  const Outcome outcome = bench("--report json --images 20 --batch 1 --runs 1 --threads 1 --models int2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json latency = Json::parse(outcome.out).at("rows").at(0).at("latency_seconds");
  EXPECT_GT(latency.at("median").get<double>(), 0);
  EXPECT_GE(latency.at("p99").get<double>(), latency.at("median").get<double>());
}

TEST_F(BenchProgram, ProfilesLayers) {
  const double expected = static_cast<double>(describe_network("he", 8, "B").multiply_accumulates());
  // On two threads, full tiles of every kernel: images that go singly have no times of layers.
  const Outcome outcome = bench("--threads 2 --images 256 --batch 256 --runs 1 --profile --report json");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json rows = Json::parse(outcome.out).at("rows");
  for (const Json& row : rows) {
    if (row.at("layers").is_null()) {
      EXPECT_TRUE(row.at("isa").is_null()) << row;  // a peer's, or BF16 without BF16
      continue;
    }
    double share = 0;
    double macs = 0;
    for (const Json& layer : row.at("layers")) {
      share += layer.at("share").get<double>();
      macs += layer.at("multiply_accumulates").get<double>();
    }
    EXPECT_NEAR(share, 1, 1e-9) << row.at("name");
    EXPECT_NEAR(macs / 256 / expected, 1, 2e-5) << row.at("name");  // whether or not the linear layer counts
  }
}

TEST_F(BenchProgram, SaysWhereThereAreNoTimesOfLayers) {
  const Outcome outcome =
      bench("--threads 2 --images 8 --batch 1 --runs 1 --profile --models int2 --report json");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(Json::parse(outcome.out).at("rows").at(0).at("layers").is_null());
  EXPECT_THAT(outcome.err, HasSubstr("int2 computes some of 1 images one at a time"));
}

TEST_F(BenchProgram, WarnsOfImagesThatTheSourceWasTrainedOn) {
  const Outcome outcome = bench("--held-out 70 --runs 1 --models int8");  // whichever images are at hand
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("p.safetensors was trained on these images (it held out 0)"));
}

TEST_F(BenchProgram, MeasuresWhatOnednnCannotRun) {
  const std::filesystem::path file = *folder_ / "chkp/p_int8a4.safetensors";
  write_int8a4_checkpoint(file, describe_network("he", 8, "B"));
  const Outcome outcome = bench("--images 32 --batch 32 --runs 1 --report json");
  std::filesystem::remove(file);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("\"int8a4\""));
}

TEST_F(BenchProgram, SweepsInstructionSets) {
  const Json rows = bench_json("--isa-sweep --models int2,FP32").at("rows");
  std::vector<std::string> sets;
  for (const Json& row : rows) {
    if (row.at("name") != "int2") continue;
    sets.push_back(row.at("isa"));
    EXPECT_EQ(row.at("signature_generated"), rows.at(0).at("signature_generated"));
    EXPECT_EQ(row.at("seconds").at("runs").size(), 2U);
  }
  std::vector<std::string> expected;
  for (const SweepStep& step : sweep_steps()) expected.emplace_back(step.nibble_max_isa);
  EXPECT_EQ(sets, expected);
  const EnvironmentVariable cap("NIBBLE_MAX_ISA", "avx2");
  EXPECT_LE(sweep_steps().size(), 1U);
}

TEST_F(BenchProgram, ObeysTheCap) {
  // The scalar reference is slow: it is the cap only where nothing else is below the CPU's own set.
  const bool has_more = detected_instruction_set() > InstructionSet::avx2;
  const std::string cap = has_more ? "avx2" : "reference";
  const EnvironmentVariable variable("NIBBLE_MAX_ISA", cap.c_str());
  const Outcome outcome = bench("--report json --images 2 --batch 2 --runs 1 --models int2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(Json::parse(outcome.out).at("rows").at(0).at("isa"), cap);
}

TEST_F(BenchProgram, WritesAFileInEveryForm) {
  for (const char* form : {"md", "json", "html", "csv"}) {
    const Outcome outcome = bench(std::string("--images 32 --batch 32 --runs 1 --models int2 --report ") +
                                  form + " --output reports/report." + form);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(content_of(*folder_ / ("reports/report." + std::string(form))), HasSubstr("int2"));
  }
}

TEST_F(BenchProgram, RendersAnEarlierReportInEveryForm) {
  ASSERT_EQ(bench("--images 32 --batch 32 --runs 1 --models int2 --report json --output earlier.json").code,
            0);
  Json earlier = Json::parse(content_of(*folder_ / "earlier.json"));
  earlier.at("rows").at(0)["seconds"] = {{"mean", 12.5}, {"std", 0}, {"runs", {12.5}}};
  std::ofstream(*folder_ / "earlier.json") << earlier;
  EXPECT_EQ(Json::parse(bench("--render earlier.json --report json").out), earlier);
  for (const char* form : {"md", "html", "csv"}) {
    const Outcome outcome = bench(std::string("--render earlier.json --report ") + form);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_THAT(outcome.out, HasSubstr("12.5"));
  }
}

TEST_F(BenchProgram, VerifiesAndComparesAnEarlierReport) {
  // A float row and both engines; MeasuresEveryFile has the other rows.
  const std::string short_run = "--images 96 --batch 32 --runs 2 --models FP32,p_int8,int2 ";
  ASSERT_EQ(bench(short_run + "--report json --output base.json").code, 0);
  EXPECT_EQ(bench("--batch 32 --verify base.json").code, 0);
  const Outcome compared = bench(short_run + "--compare base.json --fail-above 100000% --report csv");
  EXPECT_EQ(compared.code, 0) << compared.err;
  EXPECT_THAT(compared.err, HasSubstr("int2 (nibble"));

  Json base = Json::parse(content_of(*folder_ / "base.json"));
  for (Json& row : base.at("rows")) {
    if (row.at("name") == "int2") row.at("signature_generated") = "0000000000000000";
    if (!row.at("seconds_without_loader").is_null()) row["seconds_without_loader"]["runs"] = {1e-9};
  }
  std::ofstream(*folder_ / "changed.json") << base;
  const Outcome verified = bench("--batch 32 --verify changed.json");
  EXPECT_EQ(verified.code, 1);
  EXPECT_THAT(verified.out, HasSubstr("signature_generated"));
  EXPECT_EQ(bench(short_run + "--compare changed.json --fail-above 3%").code, 1);
}

struct WrongInput {
  const char* arguments;
  const char* expected;
};

TEST_F(BenchProgram, RefusesWrongInputInOneSentence) {
  std::ofstream(*folder_ / "empty.json") << R"({"cfg": {"checkpoint_path": "./nothing/p"}})";
  std::ofstream(*folder_ / "occupied") << "";
  const WrongInput cases[] = {
      {"--models int3", "int4"},
      {"--report pdf", "md"},
      {"--batch 0", "--batch"},
      {"--runs 0", "--runs"},
      {"--nonsense", "--nonsense"},
      {"--peers missing.json", "missing.json"},
      {"--render missing.json", "missing.json"},
      {"--output occupied/report.md", "occupied"},
      {"--output .", ". is a folder or a device and stays as it is; name a file"},
      {"--fail-above 3%", "--compare"},
      {"--compare missing.json", "missing.json"},
      {"--verify missing.json", "missing.json"},
      {"--compare p.json --fail-above much", "much"},
      {"--render p.json --compare p.json", "--compare"},
      {"--render p.json --models int2", "--models"},
      {"--verify p.json --compare p.json", "--compare"},
      {"--verify p.json --output report.json", "--output"},
      {"--verify p.json --images 10", "--images"},
      {"--models int2 --peers missing.json", "missing.json"},
  };
  for (const WrongInput& wrong : cases) {
    const Outcome outcome = bench(wrong.arguments);
    EXPECT_EQ(outcome.code, 2) << wrong.arguments << outcome.err;
    EXPECT_EQ(outcome.out, "") << wrong.arguments;
    EXPECT_THAT(outcome.err, HasSubstr(wrong.expected)) << wrong.arguments;
  }
  const Outcome nothing = run(NIBBLE_BENCH, "--cfg empty.json");
  EXPECT_EQ(nothing.code, 2);
  EXPECT_THAT(nothing.err, HasSubstr("train"));
}

TEST_F(BenchProgram, NamesTheDamagedCheckpoint) {
  const std::filesystem::path file = *folder_ / "chkp/p_int4a8.safetensors";
  std::ofstream(file) << "cut";
  const Outcome outcome = bench("--runs 1");
  std::filesystem::remove(file);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("p_int4a8.safetensors"));
}

TEST_F(BenchProgram, HasHelpAndVersion) {
  for (const char* program : {NIBBLE_BENCH, NIBBLE_KERNEL_BENCH}) {
    const Outcome help = run(program, "--help");
    EXPECT_EQ(help.code, 0);
    EXPECT_THAT(help.out, HasSubstr("--threads"));
    EXPECT_EQ(run(program, "--version").code, 0);
    EXPECT_EQ(run(program, "--threads 0").code, 2);
  }
}

TEST_F(BenchProgram, KernelBenchRefusesAFilterThatMatchesNothing) {
  EXPECT_EQ(run(NIBBLE_KERNEL_BENCH, "--benchmark_filter=conv/int3").code, 2);
}

TEST_F(BenchProgram, KernelBenchNamesKernelLayerAndBatch) {
  const Outcome outcome = run(
      NIBBLE_KERNEL_BENCH,
      "--benchmark_filter='^conv/(int2_reference|onednn_int8)/blocks.8.conv1/1$' --benchmark_min_time=0.01 "
      "--benchmark_format=json");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = Json::parse(outcome.out);
  std::set<std::string> names;
  for (const Json& row : json.at("benchmarks")) {
    names.insert(row.at("run_name").get<std::string>());
    EXPECT_GT(row.at("GMAC/s").get<double>(), 0);
  }
  EXPECT_THAT(names, testing::ElementsAre("conv/int2_reference/blocks.8.conv1/1",
                                          testing::StartsWith("conv/onednn_int8/blocks.8.conv1/1")));
}

}  // namespace
}  // namespace nibble
