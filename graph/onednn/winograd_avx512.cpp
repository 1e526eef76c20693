// Compiled with AVX-512 F, BW, VL, DQ and BF16; called only on CPUs that have all of them. Nothing of the
// standard library is instantiated here, so that no function compiled for a newer CPU can be linked into the
// rest.
#include <immintrin.h>

#include "graph/onednn/winograd.h"

namespace nibble {
namespace {

constexpr int kLanes = 16;
constexpr int kTiles = 16;   // taken at a time: their sums stay in registers
constexpr int kPlaces = 16;  // of a tile of 4 x 4

/// From one place's tiles to the next one's: not a multiple of the cache's 4 KB.
constexpr std::ptrdiff_t plane(std::ptrdiff_t inputs) {
  return kTiles * inputs + kLanes;
}

/// Where a tile's outputs begin.
struct Corner {
  std::ptrdiff_t pixel;  // of all images
  int row, column;
};

/// In both directions: d0 - d2, d1 + d2, d2 - d1, d1 - d3.
inline __attribute__((always_inline)) void transform_input(__m512 (&d)[4][4]) {
  const auto four = [](__m512 & a, __m512 & b, __m512 & c, __m512 & e) __attribute__((always_inline)) {
    const __m512 sum = _mm512_add_ps(b, c);
    const __m512 difference = _mm512_sub_ps(c, b);
    a = _mm512_sub_ps(a, c);
    e = _mm512_sub_ps(b, e);
    b = sum;
    c = difference;
  };
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) four(d[0][i], d[1][i], d[2][i], d[3][i]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) four(d[i][0], d[i][1], d[i][2], d[i][3]);
}

/// `to`: [place][tile][input channel], at the tile. What lies outside of the image is zero.
template <bool inside>
void take_tile(const WinogradShape& shape, const float* x, const Corner& corner, float* to) {
  const std::ptrdiff_t channels = shape.input_channels;
  const std::ptrdiff_t line = shape.width * channels;
  const float* from = x + corner.pixel * channels - line - channels;
  __mmask16 mask[4][4];
  for (int row = 0; row < 4; ++row) {
    for (int column = 0; column < 4; ++column) {
      const int y = corner.row + row - 1;
      const int z = corner.column + column - 1;
      const bool in = y >= 0 && y < shape.height && z >= 0 && z < shape.width;
      mask[row][column] = static_cast<__mmask16>(in ? 0xFFFF : 0);
    }
  }
  for (std::ptrdiff_t channel = 0; channel < channels; channel += kLanes) {
    __m512 d[4][4];
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
#pragma GCC unroll 4
      for (int column = 0; column < 4; ++column) {
        const float* at = from + row * line + column * channels + channel;
        d[row][column] = inside ? _mm512_loadu_ps(at) : _mm512_maskz_loadu_ps(mask[row][column], at);
      }
    }
    transform_input(d);
#pragma GCC unroll 16
    for (int place = 0; place < kPlaces; ++place) {
      _mm512_storeu_ps(to + place * plane(channels) + channel, d[place / 4][place % 4]);
    }
  }
}

/// sums[tile][16] = sum over input channels of tiles[tile][input] * weight[input][16]
template <int inputs>
void multiply(const float* tiles, const float* weight, float* sums) {
  __m512 sum[kTiles] = {};
  for (int input = 0; input < inputs; ++input) {
    const __m512 row = _mm512_loadu_ps(weight + input * kLanes);
#pragma GCC unroll 16
    for (int tile = 0; tile < kTiles; ++tile) {
      sum[tile] = _mm512_fmadd_ps(_mm512_set1_ps(tiles[tile * inputs + input]), row, sum[tile]);
    }
  }
#pragma GCC unroll 16
  for (int tile = 0; tile < kTiles; ++tile) _mm512_storeu_ps(sums + tile * kLanes, sum[tile]);
}

/// The 2 x 2 outputs of a tile, 16 channels, from sums[place][tile][16] at the tile.
inline __attribute__((always_inline)) void give_tile(const float* sums, std::ptrdiff_t channels,
                                                     std::ptrdiff_t line, float* y) {
  __m512 m[2][4];
#pragma GCC unroll 4
  for (int column = 0; column < 4; ++column) {
    const auto at = [&](int row) __attribute__((always_inline)) {
      return _mm512_loadu_ps(sums + (row * 4 + column) * kTiles * kLanes);
    };
    const __m512 b = at(1);
    const __m512 c = at(2);
    m[0][column] = _mm512_add_ps(at(0), _mm512_add_ps(b, c));
    m[1][column] = _mm512_sub_ps(_mm512_sub_ps(b, c), at(3));
  }
#pragma GCC unroll 2
  for (int row = 0; row < 2; ++row) {
    _mm512_storeu_ps(y + row * line, _mm512_add_ps(m[row][0], _mm512_add_ps(m[row][1], m[row][2])));
    _mm512_storeu_ps(y + row * line + channels,
                     _mm512_sub_ps(_mm512_sub_ps(m[row][1], m[row][2]), m[row][3]));
  }
}

template <int inputs>
void convolve(const WinogradShape& shape, const float* x, const float* weight, int images, float* scratch,
              float* y) {
  float* const tiles = scratch;
  float* const sums = scratch + kPlaces * plane(inputs);
  const int across = shape.width / 2;
  const int in_image = across * (shape.height / 2);
  const int all = images * in_image;
  const std::ptrdiff_t outputs = shape.output_channels;
  const std::ptrdiff_t line = shape.width * outputs;
  for (int first = 0; first < all; first += kTiles) {
    const int count = all - first < kTiles ? all - first : kTiles;
    Corner corners[kTiles];
    for (int tile = 0; tile < count; ++tile) {
      const int number = (first + tile) % in_image;
      Corner& corner = corners[tile];
      corner.row = number / across * 2;
      corner.column = number % across * 2;
      corner.pixel = (std::ptrdiff_t{(first + tile) / in_image} * shape.height + corner.row) * shape.width +
                     corner.column;
      const bool inside = corner.row > 0 && corner.row + 2 < shape.height && corner.column > 0 &&
                          corner.column + 2 < shape.width;
      if (inside) {
        take_tile<true>(shape, x, corner, tiles + tile * inputs);
      } else {
        take_tile<false>(shape, x, corner, tiles + tile * inputs);
      }
    }
    for (std::ptrdiff_t output = 0; output < outputs; output += kLanes) {
      const float* block = weight + output * kPlaces * inputs;
      for (int place = 0; place < kPlaces; ++place) {
        multiply<inputs>(tiles + place * plane(inputs), block + place * inputs * kLanes,
                         sums + place * kTiles * kLanes);
      }
      for (int tile = 0; tile < count; ++tile) {
        give_tile(sums + tile * kLanes, outputs, line, y + corners[tile].pixel * outputs + output);
      }
    }
  }
}

}  // namespace

void winograd_avx512(const WinogradShape& shape, const float* x, const float* weight, int images,
                     float* scratch, float* y) {
  switch (shape.input_channels) {
    case 16:
      return convolve<16>(shape, x, weight, images, scratch, y);
    case 32:
      return convolve<32>(shape, x, weight, images, scratch, y);
    default:
      return convolve<64>(shape, x, weight, images, scratch, y);
  }
}

}  // namespace nibble
