#include "kernels/cpu.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace nibble {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"reference", "avx2", "avx512_vnni", "avx512_vbmi",
                                                    "avx512_amx"};

/// Whether the CPU multiplies tiles of bytes and the system saves the tiles of a process that asks.
bool has_amx() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h, Linux 5.16 and later
  constexpr long kTileData = 18;               // the state's number in XCR0
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

std::string_view name_of(InstructionSet instruction_set) {
  return kNames[static_cast<std::size_t>(instruction_set)];
}

InstructionSet detected_instruction_set(InstructionSet limit) {
  // GCC's and Clang's own checks ask CPUID and, through XGETBV, whether the system saves the registers.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return InstructionSet::reference;
  const bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vnni");
  if (!vnni) return std::min(limit, InstructionSet::avx2);
  const bool vbmi = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("bmi2");
  if (!vbmi) return std::min(limit, InstructionSet::avx512_vnni);
  return limit == InstructionSet::avx512_amx && !has_amx() ? InstructionSet::avx512_vbmi : limit;
}

bool has_avx2() {
  // Asked for in loops' callers.
  static const bool has = detected_instruction_set(InstructionSet::avx2) == InstructionSet::avx2;
  return has;
}

bool has_avx512_bf16() {
  static const bool has =
      detected_instruction_set(InstructionSet::avx512_vnni) == InstructionSet::avx512_vnni &&
      __builtin_cpu_supports("avx512bf16");
  return has;
}

InstructionSet capped_instruction_set(std::string_view cap) {
  const auto found = std::find(kNames.begin(), kNames.end(), cap);
  if (found == kNames.end()) {
    throw std::invalid_argument("there is no instruction set '" + std::string(cap) +
                                "'; choose reference, avx2, avx512_vnni, avx512_vbmi or avx512_amx");
  }
  return detected_instruction_set(static_cast<InstructionSet>(found - kNames.begin()));
}

}  // namespace nibble
