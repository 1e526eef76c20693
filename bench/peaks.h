#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cpu.h"

namespace nibble {

/// The instructions that multiply in a kernel, alone and in registers: nothing multiplies faster on this CPU
/// with these instructions. One file for each instruction set, peaks_<instruction set>.cpp.
struct PeakProbe {
  const char* name;          ///< "int4_avx2"
  const char* instructions;  ///< "vpmaddubsw, vpaddw"
  const char* cpu_features;  ///< as /proc/cpuinfo spells them, separated by spaces: all must be there
  double macs_per_step;      ///< multiply-accumulates of one pass through `instructions`
  double zen3_steps;         ///< documented steps a cycle; 0: not documented, or the CPU lacks them
  double zen4_steps;
  void (*run)(std::int64_t steps);  ///< about `steps` steps, rounded up to a multiple of 12
};

/// Probes whose instructions this CPU has.
std::vector<const PeakProbe*> available_probes();

/// nullptr when there is no such probe or the CPU lacks its instructions.
const PeakProbe* find_probe(const std::string& name);

/// The probe of the instructions that kernels for these widths multiply with; "" for the scalar reference.
std::string probe_name(InstructionSet instruction_set, int weight_bits, int activation_bits);

/// The probe of the fastest way that oneDNN has here to multiply 32 (FP32), 16 (BF16) or 8 bits.
std::string onednn_probe_name(int bits);

struct MeasuredPeak {
  double macs_per_second;  ///< of one thread
  double hertz;            ///< from a chain of dependent additions, in turn with the probe
  double steps_per_cycle;
  std::optional<double> documented;  ///< steps a cycle; nothing for a microarchitecture that is not listed

  /// Of the documented rate; nothing where that is unknown.
  std::optional<double> documented_fraction() const {
    return documented ? std::optional(steps_per_cycle / *documented) : std::nullopt;
  }
};

/// Least fraction of its documented rate at which a probe counts as a peak.
inline constexpr double kLeastDocumentedFraction = 0.95;

/// Many short pieces of chain and probe in turn, the fastest of each: what neighbours on the machine disturb
/// falls out. Goes on for up to `seconds` until the documented rate is reached; where none is documented it
/// makes 200 pairs, so that a machine that is slow throughout them gives too low a peak.
MeasuredPeak measure_peak(const PeakProbe& probe, double seconds = 0.5);

/// measure_peak, once for each probe in a process; throws RunError when the probe stays below
/// kLeastDocumentedFraction: figures relative to it would flatter.
const MeasuredPeak& peak_of(const PeakProbe& probe);

}  // namespace nibble
