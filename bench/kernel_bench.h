#pragma once

namespace nibble {

/// Registers and runs the benchmarks that Google Benchmark's options select:
///
///   conv/<kernel>/<layer>/<batch>         a row of the kernels' registry on each distinct layer, 1 thread
///   conv/onednn_<kind>/<layer>/<batch>    oneDNN's bare convolutions of this network, all threads
///   network/onednn_<kind>/<batch>         a whole network and its bare convolutions, in turn
///   peak/<probe>                          the instructions alone
///
/// Returns the exit code: 1 when a kernel was faster than its probe, for then one of the two is wrong.
int run_kernel_benchmarks();

/// What --help prints before Google Benchmark's own options.
void print_kernel_bench_help();

}  // namespace nibble
