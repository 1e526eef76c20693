#pragma once

#include <string_view>

namespace nibble {

/// What kernels are written for, in ascending order: each includes the ones before it.
enum class InstructionSet {
  reference,    ///< plain C++
  avx2,         ///< AVX2 and FMA
  avx512_vnni,  ///< AVX-512 F, BW, VL, DQ and VNNI
  avx512_vbmi,  ///< the same, VBMI and BMI2
  avx512_amx    ///< the same and AMX for 8-bit integers
};

/// "reference", "avx2", "avx512_vnni", "avx512_vbmi" or "avx512_amx".
std::string_view name_of(InstructionSet instruction_set);

/// The largest one up to `limit` that this CPU and operating system have. Linux gives AMX's registers to
/// processes that ask for them, for good, and signal stacks must have room for them then: this asks, if
/// `limit` is AMX.
InstructionSet detected_instruction_set(InstructionSet limit = InstructionSet::avx512_amx);

/// Whether this CPU runs loops compiled for AVX2 and FMA.
bool has_avx2();

/// The same for AVX-512 F, BW, VL, DQ and BF16.
bool has_avx512_bf16();

/// The detected one, but not above the one that `cap` names. Throws std::invalid_argument with a sentence
/// that lists the names when `cap` is none of them.
InstructionSet capped_instruction_set(std::string_view cap);

}  // namespace nibble
