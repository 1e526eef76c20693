// Compiled with AVX-512 F, BW, VL, DQ and BF16; called only on CPUs that have all of them.
// Nothing of the standard library is instantiated here, so that no function compiled for a newer CPU can be
// linked into the rest.
#include <immintrin.h>

#include <cstdint>

#include "graph/onednn/weight_gradient.h"

namespace nibble {
namespace {

constexpr int kTaps = 3;                            // columns of the kernel
constexpr int kInputs = kBf16WeightGradientInputs;  // input channels of a block
constexpr int kOutputs = 16;
constexpr int kBlock = kTaps * kInputs * kOutputs;
/// Pairs of pixels that a block's sums stay in registers for: 16 KB of dy and 8 KB of x.
constexpr int kPixels = 256;

/// The values of one channel in two images, the lower half from the first.
using Pair = std::uint32_t;

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

struct Sums {
  __m512 at[kTaps][kInputs];
};

/// sums += x of the taps of one output pixel * dy, in both images. `x` is the input at the middle tap.
template <bool left, bool right>
inline __attribute__((always_inline)) void add_pixel(Sums& sums, const Pair* x, const Pair* dy) {
  const auto output = reinterpret_cast<__m512bh>(_mm512_loadu_si512(dy));
#pragma GCC unroll 3
  for (int tap = 0; tap < kTaps; ++tap) {
    if ((tap == 0 && !left) || (tap == 2 && !right)) continue;
#pragma GCC unroll 8
    for (int i = 0; i < kInputs; ++i) {
      const __m512i input = _mm512_set1_epi32(static_cast<int>(x[(tap - 1) * kInputs + i]));
      sums.at[tap][i] = _mm512_dpbf16_ps(sums.at[tap][i], output, reinterpret_cast<__m512bh>(input));
    }
  }
}

/// Where a block's pixels lie, in pairs: the input at the middle tap of the first output pixel, its dy, and
/// the way from one of them to the next.
struct Pixels {
  const Pair* x;
  const Pair* dy;
  int pairs, rows, columns;
  std::ptrdiff_t x_pair, dy_pair, x_row, x_column;
  bool last_has_right;  // the last column's right tap lies in the image
};

/// block = x * dy of all pixels, added to what it holds unless it is `fresh`.
__attribute__((noinline)) void sum_block(const Pixels& pixels, bool fresh, float* block) {
  Sums sums;
#pragma GCC unroll 24
  for (int i = 0; i < kTaps * kInputs; ++i) {
    sums.at[i / kInputs][i % kInputs] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(block + i * kOutputs);
  }
  for (int pair = 0; pair < pixels.pairs; ++pair) {
    const Pair* dy = pixels.dy + pair * pixels.dy_pair;
    for (int row = 0; row < pixels.rows; ++row) {
      const Pair* x = pixels.x + pair * pixels.x_pair + row * pixels.x_row;
      add_pixel<false, true>(sums, x, dy);
      x += pixels.x_column;
      dy += kOutputs;
      for (int column = pixels.columns - 2; column > 0; --column) {
        add_pixel<true, true>(sums, x, dy);
        x += pixels.x_column;
        dy += kOutputs;
      }
      if (pixels.last_has_right) {
        add_pixel<true, true>(sums, x, dy);
      } else {
        add_pixel<true, false>(sums, x, dy);
      }
      dy += kOutputs;
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kTaps * kInputs; ++i) {
    _mm512_storeu_ps(block + i * kOutputs, sums.at[i / kInputs][i % kInputs]);
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

/// [pixel][channel] of two images to [channel / width][pixel][channel % width] of pairs; `block` pairs lie
/// between two blocks of the result.
template <int width>
void pair_pixels(const Bfloat16* first, const Bfloat16* second, int pixels, int channels, Pair* to,
                 std::ptrdiff_t block) {
  for (int pixel = 0; pixel < pixels; ++pixel) {
    Pair* target = to + pixel * width;
    for (int channel = 0; channel < channels; channel += 16) {
      const std::ptrdiff_t at = std::ptrdiff_t{pixel} * channels + channel;
      const __m512i values = pair(first + at, second == nullptr ? nullptr : second + at);
      if constexpr (width == 16) {
        _mm512_storeu_si512(target, values);
        target += block;
      } else {
        static_assert(width == 8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm512_castsi512_si256(values));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + block), _mm512_extracti64x4_epi64(values, 1));
        target += 2 * block;
      }
    }
  }
}

}  // namespace

std::size_t weight_gradient_bf16_scratch(const WeightGradientShape& shape) {
  const Piece piece(shape);
  const int inputs = piece.input_rows * shape.input_width * shape.input_channels;
  const int outputs = piece.rows * shape.output_width * shape.output_channels;
  return static_cast<std::size_t>(piece.pairs * (inputs + outputs)) * sizeof(Pair);
}

void weight_gradient_bf16(const WeightGradientShape& shape, const Bfloat16* x, const Bfloat16* dy, int images,
                          void* scratch, float* gradient) {
  const Piece piece(shape);
  const int x_row = shape.input_width * shape.input_channels;
  const int dy_row = shape.output_width * shape.output_channels;
  const std::ptrdiff_t x_image = std::ptrdiff_t{x_row} * shape.input_height;
  const std::ptrdiff_t dy_image = std::ptrdiff_t{dy_row} * shape.output_height;
  // Of the pairs: a row of one block, one block of all that the piece holds.
  const std::ptrdiff_t x_line = std::ptrdiff_t{shape.input_width} * kInputs;
  const std::ptrdiff_t dy_line = std::ptrdiff_t{shape.output_width} * kOutputs;
  const std::ptrdiff_t x_block = x_line * piece.input_rows * piece.pairs;
  const std::ptrdiff_t dy_block = dy_line * piece.rows * piece.pairs;
  Pair* const x_pairs = static_cast<Pair*>(scratch);
  Pair* const dy_pairs = x_pairs + x_block * (shape.input_channels / kInputs);
  const int last = shape.output_width - 1;
  const bool last_right = last * shape.stride + 1 < shape.input_width;

  for (int image = 0; image < images; image += 2 * piece.pairs) {
    const int pairs = Piece::at_most(piece.pairs, (images - image + 1) / 2);
    for (int top = 0; top < shape.output_height; top += piece.rows) {
      const int bottom = Piece::at_most(top + piece.rows, shape.output_height);
      const int first_input = top == 0 ? 0 : top * shape.stride - 1;
      const int end_input = Piece::at_most((bottom - 1) * shape.stride + 2, shape.input_height);
      for (int each = 0; each < pairs; ++each) {
        const int number = image + 2 * each;
        const bool both = number + 1 < images;
        const Bfloat16* from = x + number * x_image + std::ptrdiff_t{first_input} * x_row;
        pair_pixels<kInputs>(from, both ? from + x_image : nullptr,
                             (end_input - first_input) * shape.input_width, shape.input_channels,
                             x_pairs + each * piece.input_rows * x_line, x_block);
        const Bfloat16* d = dy + number * dy_image + std::ptrdiff_t{top} * dy_row;
        pair_pixels<kOutputs>(d, both ? d + dy_image : nullptr, (bottom - top) * shape.output_width,
                              shape.output_channels, dy_pairs + each * piece.rows * dy_line, dy_block);
      }
      for (int output = 0; output < shape.output_channels / kOutputs; ++output) {
        for (int tap_row = 0; tap_row < 3; ++tap_row) {
          // Rows that this tap reads from inside the image.
          int first = top;
          while (first * shape.stride + tap_row - 1 < 0) ++first;
          int end = bottom;
          while ((end - 1) * shape.stride + tap_row - 1 >= shape.input_height) --end;
          for (int input = 0; input < shape.input_channels / kInputs; ++input) {
            float* const block =
                gradient + std::ptrdiff_t{(tap_row * (shape.input_channels / kInputs) + input) *
                                              (shape.output_channels / kOutputs) +
                                          output} *
                               kBlock;
            sum_block(
                {x_pairs + input * x_block + (first * shape.stride + tap_row - 1 - first_input) * x_line,
                 dy_pairs + output * dy_block + (first - top) * dy_line, pairs, end - first,
                 shape.output_width, piece.input_rows * x_line, piece.rows * dy_line, shape.stride * x_line,
                 shape.stride * kInputs, last_right},
                image == 0 && top == 0, block);
          }
        }
      }
    }
  }
}

}  // namespace nibble
