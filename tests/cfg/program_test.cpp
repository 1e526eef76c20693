#include "cfg/program.h"

#include <gmock/gmock.h>
#include <omp.h>

#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "graph/network/error.h"
#include "nibble_version.h"
#include "tests/environment.h"

namespace nibble {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

struct Result {
  int code;
  std::string output;
  std::string messages;
};

struct Options {
  int epochs = 0;
  std::string file;
};

/// A program "sample" with options --epochs N and --cfg FILE.
int sample(std::vector<std::string> arguments, const std::function<int()>& work) {
  arguments.insert(arguments.begin(), "sample");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  Options options;
  return run_program(
      static_cast<int>(arguments.size()), argv.data(), "sample", "Does nothing.",
      [&](CLI::App& app) {
        app.add_option("--epochs", options.epochs);
        app.add_option("--cfg", options.file);
      },
      work);
}

Result run(
    const std::vector<std::string>& arguments, const std::function<int()>& work = [] { return 0; }) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Result result;
  result.code = sample(arguments, work);
  result.output = testing::internal::GetCapturedStdout();
  result.messages = testing::internal::GetCapturedStderr();
  return result;
}

TEST(Program, RunsItsWork) {
  const Result result = run({"--epochs", "3"}, [] {
    std::cout << "result\n";
    return 0;
  });
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.output, "result\n");
  EXPECT_EQ(result.messages, "");
}

TEST(Program, RefusesAnUnknownInstructionSetBeforeItsWork) {
  const EnvironmentVariable unknown("NIBBLE_MAX_ISA", "avx3");
  bool worked = false;
  const Result result = run({}, [&] {
    worked = true;
    return 0;
  });
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.messages, StartsWith("sample: NIBBLE_MAX_ISA: "));
  EXPECT_FALSE(worked);
}

TEST(Program, PrintsVersionAndHelpOnTheStandardOutput) {
  EXPECT_EQ(run({"--version"}).code, 0);
  EXPECT_EQ(run({"--version"}).output, std::string("sample ") + version_and_commit + "\n");
  const Result help = run({"--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.output, HasSubstr("--epochs"));
  EXPECT_THAT(help.output, HasSubstr("--threads"));
}

TEST(Program, SetsTheNumberOfThreads) {
  const int before = omp_get_max_threads();
  int threads = 0;
  EXPECT_EQ(run({"--threads", "3"},
                [&] {
                  threads = omp_get_max_threads();
                  return 0;
                })
                .code,
            0);
  EXPECT_EQ(threads, 3);
  omp_set_num_threads(before);
}

TEST(Program, MapsExceptionsToExitCodes) {
  const Result input = run({}, []() -> int { throw InputError("a.json is wrong; mend it"); });
  EXPECT_EQ(input.code, 2);
  EXPECT_EQ(input.messages, "sample: a.json is wrong; mend it\n");
  EXPECT_EQ(input.output, "");
  const Result failure = run({}, []() -> int { throw RunError("no space"); });
  EXPECT_EQ(failure.code, 1);
  EXPECT_EQ(failure.messages, "sample: no space\n");
  const Result memory = run({}, []() -> int { throw std::bad_alloc(); });
  EXPECT_EQ(memory.code, 1);
  EXPECT_EQ(memory.messages, "sample: there is not enough memory\n");
  EXPECT_EQ(run({}, []() -> int { throw std::out_of_range("x"); }).code, 1);
  EXPECT_EQ(run({}, [] { return 1; }).code, 1);
}

TEST(Program, RefusesWrongCommandLinesInOneSentence) {
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{"--epohcs", "3"}, "sample: there is no option --epohcs; did you mean --epochs?"},
      {{"--thread=3"}, "sample: there is no option --thread; did you mean --threads?"},
      {{"-x"}, "sample: there is no option -x"},
      {{"surplus"}, "sample: the argument surplus is one too many"},
      {{"--epochs", "many"}, "sample: "},
      {{"--epochs"}, "sample: --epochs"},
      {{"--threads", "0"}, "sample: --threads: "},
      {{"--threads", "-2"}, "sample: --threads: "},
  };
  for (const auto& [arguments, message] : cases) {
    bool worked = false;
    const Result result = run(arguments, [&] {
      worked = true;
      return 0;
    });
    EXPECT_EQ(result.code, 2) << message;
    EXPECT_THAT(result.messages, StartsWith(message));
    EXPECT_THAT(result.messages, testing::EndsWith("(--help lists the options)\n"));
    EXPECT_EQ(std::count(result.messages.begin(), result.messages.end(), '\n'), 1) << result.messages;
    EXPECT_EQ(result.output, "");
    EXPECT_FALSE(worked);
  }
}

TEST(Program, NamesTheMisspeltOptionRatherThanTheMissingOne) {
  std::string name = "sample";
  std::string misspelt = "--bist";
  std::string value = "8";
  char* argv[] = {name.data(), misspelt.data(), value.data(), nullptr};
  int bits = 0;
  testing::internal::CaptureStderr();
  const int code = run_program(
      3, argv, "sample", "", [&](CLI::App& app) { app.add_option("--bits", bits)->required(); },
      [] { return 0; });
  EXPECT_EQ(code, 2);
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "sample: there is no option --bist; did you mean --bits? (--help lists the options)\n");
}

TEST(ProgramDeathTest, ResultsThatCannotBeWrittenAreAFailure) {
  const auto print_to_full_disk = [] {
    if (std::freopen("/dev/full", "w", stdout) == nullptr) std::exit(77);
    std::exit(sample({}, [] {
      std::cout << "result\n";
      return 0;
    }));
  };
  EXPECT_EXIT(print_to_full_disk(), testing::ExitedWithCode(1),
              "sample: cannot write to the standard output");
}

}  // namespace
}  // namespace nibble
