#include <benchmark/benchmark.h>

#include "bench/kernel_bench.h"
#include "cfg/program.h"

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv, nibble::print_kernel_bench_help);
  return nibble::run_program(
      argc, argv, "kernel_bench", "Speed of each kernel on each layer, beside the CPU's own peak",
      [](CLI::App&) {}, [] { return nibble::run_kernel_benchmarks(); });
}
