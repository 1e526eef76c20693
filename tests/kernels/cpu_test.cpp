#include "kernels/cpu.h"

#include <gmock/gmock.h>

#include <stdexcept>

namespace nibble {
namespace {

TEST(InstructionSet, CapsLowerOnly) {
  EXPECT_EQ(capped_instruction_set("reference"), InstructionSet::reference);
  EXPECT_LE(capped_instruction_set("avx2"), InstructionSet::avx2);
  EXPECT_EQ(capped_instruction_set("avx512_amx"), detected_instruction_set());
}

TEST(InstructionSet, RefusesUnknownNamesAndListsTheKnownOnes) {
  for (const char* name : {"", "AVX2", "avx", "avx512"}) {
    try {
      capped_instruction_set(name);
      FAIL() << name << " was accepted";
    } catch (const std::invalid_argument& error) {
      EXPECT_THAT(error.what(),
                  testing::HasSubstr("reference, avx2, avx512_vnni, avx512_vbmi or avx512_amx"));
    }
  }
}

}  // namespace
}  // namespace nibble
