#include "graph/network/instruction_set.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "graph/network/error.h"

namespace nibble {

InstructionSet effective_instruction_set() {
  const char* cap = std::getenv("NIBBLE_MAX_ISA");
  if (cap == nullptr) return detected_instruction_set();
  try {
    return capped_instruction_set(cap);
  } catch (const std::invalid_argument& error) {
    throw InputError(std::string("NIBBLE_MAX_ISA: ") + error.what());
  }
}

}  // namespace nibble
