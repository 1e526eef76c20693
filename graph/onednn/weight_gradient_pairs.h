#pragma once

// What the weight gradients in BF16 share. Included by files that are compiled for one instruction set each,
// so everything here has internal linkage.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "graph/onednn/weight_gradient.h"

namespace nibble {
namespace {

/// The values of one channel in two images, the lower half from the first.
using Pair = std::uint32_t;

/// Pairs of pixels that a block's sums stay in registers for: 16 KB of dy, and of x as much in each 16
/// channels.
constexpr int kPixels = 256;

/// What is multiplied between two visits of the sums: some images of few rows each, or a strip of rows of
/// two.
struct Piece {
  explicit Piece(const WeightGradientShape& shape)
      : rows(at_most(at_least_one(kPixels / shape.output_width), shape.output_height)),
        pairs(at_least_one(kPixels / (shape.output_width * shape.output_height))),
        input_rows(at_most((rows - 1) * shape.stride + 3, shape.input_height)) {}
  static int at_least_one(int value) { return value < 1 ? 1 : value; }
  static int at_most(int value, int most) { return value < most ? value : most; }

  int rows;
  int pairs;
  int input_rows;
};

/// What one row of taps multiplies in a piece.
struct PieceTaps {
  int tap_row;
  int pairs;  ///< of images
  int rows;   ///< of the output
  int x_row;  ///< the first of them reads this row of the piece's input
  int dy_row;
  bool fresh;  ///< nothing has been summed before
};

/// Calls take_x(pair, first image, second image, rows) and take_dy(the same) for all images of a piece, each
/// at the piece's first row, the second null behind the last image; then sum(taps) for each row of taps.
template <typename TakeX, typename TakeDy, typename Sum>
inline __attribute__((always_inline)) void for_pieces(const WeightGradientShape& shape, const Piece& piece,
                                                      const Bfloat16* x, const Bfloat16* dy, int images,
                                                      const TakeX& take_x, const TakeDy& take_dy,
                                                      const Sum& sum) {
  const int x_row = shape.input_width * shape.input_channels;
  const int dy_row = shape.output_width * shape.output_channels;
  const std::ptrdiff_t x_image = std::ptrdiff_t{x_row} * shape.input_height;
  const std::ptrdiff_t dy_image = std::ptrdiff_t{dy_row} * shape.output_height;
  for (int image = 0; image < images; image += 2 * piece.pairs) {
    const int pairs = Piece::at_most(piece.pairs, (images - image + 1) / 2);
    for (int top = 0; top < shape.output_height; top += piece.rows) {
      const int bottom = Piece::at_most(top + piece.rows, shape.output_height);
      const int first_input = top == 0 ? 0 : top * shape.stride - 1;
      const int end_input = Piece::at_most((bottom - 1) * shape.stride + 2, shape.input_height);
      for (int pair = 0; pair < pairs; ++pair) {
        const int number = image + 2 * pair;
        const bool both = number + 1 < images;
        const Bfloat16* from = x + number * x_image + std::ptrdiff_t{first_input} * x_row;
        take_x(pair, from, both ? from + x_image : nullptr, end_input - first_input);
        const Bfloat16* d = dy + number * dy_image + std::ptrdiff_t{top} * dy_row;
        take_dy(pair, d, both ? d + dy_image : nullptr, bottom - top);
      }
      for (int tap_row = 0; tap_row < 3; ++tap_row) {
        // Rows that this tap reads from inside the image.
        int first = top;
        while (first * shape.stride + tap_row - 1 < 0) ++first;
        int end = bottom;
        while ((end - 1) * shape.stride + tap_row - 1 >= shape.input_height) --end;
        sum(PieceTaps{tap_row, pairs, end - first, first * shape.stride + tap_row - 1 - first_input,
                      first - top, image == 0 && top == 0});
      }
    }
  }
}

/// 16 channels of one pixel of two images; `second` may be null.
inline __attribute__((always_inline)) __m512i pair(const Bfloat16* first, const Bfloat16* second) {
  const auto widened = [](const Bfloat16* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  };
  if (second == nullptr) return widened(first);
  return _mm512_or_si512(widened(first), _mm512_slli_epi32(widened(second), 16));
}

}  // namespace
}  // namespace nibble
