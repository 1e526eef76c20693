// Compiled with AVX-512 F, BW, VL, DQ and AMX-TILE, AMX-BF16; called only on CPUs that have all of them, in
// processes that the kernel lets use AMX.
// Nothing of the standard library is instantiated here, so that no function compiled for a newer CPU can be
// linked into the rest.
#include <immintrin.h>

#include <cstdint>

#include "graph/onednn/weight_gradient.h"
#include "graph/onednn/weight_gradient_pairs.h"
#include "kernels/tiles_amx.h"

namespace nibble {
namespace {

constexpr int kChannels = 16;                    // of a block, of x and of dy
constexpr int kTile = kChannels * kChannels;     // sums of a tap, or pairs of 16 channels of 16 pixels
constexpr int kBlock = 3 * kTile;                // a row of taps
constexpr int kLine = kChannels * sizeof(Pair);  // bytes of a pixel of x, or of a channel of 16 pixels of dy

/// Pixels of one row that one instruction multiplies: a divisor of the row, so that no chunk is cut off.
int chunk_pixels(const WeightGradientShape& shape) {
  int pixels = Piece::at_most(shape.output_width, 16);
  while (shape.output_width % pixels != 0) --pixels;
  return pixels;
}

/// Tiles kSums .. kSums + 2: sums, [output channel][input channel], of the column taps of a block of inputs;
/// kOtherSums and behind: those of another block.
constexpr int kSums = 0;
constexpr int kOtherSums = 3;
constexpr int kGradientTile = 6;  ///< dy, [output channel][pixel]
constexpr int kInputTile = 7;     ///< x, [pixel][input channel]

void configure(int pixels) {
  TileConfiguration configuration;
  for (int tile = 0; tile < kGradientTile; ++tile) configuration.set(tile, kChannels, kLine);
  configuration.set(kGradientTile, kChannels, pixels * static_cast<int>(sizeof(Pair)));
  configuration.set(kInputTile, pixels, kLine);
  configure_tiles(configuration);
}

template <int First>
inline __attribute__((always_inline)) void begin_sums(bool fresh, const float* block) {
  if (fresh) {
    zero_tile<First>();
    zero_tile<First + 1>();
    zero_tile<First + 2>();
  } else {
    load_tile<First>(block, kLine);
    load_tile<First + 1>(block + kTile, kLine);
    load_tile<First + 2>(block + 2 * kTile, kLine);
  }
}
/// x: the input at the left tap; `step` bytes lie between two pixels.
template <int First>
inline __attribute__((always_inline)) void add_taps(const Pair* x, std::ptrdiff_t step) {
  load_tile<kInputTile>(x, step);
  multiply_add_bf16_tiles<First, kGradientTile, kInputTile>();
  load_tile<kInputTile>(x + kChannels, step);
  multiply_add_bf16_tiles<First + 1, kGradientTile, kInputTile>();
  load_tile<kInputTile>(x + 2 * kChannels, step);
  multiply_add_bf16_tiles<First + 2, kGradientTile, kInputTile>();
}
template <int First>
inline __attribute__((always_inline)) void store_sums(float* block) {
  store_tile_rows<First>(block, kLine);
  store_tile_rows<First + 1>(block + kTile, kLine);
  store_tile_rows<First + 2>(block + 2 * kTile, kLine);
}

/// Where a block's pixels lie, in pairs: the input at the left tap of the first output pixel, its dy, and the
/// way from one of them to the next. `x_pixel` is in bytes.
struct Pixels {
  const Pair* x;
  const Pair* dy;
  int pairs, rows, chunks;
  std::ptrdiff_t x_pair, dy_pair, x_row, dy_row, x_chunk, x_pixel;
  std::ptrdiff_t x_block;  // to the second block of inputs
};

/// block and, with `two`, second = x * dy of all pixels, added to what they hold unless they are `fresh`.
template <bool two>
__attribute__((noinline)) void sum_block(const Pixels& pixels, bool fresh, float* block, float* second) {
  begin_sums<kSums>(fresh, block);
  if (two) begin_sums<kOtherSums>(fresh, second);
  for (int pair = 0; pair < pixels.pairs; ++pair) {
    for (int row = 0; row < pixels.rows; ++row) {
      const Pair* x = pixels.x + pair * pixels.x_pair + row * pixels.x_row;
      const Pair* dy = pixels.dy + pair * pixels.dy_pair + row * pixels.dy_row;
      for (int chunk = pixels.chunks; chunk > 0; --chunk) {
        load_tile<kGradientTile>(dy, kLine);
        add_taps<kSums>(x, pixels.x_pixel);
        if (two) add_taps<kOtherSums>(x + pixels.x_block, pixels.x_pixel);
        x += pixels.x_chunk;
        dy += kTile;
      }
    }
  }
  store_sums<kSums>(block);
  if (two) store_sums<kOtherSums>(second);
}

/// Rows of x to [channel / 16][row][column][channel % 16] of pairs, a column of zeros at either side; `block`
/// pairs lie between two blocks of the result.
void take_input(const Bfloat16* first, const Bfloat16* second, int rows, int width, int channels, Pair* to,
                std::ptrdiff_t block) {
  const __m512i zero = _mm512_setzero_si512();
  for (int row = 0; row < rows; ++row) {
    for (int channel = 0; channel < channels; channel += kChannels) {
      Pair* target = to + channel / kChannels * block + std::ptrdiff_t{row} * (width + 2) * kChannels;
      _mm512_storeu_si512(target, zero);
      for (int column = 0; column < width; ++column) {
        target += kChannels;
        const std::ptrdiff_t at = (std::ptrdiff_t{row} * width + column) * channels + channel;
        _mm512_storeu_si512(target, pair(first + at, second == nullptr ? nullptr : second + at));
      }
      _mm512_storeu_si512(target + kChannels, zero);
    }
  }
}

/// 16 channels of `pixels` pixels, at most 16, as [channel][16 pixels] of pairs.
inline __attribute__((always_inline)) void transpose(const Bfloat16* first, const Bfloat16* second,
                                                     int pixels, int channels, Pair* to) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    const std::ptrdiff_t at = std::ptrdiff_t{i} * channels;
    a[i] = i < pixels ? pair(first + at, second == nullptr ? nullptr : second + at) : _mm512_setzero_si512();
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  // a[4 * i + j]: in its part p of 128 bits channel 4 * p + j of the pixels from 4 * i on.
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  constexpr int even = 0x88;
  constexpr int odd = 0xDD;
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i low_even = _mm512_shuffle_i32x4(a[j], a[4 + j], even);
    const __m512i low_odd = _mm512_shuffle_i32x4(a[j], a[4 + j], odd);
    const __m512i high_even = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], even);
    const __m512i high_odd = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], odd);
    _mm512_storeu_si512(to + j * 16, _mm512_shuffle_i32x4(low_even, high_even, even));
    _mm512_storeu_si512(to + (4 + j) * 16, _mm512_shuffle_i32x4(low_odd, high_odd, even));
    _mm512_storeu_si512(to + (8 + j) * 16, _mm512_shuffle_i32x4(low_even, high_even, odd));
    _mm512_storeu_si512(to + (12 + j) * 16, _mm512_shuffle_i32x4(low_odd, high_odd, odd));
  }
}

/// `chunks` chunks of dy to [channel / 16][chunk][channel % 16][16 pixels] of pairs.
void take_gradient(const Bfloat16* first, const Bfloat16* second, int chunks, int pixels, int channels,
                   Pair* to, std::ptrdiff_t block) {
  for (int chunk = 0; chunk < chunks; ++chunk) {
    for (int channel = 0; channel < channels; channel += kChannels) {
      const std::ptrdiff_t at = std::ptrdiff_t{chunk} * pixels * channels + channel;
      Pair* target = to + channel / kChannels * block + std::ptrdiff_t{chunk} * kTile;
      const Bfloat16* other = second == nullptr ? nullptr : second + at;
      if (pixels == 16) {
        transpose(first + at, other, 16, channels, target);
      } else {
        transpose(first + at, other, pixels, channels, target);
      }
    }
  }
}

}  // namespace

std::size_t weight_gradient_amx_scratch(const WeightGradientShape& shape) {
  const Piece piece(shape);
  const int inputs = piece.input_rows * (shape.input_width + 2) * shape.input_channels;
  const int outputs = piece.rows * (shape.output_width / chunk_pixels(shape)) * 16 * shape.output_channels;
  return static_cast<std::size_t>(piece.pairs * (inputs + outputs)) * sizeof(Pair);
}

void weight_gradient_amx(const WeightGradientShape& shape, const Bfloat16* x, const Bfloat16* dy, int images,
                         void* scratch, float* gradient) {
  const Piece piece(shape);
  const int pixels = chunk_pixels(shape);
  const int chunks = shape.output_width / pixels;
  const int input_blocks = shape.input_channels / kChannels;
  const int output_blocks = shape.output_channels / kChannels;
  // Of the pairs: a row of one block, one block of an image, one block of all that the piece holds.
  const std::ptrdiff_t x_line = std::ptrdiff_t{shape.input_width + 2} * kChannels;
  const std::ptrdiff_t dy_line = std::ptrdiff_t{chunks} * kTile;
  const std::ptrdiff_t x_image = x_line * piece.input_rows;
  const std::ptrdiff_t dy_image = dy_line * piece.rows;
  const std::ptrdiff_t x_block = x_image * piece.pairs;
  const std::ptrdiff_t dy_block = dy_image * piece.pairs;
  Pair* const x_pairs = static_cast<Pair*>(scratch);
  Pair* const dy_pairs = x_pairs + x_block * input_blocks;

  configure(pixels);
  for_pieces(
      shape, piece, x, dy, images,
      [&](int number, const Bfloat16* first, const Bfloat16* second, int rows) {
        take_input(first, second, rows, shape.input_width, shape.input_channels, x_pairs + number * x_image,
                   x_block);
      },
      [&](int number, const Bfloat16* first, const Bfloat16* second, int rows) {
        take_gradient(first, second, rows * chunks, pixels, shape.output_channels,
                      dy_pairs + number * dy_image, dy_block);
      },
      [&](const PieceTaps& taps) {
        for (int output = 0; output < output_blocks; ++output) {
          for (int input = 0; input < input_blocks; input += 2) {
            const Pixels block{x_pairs + input * x_block + taps.x_row * x_line,
                               dy_pairs + output * dy_block + taps.dy_row * dy_line,
                               taps.pairs,
                               taps.rows,
                               chunks,
                               x_image,
                               dy_image,
                               shape.stride * x_line,
                               dy_line,
                               std::ptrdiff_t{shape.stride} * pixels * kChannels,
                               std::ptrdiff_t{shape.stride} * kLine,
                               x_block};
            float* const sums =
                gradient +
                std::ptrdiff_t{(taps.tap_row * input_blocks + input) * output_blocks + output} * kBlock;
            if (input + 1 < input_blocks) {
              sum_block<true>(block, taps.fresh, sums, sums + std::ptrdiff_t{output_blocks} * kBlock);
            } else {
              sum_block<false>(block, taps.fresh, sums, nullptr);
            }
          }
        }
      });
  release_tiles();
}

}  // namespace nibble
