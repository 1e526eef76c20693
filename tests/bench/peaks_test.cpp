#include "bench/peaks.h"

#include <gtest/gtest.h>

#include "bench/system.h"

namespace nibble {
namespace {

/// What a probe must reach of its documented rate. A busy machine makes a probe look for quiet moments
/// longer, up to this time.
constexpr double kPatience = 30;

TEST(Peaks, ReachTheirDocumentedRates) {
  for (const PeakProbe* probe : available_probes()) {
    const MeasuredPeak peak = measure_peak(*probe, kPatience);
    EXPECT_GT(peak.hertz, 5e8) << probe->name;
    EXPECT_GT(peak.macs_per_second, 0) << probe->name;
    if (!peak.documented) continue;
    EXPECT_GE(*peak.documented_fraction(), kLeastDocumentedFraction) << probe->name;
    // More than documented would mean a wrong clock or a loop that the compiler shortened.
    EXPECT_LE(*peak.documented_fraction(), 1.05) << probe->name;
  }
}

TEST(Peaks, AreThereForEveryInstructionSetOfThisCpu) {
  for (const int weights : {16, 8, 4, 2}) {
    for (const int activations : {16, 8, 4, 2}) {
      for (const InstructionSet set : {InstructionSet::avx2, InstructionSet::avx512_vnni,
                                       InstructionSet::avx512_vbmi, InstructionSet::avx512_amx}) {
        const std::string name = probe_name(set, weights, activations);
        EXPECT_FALSE(name.empty());
        EXPECT_TRUE(set > detected_instruction_set() || find_probe(name) != nullptr) << name;
      }
    }
  }
  EXPECT_EQ(probe_name(InstructionSet::reference, 8, 8), "");
  EXPECT_EQ(find_probe("no_such_probe"), nullptr);
}

TEST(System, KnowsItsMemory) {
  ASSERT_TRUE(peak_memory_bytes());
  EXPECT_GT(*peak_memory_bytes(), 1'000'000);
  EXPECT_FALSE(cpu_name().empty());
}

}  // namespace
}  // namespace nibble
