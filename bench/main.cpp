#include "bench/bench.h"
#include "cfg/program.h"

int main(int argc, char** argv) {
  nibble::BenchOptions options;
  return nibble::run_program(
      argc, argv, "bench",
      "Measures the networks in chkp/: accuracy, agreement with FP32, speed, size and signature of each file",
      [&](CLI::App& app) { nibble::add_bench_options(app, options); },
      [&] { return nibble::run_bench(options); });
}
