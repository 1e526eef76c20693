#pragma once

// Two or four neighbouring outputs of a 3x3 convolution from four or six multiplications a line instead of
// six or twelve (Winograd's F(2, 3) and F(4, 3), in integers). A line is the three taps in the direction in
// which a call's positions run: inputs d0 d1 d2 ..., weights g0 g1 g2, y0 = d0 g0 + d1 g1 + d2 g2 and so on.
// L is the largest activation; with what is added all V are unsigned, like activations. Mk is the sum of Uk
// Vk over input channels and lines.
//
//   two    V0 = d0 - d2 + L                    U0 = 2 g0
//          V1 = d1 + d2                        U1 = g0 + g1 + g2
//          V2 = d2 - d1 + L                    U2 = g0 - g1 + g2
//          V3 = d1 - d3 + L                    U3 = 2 g2
//
//          2 y0 = M0 + M1 + M2 - constant
//          2 y1 = M1 - M2 - M3 - constant
//
//   four   V0 = 4 d0 - 5 d2 + d4 + 8 L         U0 = 6 g0
//          V1 = d4 + d3 - 4 d2 - 4 d1 + 8 L    U1 = -4 (g0 + g1 + g2)
//          V2 = d4 - d3 - 4 d2 + 4 d1 + 8 L    U2 = -4 (g0 - g1 + g2)
//          V3 = d4 - d2 + 2 d3 - 2 d1 + 3 L    U3 = g0 + 2 g1 + 4 g2
//          V4 = d4 - d2 - 2 d3 + 2 d1 + 3 L    U4 = g0 - 2 g1 + 4 g2
//          V5 = 4 d1 - 5 d3 + d5 + 5 L         U5 = 6 g2
//
//          with s = M1 + M2, t = M1 - M2, u = M3 + M4, w = M3 - M4:
//          24 y0 = M0 + s + u - constant
//          24 y1 = t + 2 w - constant
//          24 y2 = s + 4 u - constant
//          24 y3 = t + 8 w + 4 M5 - constant
//
//   four of twice    with a = d4 - d2, b = d3 - d1, the points 0, 1, -1, 2, -1/2 and infinity:
//          V0 = 2 a - 3 b - 2 (d2 - d0) + 8 L  U0 = g0
//          V1 = 2 a + 2 b - 3 (d2 + d3) + 8 L  U1 = -5 (g0 + g1 + g2)
//          V2 = 2 a - 2 b + 3 (d2 - d3) + 5 L  U2 = 5 (g0 - g1 + g2)
//          V3 = 2 a + b + 8 L                  U3 = g0 + 2 g1 + 4 g2
//          V4 = a - 2 b + 4 L                  U4 = -4 g0 + 2 g1 - g2
//          V5 = 2 (d5 - d3) - 3 a - 2 b + 8 L  U5 = g2
//
//          with s = M1 + M2, t = M1 - M2:
//          30 y0 = 15 M0 + s + M3 + 8 M4 - constant
//          30 y1 = t + 2 M3 - 4 M4 - constant
//          30 y2 = s + 4 M3 + 2 M4 - constant
//          30 y3 = t + 8 M3 - M4 + 15 M5 - constant
//
// Modulo 2, a point is 0, 1 or infinity. Each of these is there twice, which is why a single 2 remains of 30
// where the points 0, 1, -1, 2, -2 and infinity leave an 8 of 24.
//
// Sums are 16-bit words and may wrap. Modulo 2^16 the 3 of 24 has an inverse, so 24 y gives 8 y, and
// 30 y gives 2 y: only 2 y and 8 y themselves must fit. No header of an instruction set is needed here;
// internal linkage, since kernel files are compiled for different ones.

#include <cstddef>
#include <cstdint>

#include "kernels/convolution_kernel.h"

namespace nibble {
namespace {

inline constexpr int kLines = 3;
inline constexpr int kDirections = 2;  ///< lines are rows of the kernel, or its columns

/// The filter of two or four outputs.
struct LineFilter {
  int outputs;
  int points;
  int times;             ///< what the sums are in the end, times y: 2 or 8
  int added[6];          ///< to each V, times L
  int largest[6];        ///< each V, times L
  int outputs_of[4][6];  ///< what each output takes of each M
};
inline constexpr LineFilter kTwoOutputs{2, 4, 2, {1, 0, 1, 1}, {2, 2, 2, 2}, {{1, 1, 1, 0}, {0, 1, -1, -1}}};
inline constexpr LineFilter kFourOutputs{
    4,
    6,
    8,
    {8, 8, 8, 3, 3, 5},
    {13, 10, 13, 6, 6, 10},
    {{1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -2, 0}, {0, 1, 1, 4, 4, 0}, {0, 1, -1, 8, -8, 4}}};
inline constexpr LineFilter kFourOfTwice{
    4,
    6,
    2,
    {8, 8, 5, 8, 4, 8},
    {15, 10, 10, 11, 7, 15},
    {{15, 1, 1, 1, 8, 0}, {0, 1, -1, 2, -4, 0}, {0, 1, 1, 4, 2, 0}, {0, 1, -1, 8, -1, 15}}};
/// U of its points, times g0, g1, g2.
inline constexpr int kWeightsOfTwice[6][3] = {{1, 0, 0}, {-5, -5, -5}, {5, -5, 5},
                                              {1, 2, 4}, {-4, 2, -1},  {0, 0, 1}};

/// The number of tap `place` of a line.
constexpr int tap_of_line(int direction, int line, int place) {
  return direction == 0 ? kLines * line + place : kLines * place + line;
}

/// U of one point from a line's three weights.
constexpr int point_weight(const LineFilter& filter, int point, int g0, int g1, int g2) {
  const bool four = filter.outputs == 4;
  if (four && filter.times == 2) {
    const int(&of)[3] = kWeightsOfTwice[point];
    return of[0] * g0 + of[1] * g1 + of[2] * g2;
  }
  switch (point) {
    case 0:
      return four ? 6 * g0 : 2 * g0;
    case 1:
      return (four ? -4 : 1) * (g0 + g1 + g2);
    case 2:
      return (four ? -4 : 1) * (g0 - g1 + g2);
    case 3:
      return four ? g0 + 2 * g1 + 4 * g2 : 2 * g2;
    case 4:
      return g0 - 2 * g1 + 4 * g2;
    default:
      return 6 * g2;
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
