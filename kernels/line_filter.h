#pragma once

// Two neighbouring outputs of a 3x3 convolution from four multiplications a line instead of six (Winograd's
// F(2, 3), in integers). A line is the three taps in the direction in which a call's positions run:
//
//   inputs       d0 d1 d2 d3, weights g0 g1 g2;  y0 = d0 g0 + d1 g1 + d2 g2,  y1 = d1 g0 + d2 g1 + d3 g2
//   points       V0 = d0 - d2 + L    V1 = d1 + d2           V2 = d2 - d1 + L       V3 = d1 - d3 + L
//   weights      U0 = 2 g0           U1 = g0 + g1 + g2      U2 = g0 - g1 + g2      U3 = 2 g2
//   sums         Mk = sum of Uk Vk over input channels and lines
//   outputs      2 y0 = M0 + M1 + M2 - L (U0 + U2)          2 y1 = M1 - M2 - M3 + L (U2 + U3)
//
// L is the largest activation: all V are 0 .. 2 L, unsigned like activations. Sums may wrap; only 2 y0 and
// 2 y1 themselves must fit, which is twice what the plain convolution needs. No header of an instruction set
// is needed here; internal linkage, since kernel files are compiled for different ones.

#include <cstddef>
#include <cstdint>

#include "kernels/convolution_kernel.h"

namespace nibble {
namespace {

inline constexpr int kPoints = 4;
inline constexpr int kLines = 3;
inline constexpr int kDirections = 2;  ///< lines are rows of the kernel, or its columns

/// The number of tap `place` of a line.
constexpr int tap_of_line(int direction, int line, int place) {
  return direction == 0 ? kLines * line + place : kLines * place + line;
}

/// U of one point from a line's three weights.
constexpr int point_weight(int point, int g0, int g1, int g2) {
  switch (point) {
    case 0:
      return 2 * g0;
    case 1:
      return g0 + g1 + g2;
    case 2:
      return g0 - g1 + g2;
    default:
      return 2 * g2;
  }
}

/// The lines that a call's taps form; they follow each other in the kernel.
struct Lines {
  int direction = 0;
  int first = 0;
  int count = 0;                     ///< 0: the taps are not whole lines in the direction of the positions
  std::ptrdiff_t offsets[kLines]{};  ///< bytes from an output position's input address to d0 of each
};

/// Of a call for a 3x3 kernel.
inline Lines lines_of(const ConvolutionCall& call) {
  const Tap* taps[kLines * kLines] = {};
  for (const Tap& tap : call.taps) taps[tap.index] = &tap;
  for (int direction = 0; direction < kDirections; ++direction) {
    Lines lines{direction};
    bool whole = true;
    for (int line = 0; line < kLines && whole; ++line) {
      const Tap* const tap[3] = {taps[tap_of_line(direction, line, 0)], taps[tap_of_line(direction, line, 1)],
                                 taps[tap_of_line(direction, line, 2)]};
      if (tap[0] == nullptr && tap[1] == nullptr && tap[2] == nullptr) continue;
      if (lines.count == 0) lines.first = line;
      whole = tap[0] != nullptr && tap[1] != nullptr && tap[2] != nullptr &&
              tap[1]->offset - tap[0]->offset == call.input.position_stride &&
              tap[2]->offset - tap[1]->offset == call.input.position_stride &&
              line == lines.first + lines.count;
      if (whole) lines.offsets[lines.count++] = tap[0]->offset;
    }
    if (whole && lines.count > 0) return lines;
  }
  return {};
}

}  // namespace
}  // namespace nibble
