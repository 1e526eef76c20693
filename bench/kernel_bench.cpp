#include "bench/kernel_bench.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <omp.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "bench/bare_convolutions.h"
#include "bench/kernel_layer.h"
#include "bench/network_comparison.h"
#include "bench/peaks.h"
#include "bench/synthetic_network.h"
#include "bench/system.h"
#include "graph/data/cifar10.h"
#include "graph/network/instruction_set.h"
#include "graph/onednn/float_network.h"
#include "graph/onednn/int8_network.h"
#include "kernels/registry.h"
#include "nibble_version.h"

namespace nibble {
namespace {

/// Sentences about results that cannot be right.
std::vector<std::string> failures;

const PeakProbe* probe_of(BareKind kind) {
  return find_probe(onednn_probe_name(kind == BareKind::int8 ? 8 : 32));
}

/// Runs `work` as often as the library wants, then sets the counters GMAC/s (valid taps) and, where the
/// instructions have a probe, peak: the fraction of `threads` times the probe's rate, which cannot be above
/// `most`.
template <typename Work>
void measure_rate(benchmark::State& state, const std::string& name, double macs, const PeakProbe* probe,
                  int threads, double most, Work&& work) {
  work();
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) work();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  const double rate = macs * static_cast<double>(state.iterations()) / elapsed.count();
  state.counters["GMAC/s"] = rate / 1e9;
  if (probe == nullptr) return;
  const double fraction = rate / (peak_of(*probe).macs_per_second * threads);
  state.counters["peak"] = fraction;
  if (fraction > most) {
    failures.push_back(fmt::format("{:.3f} of the peak of {} ({})", fraction, probe->name, name));
    state.SkipWithError("faster than the instructions that it is made of");
  }
}

std::string describe(const DistinctLayer& layer) {
  const Convolution& c = layer.convolution;
  return fmt::format("{}x{} stride {}, {} -> {} channels, {}x{}", c.kernel, c.kernel, c.stride,
                     c.input_channels, c.output_channels, c.input_height, c.input_width);
}

void register_kernels(const std::vector<DistinctLayer>& layers) {
  const InstructionSet limit = effective_instruction_set();
  for (const ConvolutionKernel& kernel : convolution_kernels()) {
    if (kernel.instruction_set > limit) continue;
    for (const DistinctLayer& layer : layers) {
      if (!KernelLayer::supported(kernel, layer)) continue;
      const std::string name =
          fmt::format("conv/{}/{}/{}", kernel.name, layer.convolution.name, kernel.lanes);
      benchmark::RegisterBenchmark(name.c_str(), [&kernel, layer, name](benchmark::State& state) {
        KernelLayer tile(kernel, layer);
        state.SetLabel(describe(layer));
        const PeakProbe* probe =
            find_probe(probe_name(kernel.instruction_set, kernel.weight_bits, kernel.activation_bits));
        measure_rate(state, name, tile.multiply_accumulates(), probe, 1, kernel.filters_lines ? 2.0 : 1.0,
                     [&] { tile.run(); });
      });
    }
  }
}

void register_bare_convolutions(const std::vector<DistinctLayer>& layers) {
  for (const BareKind kind : {BareKind::f32_nhwc, BareKind::f32_any, BareKind::int8}) {
    for (const DistinctLayer& layer : layers) {
      for (const int batch : {1, 64}) {
        const std::string name = fmt::format("conv/{}/{}/{}", name_of(kind), layer.convolution.name, batch);
        benchmark::RegisterBenchmark(name.c_str(), [kind, layer, batch, name](benchmark::State& state) {
          BareConvolutions bare(layer, kind, batch);
          state.SetLabel(describe(layer) + ", " + bare.implementation());
          measure_rate(state, name, bare.multiply_accumulates(), probe_of(kind), omp_get_max_threads(), 1,
                       [&] { bare.run(); });
        });
      }
    }
  }
}

void report_comparison(benchmark::State& state, const NetworkComparison& comparison, double bar) {
  for (auto _ : state) state.SetIterationTime(1 / comparison.images_per_second);
  state.counters["images/s"] = comparison.images_per_second;
  state.counters["bare images/s"] = comparison.bare_images_per_second;
  state.counters["bare batch"] = comparison.bare_batch;
  state.counters["ratio"] = comparison.ratio();
  state.counters["bar"] = bar;
  state.SetLabel(name_of(comparison.bare_kind));
}

constexpr int kComparisonRounds = 15;

void register_networks(const NetworkDescription& network) {
  for (const int batch : {1, 64, 1024}) {
    const auto run = [batch, network](auto& engine, benchmark::State& state,
                                      const std::vector<BareKind>& kinds, double bar) {
      const Dataset images = generated_images(batch);
      std::vector<float> logits(static_cast<std::size_t>(batch * network.classes));
      report_comparison(
          state,
          compare_with_bare(
              network, batch, kinds, [&] { engine.run(images.pixels, batch, logits); }, kComparisonRounds),
          bar);
    };
    benchmark::RegisterBenchmark(fmt::format("network/onednn_f32/{}", batch).c_str(),
                                 [=](benchmark::State& state) {
                                   FloatNetwork engine(network, synthetic_parameters(network), batch);
                                   run(engine, state, {BareKind::f32_nhwc, BareKind::f32_any}, 0.90);
                                 })
        ->UseManualTime()
        ->Iterations(1);
    // Every layer on oneDNN, as the bare sum has it, even where pairs of products saturate.
    benchmark::RegisterBenchmark(fmt::format("network/onednn_int8/{}", batch).c_str(),
                                 [=](benchmark::State& state) {
                                   Int8Network engine(synthetic_quantized(network, 8), batch,
                                                      UnprovedLayers::saturating);
                                   run(engine, state, {BareKind::int8}, batch == 1 ? 0.73 : 0.80);
                                 })
        ->UseManualTime()
        ->Iterations(1);
  }
}

void register_peaks() {
  for (const PeakProbe* probe : available_probes()) {
    benchmark::RegisterBenchmark(fmt::format("peak/{}", probe->name).c_str(),
                                 [probe](benchmark::State& state) {
                                   const MeasuredPeak peak = peak_of(*probe);
                                   for (auto _ : state)
                                     state.SetIterationTime(probe->macs_per_step / peak.macs_per_second);
                                   state.counters["GMAC/s"] = peak.macs_per_second / 1e9;
                                   state.counters["GHz"] = peak.hertz / 1e9;
                                   state.counters["steps/cycle"] = peak.steps_per_cycle;
                                   if (peak.documented) state.counters["documented"] = *peak.documented;
                                   state.SetLabel(probe->instructions);
                                 })
        ->UseManualTime()
        ->Iterations(1);
  }
}

}  // namespace

void print_kernel_bench_help() {
  std::printf(
      "Speed of each kernel on each layer, beside the CPU's own peak\n"
      "Usage: kernel_bench [--threads N] [--version] [options of Google Benchmark, below]\n"
      "  conv/<kernel>/<layer>/<batch>        a row of the kernels' registry on one thread, or oneDNN on "
      "all\n"
      "  network/onednn_<kind>/<batch>        a network beside the bare sum of its convolutions, in turn\n"
      "  peak/<probe>                         the instructions that multiply, alone\n"
      "NIBBLE_MAX_ISA and ONEDNN_MAX_CPU_ISA cap the instruction sets.\n\n");
  benchmark::PrintDefaultHelp();
}

int run_kernel_benchmarks() {
  const NetworkDescription network = describe_network("resnet_344", 0, "");
  const std::vector<DistinctLayer> layers = distinct_layers(network);
  register_peaks();
  register_kernels(layers);
  register_bare_convolutions(layers);
  register_networks(network);
  benchmark::AddCustomContext("cpu", cpu_name());
  benchmark::AddCustomContext("kernels' instruction set", std::string(name_of(effective_instruction_set())));
  benchmark::AddCustomContext("onednn", onednn_version() + ", " + onednn_isa());
  benchmark::AddCustomContext("threads", std::to_string(omp_get_max_threads()));
  benchmark::AddCustomContext("commit", commit);
  const bool any = benchmark::RunSpecifiedBenchmarks() != 0;  // it says itself that nothing matches
  benchmark::Shutdown();
  if (!any) return 2;
  for (const std::string& failure : failures) std::cerr << "kernel_bench: " << failure << "\n";
  return failures.empty() ? 0 : 1;
}

}  // namespace nibble
