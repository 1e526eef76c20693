#include "bench/peaks.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <sstream>

#include "bench/peak_runs.h"
#include "bench/system.h"
#include "graph/network/error.h"
#include "graph/onednn/int8_network.h"

namespace nibble {
namespace {

// Steps a cycle after AMD's Software Optimization Guides for family 19h (Zen 3: 56665, Zen 4: 57647), whose
// tables list the pipes of each instruction: of the four vector pipes, 256-bit multiplications, integer and
// float, go to two, byte shuffles to two. In int8_avx2 a step has two multiplications. Zen 4 has one 512-bit
// instruction a cycle where 256 bits have two.
//
// Only the instructions that multiply or look up count as the peak. The sum of the products goes to the pipes
// that are left, but the pipes are chosen before it is known which will be free, so both together may stay
// below the documented rate: the probes named _add, which no documentation speaks of, show by how much.
// Saturating additions of bytes never go to the pipes of look-ups (measured on Zen 5).
constexpr PeakProbe kProbes[] = {
    {"fp32_avx2", "vfmadd ymm", "avx2 fma", 8, 2, 2, run_fp32_avx2},
    {"int16_avx2", "vpmaddwd ymm", "avx2", 16, 2, 2, run_int16_avx2},
    {"int8_avx2", "vpmaddubsw, vpmaddwd ymm", "avx2", 32, 1, 1, run_int8_avx2},
    {"int4_avx2", "vpmaddubsw ymm", "avx2", 32, 2, 2, run_int4_avx2},
    {"int2_avx2", "vpshufb ymm", "avx2", 64, 2, 2, run_int2_avx2},
    {"fp32_avx512", "vfmadd zmm", "avx512f", 16, 0, 1, run_fp32_avx512},
    {"bf16_avx512_bf16", "vdpbf16ps zmm", "avx512f avx512_bf16", 32, 0, 1, run_bf16_avx512_bf16},
    {"int8_avx512_vnni", "vpdpbusd zmm", "avx512f avx512_vnni", 64, 0, 1, run_int8_avx512_vnni},
    {"int2_avx512_vbmi", "vpermb zmm", "avx512bw avx512vbmi", 192, 0, 1, run_int2_avx512_vbmi},
    {"table128_avx512_vbmi", "vpermi2b zmm", "avx512bw avx512vbmi", 192, 0, 1, run_table128_avx512_vbmi},
    {"int8_avx512_amx", "tdpbsud tmm", "amx_tile amx_int8", 16384, 0, 0, run_int8_avx512_amx},
    {"bf16_avx512_amx", "tdpbf16ps tmm", "amx_tile amx_bf16", 8192, 0, 0, run_bf16_avx512_amx},

    {"int16_avx2_add", "vpmaddwd, vpaddd ymm", "avx2", 16, 0, 0, run_int16_add_avx2},
    {"int8_avx2_add", "vpmaddubsw, vpmaddwd, vpaddd ymm", "avx2", 32, 0, 0, run_int8_add_avx2},
    {"int4_avx2_add", "vpmaddubsw, vpaddw ymm", "avx2", 32, 0, 0, run_int4_add_avx2},
    {"int2_avx2_add", "vpshufb, vpaddusb ymm", "avx2", 64, 0, 0, run_int2_add_avx2},
    {"int2_avx512_vbmi_add", "vpermb, vpaddusb zmm", "avx512bw avx512vbmi", 192, 0, 0,
     run_int2_add_avx512_vbmi},
    {"table128_avx512_vbmi_add", "vpermi2b, vpaddusb zmm", "avx512bw avx512vbmi", 192, 0, 0,
     run_table128_add_avx512_vbmi},
};

std::optional<double> documented_steps(const PeakProbe& probe) {
  const Microarchitecture cpu = microarchitecture();
  const double steps = cpu == Microarchitecture::zen3   ? probe.zen3_steps
                       : cpu == Microarchitecture::zen4 ? probe.zen4_steps
                                                        : 0;
  return steps > 0 ? std::optional(steps) : std::nullopt;
}

bool has_features(const PeakProbe& probe) {
  std::istringstream words(probe.cpu_features);
  for (std::string feature; words >> feature;) {
    if (!cpu_has(feature)) return false;
    // The system has to allow them too.
    if (feature == "amx_tile" && detected_instruction_set() < InstructionSet::avx512_amx) return false;
  }
  return true;
}

/// `additions` (a multiple of 16), each waiting for the one before: one a cycle on every CPU. Two registers,
/// since renaming takes additions of constants out of the chain on some.
void run_addition_chain(std::int64_t additions) {
  std::uint64_t sum = 1;
  const std::uint64_t increment = 3;
  for (std::int64_t i = 0; i < additions; i += 16) {
    asm volatile(
        "add %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\t"
        "add %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\t"
        "add %1, %0\n\tadd %1, %0"
        : "+r"(sum)
        : "r"(increment)
        : "cc");
  }
}

template <typename Work>
double seconds_of(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::vector<const PeakProbe*> available_probes() {
  std::vector<const PeakProbe*> probes;
  for (const PeakProbe& probe : kProbes) {
    if (has_features(probe)) probes.push_back(&probe);
  }
  return probes;
}

const PeakProbe* find_probe(const std::string& name) {
  for (const PeakProbe& probe : kProbes) {
    if (name == probe.name && has_features(probe)) return &probe;
  }
  return nullptr;
}

std::string probe_name(InstructionSet instruction_set, int weight_bits, int activation_bits) {
  const int widest = std::max(weight_bits, activation_bits);
  switch (instruction_set) {
    case InstructionSet::reference:
      return "";
    case InstructionSet::avx2:
      break;
    case InstructionSet::avx512_vnni:
      if (widest <= 8) return "int8_avx512_vnni";
      break;
    case InstructionSet::avx512_vbmi:
      if (widest == 2) return "int2_avx512_vbmi";
      if (widest <= 8) return "int8_avx512_vnni";
      break;
    case InstructionSet::avx512_amx:
      if (widest <= 8) return "int8_avx512_amx";
      break;
  }
  // Where one side has at most 4 bits, sums of products stay in 16 bits for a while.
  if (widest == 16) return "int16_avx2";
  if (widest == 2) return "int2_avx2";
  return std::min(weight_bits, activation_bits) <= 4 ? "int4_avx2" : "int8_avx2";
}

std::string onednn_probe_name(int bits) {
  const std::string isa = onednn_isa();
  const bool amx = isa.starts_with("avx512_core_amx");
  if (bits == 32) return isa.starts_with("avx512") ? "fp32_avx512" : "fp32_avx2";
  if (bits == 16) return amx ? "bf16_avx512_amx" : "bf16_avx512_bf16";
  return amx ? "int8_avx512_amx" : onednn_has_vnni() ? "int8_avx512_vnni" : "int8_avx2";
}

MeasuredPeak measure_peak(const PeakProbe& probe, double seconds) {
  // 40 microseconds each, of AMX 650: short enough to fall between two disturbances, and to share one clock
  // rate.
  constexpr std::int64_t kAdditions = 16 * 8192;
  constexpr std::int64_t kSteps = 12 * 10000;
  constexpr int kFewestPairs = 200;

  MeasuredPeak peak{};
  peak.documented = documented_steps(probe);
  double best_chain = 1e9;
  double best_probe = 1e9;
  const auto start = std::chrono::steady_clock::now();
  for (int pairs = 0;; ++pairs) {
    best_chain = std::min(best_chain, seconds_of([] { run_addition_chain(kAdditions); }));
    best_probe = std::min(best_probe, seconds_of([&] { probe.run(kSteps); }));
    peak.hertz = static_cast<double>(kAdditions) / best_chain;
    peak.steps_per_cycle = static_cast<double>(kSteps) / best_probe / peak.hertz;
    const bool reached = !peak.documented || *peak.documented_fraction() >= kLeastDocumentedFraction;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if ((reached && pairs >= kFewestPairs) || elapsed.count() > seconds) break;
  }
  peak.macs_per_second = probe.macs_per_step * static_cast<double>(kSteps) / best_probe;
  return peak;
}

const MeasuredPeak& peak_of(const PeakProbe& probe) {
  static std::map<const PeakProbe*, MeasuredPeak> measured;
  const auto found = measured.find(&probe);
  if (found != measured.end()) return found->second;
  const MeasuredPeak peak = measure_peak(probe, 5);
  if (peak.documented && *peak.documented_fraction() < kLeastDocumentedFraction) {
    throw RunError(fmt::format(
        "the probe {} ({}) reached {:.2f} steps a cycle of {:g} documented ones: other work disturbs this "
        "machine, measure again when it is quiet",
        probe.name, probe.instructions, peak.steps_per_cycle, *peak.documented));
  }
  return measured.emplace(&probe, peak).first->second;
}

}  // namespace nibble
