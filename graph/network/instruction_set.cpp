#include "graph/network/instruction_set.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>

#include "graph/network/error.h"

namespace nibble {

namespace {

void warn_once_without_vectors() {
  static std::once_flag warned;
  if (has_avx2()) return;
  std::call_once(warned, [] {
    std::fputs("nibble: this CPU has no AVX2 and FMA, so networks run on the scalar reference, very slowly\n",
               stderr);
  });
}

}  // namespace

InstructionSet effective_instruction_set() {
  warn_once_without_vectors();
  const char* cap = std::getenv("NIBBLE_MAX_ISA");
  if (cap == nullptr) return detected_instruction_set();
  try {
    return capped_instruction_set(cap);
  } catch (const std::invalid_argument& error) {
    throw InputError(std::string("NIBBLE_MAX_ISA: ") + error.what());
  }
}

}  // namespace nibble
