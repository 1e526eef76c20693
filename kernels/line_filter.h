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
//   four   V0 = 4 d0 - 5 d2 + d4 + 8 L         U0 = 2 g0
//          V1 = d4 + d3 - 4 d2 - 4 d1 + 8 L    U1 = -4 (g0 + g1 + g2)
//          V2 = d4 - d3 - 4 d2 + 4 d1 + 8 L    U2 = -4 (g0 - g1 + g2)
//          V3 = d4 - d2 + 2 d3 - 2 d1 + 3 L    U3 = g0 + 2 g1 + 4 g2
//          V4 = d4 - d2 - 2 d3 + 2 d1 + 3 L    U4 = g0 - 2 g1 + 4 g2
//          V5 = 4 d1 - 5 d3 + d5 + 5 L         U5 = 8 g2
//
//          with u = M3 + M4, w = M3 - M4, a = (M1 + M2 + u) / 3, b = (M1 - M2 + 2 w) / 3:
//          8 y0 = M0 + a - constant
//          8 y1 = b - constant
//          8 y2 = a + u - constant
//          8 y3 = b + 2 w + M5 - constant
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
//          2 y0 = M0 + (s + M3 + 8 M4) / 15 - constant
//          2 y1 = (t + 2 M3 - 4 M4) / 15 - constant
//          2 y2 = (s + 4 M3 + 2 M4) / 15 - constant
//          2 y3 = (t + 8 M3 - M4) / 15 + M5 - constant
//
// Modulo 2, a point is 0, 1 or infinity. Each of these is there twice, which is why a single 2 remains of 30
// where the points 0, 1, -1, 2, -2 and infinity leave an 8 of 24.
//
// Sums are words of 16 or 32 bits and may wrap: modulo a power of two 3 and 15 have inverses, so only 2 y and
// 8 y themselves must fit. No header of an instruction set is needed here; internal linkage, since kernel
// files are compiled for different ones.

#include <cstddef>
#include <cstdint>

#include "kernels/convolution_kernel.h"
#include "kernels/steps.h"

namespace nibble {
namespace {

inline constexpr int kLines = 3;
inline constexpr int kDirections = 2;  ///< lines are rows of the kernel, or its columns

/// The filter of two or four outputs.
struct LineFilter {
  int outputs;
  int points;
  int times;                       ///< what the sums are in the end, times y: 2 or 8
  int added[6];                    ///< to each V, times L
  int largest[6];                  ///< each V, times L
  std::uint32_t outputs_of[4][6];  ///< what each output takes of each M, modulo 2^32
};
inline constexpr std::uint32_t kThird = 0xAAAAAAAB;      ///< 3 * kThird is 1
inline constexpr std::uint32_t kFifteenth = 0xEEEEEEEF;  ///< 15 * kFifteenth is 1
inline constexpr LineFilter kTwoOutputs{
    2, 4, 2, {1, 0, 1, 1}, {2, 2, 2, 2}, {{1, 1, 1, 0}, {0, 1, -1U, -1U}}};
inline constexpr LineFilter kFourOutputs{4,
                                         6,
                                         8,
                                         {8, 8, 8, 3, 3, 5},
                                         {13, 10, 13, 6, 6, 10},
                                         {{1, kThird, kThird, kThird, kThird, 0},
                                          {0, kThird, -kThird, 2 * kThird, -2 * kThird, 0},
                                          {0, kThird, kThird, 4 * kThird, 4 * kThird, 0},
                                          {0, kThird, -kThird, 8 * kThird, -8 * kThird, 1}}};
inline constexpr LineFilter kFourOfTwice{4,
                                         6,
                                         2,
                                         {8, 8, 5, 8, 4, 8},
                                         {15, 10, 10, 11, 7, 15},
                                         {{1, kFifteenth, kFifteenth, kFifteenth, 8 * kFifteenth, 0},
                                          {0, kFifteenth, -kFifteenth, 2 * kFifteenth, -4 * kFifteenth, 0},
                                          {0, kFifteenth, kFifteenth, 4 * kFifteenth, 2 * kFifteenth, 0},
                                          {0, kFifteenth, -kFifteenth, 8 * kFifteenth, -kFifteenth, 1}}};
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
      return 2 * g0;
    case 1:
      return (four ? -4 : 1) * (g0 + g1 + g2);
    case 2:
      return (four ? -4 : 1) * (g0 - g1 + g2);
    case 3:
      return four ? g0 + 2 * g1 + 4 * g2 : 2 * g2;
    case 4:
      return g0 - 2 * g1 + 4 * g2;
    default:
      return 8 * g2;
  }
}

/// The same of a layer's weights; zero for channels that do not exist.
inline int point_weight_of(const ConvolutionLayer& layer, const LineFilter& filter, int output_channel,
                           int direction, int line, int point, int channel) {
  const auto weight = [&](int place) {
    return weight_of(layer, output_channel, tap_of_line(direction, line, place), channel);
  };
  return point_weight(filter, point, weight(0), weight(1), weight(2));
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

// V of `Tiles` tiles of two or four positions, a register of lanes each. Bytes: what adds and subtracts the
// bytes of registers, and repeats one; load(i): input i of the first tile; store(tile, point, V).

template <typename Bytes, int Tiles, typename Load, typename Store>
inline __attribute__((always_inline)) void transform_two(int limit, Load load, Store store) {
  const auto added = Bytes::repeated(limit);
  auto d1 = load(1);
  auto d0_added = Bytes::add(load(0), added);
  for (int tile = 0; tile < Tiles; ++tile) {
    const auto d2 = load(2 * tile + 2);
    const auto d3 = load(2 * tile + 3);
    const auto d2_added = Bytes::add(d2, added);
    store(tile, 0, Bytes::sub(d0_added, d2));
    store(tile, 1, Bytes::add(d1, d2));
    store(tile, 2, Bytes::sub(d2_added, d1));
    store(tile, 3, Bytes::sub(Bytes::add(d1, added), d3));
    d0_added = d2_added;
    d1 = d3;
  }
}

/// Activations are at most 15 here; Bytes::four() shifts them without a carry into the next byte.
template <typename Bytes, int Tiles, typename Load, typename Store>
inline __attribute__((always_inline)) void transform_four(int limit, Load load, Store store) {
  const auto times = [&](int n) __attribute__((always_inline)) {
    return Bytes::repeated(n * limit);
  };
  auto d1 = load(1);
  auto four_d0 = Bytes::four(load(0));
  for (int tile = 0; tile < Tiles; ++tile) {
    const auto d2 = load(4 * tile + 2);
    const auto d3 = load(4 * tile + 3);
    const auto d4 = load(4 * tile + 4);
    const auto d5 = load(4 * tile + 5);
    const auto p = Bytes::add(Bytes::sub(d4, Bytes::four(d2)), times(8));
    const auto q = Bytes::sub(Bytes::four(d1), d3);
    const auto a = Bytes::add(Bytes::sub(d4, d2), times(3));
    const auto b = Bytes::sub(d3, d1);
    const auto twice_b = Bytes::add(b, b);
    store(tile, 0, Bytes::add(four_d0, Bytes::sub(p, d2)));
    store(tile, 1, Bytes::sub(p, q));
    store(tile, 2, Bytes::add(p, q));
    store(tile, 3, Bytes::add(a, twice_b));
    store(tile, 4, Bytes::sub(a, twice_b));
    store(tile, 5, Bytes::add(Bytes::sub(q, Bytes::four(d3)), Bytes::add(d5, times(5))));
    four_d0 = Bytes::four(d4);
    d1 = d5;
  }
}

/// 8 y of a tile of four positions (kFourOutputs) without the constants. Words: what adds and subtracts the
/// words of registers, and divides multiples of 3; m(point): the sums of a point; store(output, 8 y).
template <typename Words, typename Sums, typename Store>
inline __attribute__((always_inline)) void combine_points(const Sums& m, const Store& store) {
  const auto u = Words::add(m(3), m(4));
  const auto w = Words::sub(m(3), m(4));
  const auto twice_w = Words::add(w, w);
  const auto a = Words::third(Words::add(Words::add(m(1), m(2)), u));
  const auto b = Words::third(Words::add(Words::sub(m(1), m(2)), twice_w));
  store(0, Words::add(m(0), a));
  store(1, b);
  store(2, Words::add(a, u));
  store(3, Words::add(Words::add(b, twice_w), m(5)));
}

}  // namespace
}  // namespace nibble
