#include "cfg/program.h"

#include <omp.h>

#include <iostream>
#include <new>
#include <string>
#include <vector>

#include "cfg/nearest.h"
#include "graph/network/error.h"
#include "graph/network/instruction_set.h"
#include "nibble_version.h"

namespace nibble {
namespace {

constexpr int kDone = 0;
constexpr int kFailed = 1;
constexpr int kWrongInput = 2;

/// One sentence for what CLI11 found wrong.
std::string explain(std::string sentence) {
  while (!sentence.empty() && (sentence.back() == '\n' || sentence.back() == '.')) sentence.pop_back();
  return sentence + " (--help lists the options)";
}

/// One sentence for an argument that is left over; an option that does not exist gets the nearest one.
std::string explain_extra(const CLI::App& app, const std::string& argument) {
  const std::string wrong = argument.substr(0, argument.find('='));
  if (!wrong.starts_with("-")) return explain("the argument " + wrong + " is one too many");
  std::vector<std::string> options;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) options.push_back("--" + name);
  }
  const std::string suggestion =
      wrong.starts_with("--") ? "; did you mean " + nearest_name(wrong, options) + "?" : "";
  return explain("there is no option " + wrong + suggestion);
}

int report(const char* name, const std::string& sentence, int code) {
  std::cout.flush();
  std::cerr << name << ": " << sentence << std::endl;
  return code;
}

}  // namespace

int run_program(int argc, char** argv, const char* name, const char* description,
                const std::function<void(CLI::App&)>& add_options, const std::function<int()>& work) {
  CLI::App app(description, name);
  int threads = 0;
  try {
    app.set_version_flag("--version", std::string(name) + " " + version_and_commit);
    app.add_option("--threads", threads, "Threads that compute (default: as many as OpenMP gives)")
        ->check(CLI::Range(1, 1024));
    add_options(app);
    app.allow_extras();  // refused below, with the nearest option
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    // A misspelled option explains a missing one.
    if (app.remaining_size() > 0)
      return report(name, explain_extra(app, app.remaining().front()), kWrongInput);
    return report(name, explain(error.what()), kWrongInput);
  }
  if (app.remaining_size() > 0) return report(name, explain_extra(app, app.remaining().front()), kWrongInput);
  try {
    if (threads > 0) omp_set_num_threads(threads);
    effective_instruction_set();  // a wrong NIBBLE_MAX_ISA is refused now and not after minutes of work
    const int code = work();
    std::cout.flush();
    if (!std::cout) return report(name, "cannot write to the standard output", kFailed);
    return code;
  } catch (const InputError& error) {
    return report(name, error.what(), kWrongInput);
  } catch (const std::bad_alloc&) {
    return report(name, "there is not enough memory", kFailed);
  } catch (const std::exception& error) {
    return report(name, error.what(), kFailed);
  }
}

}  // namespace nibble
