#include "kernels/cpu.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace nibble {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"reference", "avx2", "avx512_vnni", "avx512_vbmi"};

}  // namespace

std::string_view name_of(InstructionSet instruction_set) {
  return kNames[static_cast<std::size_t>(instruction_set)];
}

InstructionSet detected_instruction_set() {
#if defined(__x86_64__)
  // GCC's and Clang's own checks ask CPUID and, through XGETBV, whether the system saves the registers.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return InstructionSet::reference;
  const bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vnni");
  if (!vnni) return InstructionSet::avx2;
  return __builtin_cpu_supports("avx512vbmi") ? InstructionSet::avx512_vbmi : InstructionSet::avx512_vnni;
#else
  return InstructionSet::reference;
#endif
}

bool has_avx2() {
  static const bool has = detected_instruction_set() >= InstructionSet::avx2;  // asked for in loops' callers
  return has;
}

bool has_avx512_bf16() {
#if defined(__x86_64__)
  static const bool has =
      detected_instruction_set() >= InstructionSet::avx512_vnni && __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

InstructionSet capped_instruction_set(std::string_view cap) {
  const auto found = std::find(kNames.begin(), kNames.end(), cap);
  if (found == kNames.end()) {
    throw std::invalid_argument("there is no instruction set '" + std::string(cap) +
                                "'; choose reference, avx2, avx512_vnni or avx512_vbmi");
  }
  return std::min(static_cast<InstructionSet>(found - kNames.begin()), detected_instruction_set());
}

}  // namespace nibble
