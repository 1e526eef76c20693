#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace nibble {

/// The frame of every program: --help, --version, --threads N, and exit codes.
///
/// `add_options` declares the program's own options; then the command line is parsed, and `work` runs and
/// returns the exit code. A wrong option or an InputError gives 2, any other exception 1, each with one
/// sentence on stderr that begins with the program's name.
int run_program(int argc, char** argv, const char* name, const char* description,
                const std::function<void(CLI::App&)>& add_options, const std::function<int()>& work);

}  // namespace nibble
