#pragma once

#include "kernels/cpu.h"

namespace nibble {

/// What the CPU has, capped by the environment variable NIBBLE_MAX_ISA; throws InputError when that names no
/// instruction set. Warns once on stderr where the CPU leaves only the scalar reference.
InstructionSet effective_instruction_set();

}  // namespace nibble
