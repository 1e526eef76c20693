#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace nibble {

/// "AMD EPYC 7763 64-Core Processor"; "unknown CPU" where /proc/cpuinfo does not say.
std::string cpu_name();

/// Whether /proc/cpuinfo lists the feature, as it spells it: "avx2", "avx512_vnni", "avx512vbmi".
bool cpu_has(const std::string& feature);

/// Those whose instruction rates are documented here (peaks.cpp).
enum class Microarchitecture { zen3, zen4, other };
Microarchitecture microarchitecture();

/// The most memory that this process ever had in RAM; nothing where the system does not tell.
std::optional<std::int64_t> peak_memory_bytes();

/// oneDNN's version, "3.2.0 (git commit ...)" shortened to "3.2.0".
std::string onednn_version();

/// The instruction set that oneDNN uses, after ONEDNN_MAX_CPU_ISA: "avx2", "avx512_core_bf16".
std::string onednn_isa();

}  // namespace nibble
