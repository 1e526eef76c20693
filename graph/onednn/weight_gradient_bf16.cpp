// Compiled with AVX-512 F, BW, VL, DQ and BF16; called only on CPUs that have all of them.
// Nothing of the standard library is instantiated here, so that no function compiled for a newer CPU can be
// linked into the rest.
#include <immintrin.h>

#include <cstdint>

#include "graph/onednn/weight_gradient.h"
#include "graph/onednn/weight_gradient_pairs.h"

namespace nibble {
namespace {

constexpr int kTaps = 3;    // columns of the kernel
constexpr int kInputs = 8;  // input channels of a block
constexpr int kOutputs = 16;
constexpr int kBlock = kTaps * kInputs * kOutputs;
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
  const int input_blocks = shape.input_channels / kInputs;
  const int output_blocks = shape.output_channels / kOutputs;
  // Of the pairs: a row of one block, one block of an image, one block of all that the piece holds.
  const std::ptrdiff_t x_line = std::ptrdiff_t{shape.input_width} * kInputs;
  const std::ptrdiff_t dy_line = std::ptrdiff_t{shape.output_width} * kOutputs;
  const std::ptrdiff_t x_image = x_line * piece.input_rows;
  const std::ptrdiff_t dy_image = dy_line * piece.rows;
  const std::ptrdiff_t x_block = x_image * piece.pairs;
  const std::ptrdiff_t dy_block = dy_image * piece.pairs;
  Pair* const x_pairs = static_cast<Pair*>(scratch);
  Pair* const dy_pairs = x_pairs + x_block * input_blocks;
  const int last = shape.output_width - 1;
  const bool last_right = last * shape.stride + 1 < shape.input_width;

  for_pieces(
      shape, piece, x, dy, images,
      [&](int number, const Bfloat16* first, const Bfloat16* second, int rows) {
        pair_pixels<kInputs>(first, second, rows * shape.input_width, shape.input_channels,
                             x_pairs + number * x_image, x_block);
      },
      [&](int number, const Bfloat16* first, const Bfloat16* second, int rows) {
        pair_pixels<kOutputs>(first, second, rows * shape.output_width, shape.output_channels,
                              dy_pairs + number * dy_image, dy_block);
      },
      [&](const PieceTaps& taps) {
        for (int output = 0; output < output_blocks; ++output) {
          for (int input = 0; input < input_blocks; ++input) {
            float* const block =
                gradient +
                std::ptrdiff_t{(taps.tap_row * input_blocks + input) * output_blocks + output} * kBlock;
            sum_block({x_pairs + input * x_block + taps.x_row * x_line,
                       dy_pairs + output * dy_block + taps.dy_row * dy_line, taps.pairs, taps.rows,
                       shape.output_width, x_image, dy_image, shape.stride * x_line, shape.stride * kInputs,
                       last_right},
                      taps.fresh, block);
          }
        }
      });
}

}  // namespace nibble
