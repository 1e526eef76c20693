#include "kernels/packed.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "kernels/requantize.h"

namespace nibble {
namespace {

using Values = std::vector<std::int16_t>;
using Bytes = std::vector<std::uint8_t>;

TEST(Packed, LaysTheFirstValueInTheLowestBits) {
  EXPECT_EQ(pack(Values{-3, -1, 1, 3, 3}, 2).bytes, (Bytes{0b11'10'01'00, 0b11}));
  EXPECT_EQ(pack(Values{1, -1, 7}, 4).bytes, (Bytes{0xF1, 0x07}));
  EXPECT_EQ(pack(Values{1, -1, -127}, 8).bytes, (Bytes{0x01, 0xFF, 0x81}));
  EXPECT_EQ(pack(Values{0x1234, -2}, 16).bytes, (Bytes{0x34, 0x12, 0xFE, 0xFF}));
}

TEST(Packed, ReturnsEveryValueOfEveryWidthAtEveryPlaceInAByte) {
  const Levels levels = {-4, -1, 1, 4};
  for (const int bits : {2, 4, 8, 16}) {
    Values all;
    for (int value = -weight_limit(bits); value <= weight_limit(bits); ++value) {
      if (representable(value, bits, levels)) all.push_back(static_cast<std::int16_t>(value));
    }
    EXPECT_EQ(all.size(), bits == 2 ? 4U : 2U * static_cast<unsigned>(weight_limit(bits)) + 1U);
    for (int shift = 0; shift < 4; ++shift) {
      all.insert(all.begin(), all.front());
      const PackedValues packed = pack(all, bits, levels);
      EXPECT_EQ(packed.bytes.size(), packed_size(all.size(), bits));
      EXPECT_EQ(unpack(packed), all);
    }
  }
}

TEST(Packed, RefusesWhatAWidthCannotHold) {
  EXPECT_THROW(pack(Values{0}, 2), std::invalid_argument);
  EXPECT_THROW(pack(Values{-8}, 4), std::invalid_argument);
  EXPECT_THROW(pack(Values{128}, 8), std::invalid_argument);
  EXPECT_THROW(pack(Values{-32768}, 16), std::invalid_argument);
}

}  // namespace
}  // namespace nibble
