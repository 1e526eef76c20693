// Compiled with -mavx2 -mfma; called only on CPUs that have both. Nothing of the standard library is
// instantiated here, so that no function compiled for a newer CPU can be linked into the rest.
#include <immintrin.h>

#include "graph/onednn/weight_gradient.h"

namespace nibble {
namespace {

constexpr int kTaps = 3;  // columns of the kernel
constexpr int kInputs = kFp32WeightGradientBlock.inputs;
constexpr int kLanes = 8;
constexpr int kOutputs = 2 * kLanes;
constexpr int kBlock = kTaps * kInputs * kOutputs;

struct Sums {
  __m256 at[kTaps][kInputs][2];
};

/// sums += x of the taps of one output pixel * dy. `x` is the input at the middle tap.
template <bool left, bool right>
inline __attribute__((always_inline)) void add_pixel(Sums& sums, const float* x, std::ptrdiff_t channels,
                                                     const float* dy) {
  const __m256 low = _mm256_loadu_ps(dy);
  const __m256 high = _mm256_loadu_ps(dy + kLanes);
#pragma GCC unroll 3
  for (int tap = 0; tap < kTaps; ++tap) {
    if ((tap == 0 && !left) || (tap == 2 && !right)) continue;
#pragma GCC unroll 2
    for (int i = 0; i < kInputs; ++i) {
      const __m256 value = _mm256_broadcast_ss(x + (tap - 1) * channels + i);
      sums.at[tap][i][0] = _mm256_fmadd_ps(value, low, sums.at[tap][i][0]);
      sums.at[tap][i][1] = _mm256_fmadd_ps(value, high, sums.at[tap][i][1]);
    }
  }
}

/// Output pixels whose x and dy fit the first-level cache together.
int strip_rows(const WeightGradientShape& shape) {
  constexpr int bytes = 24 * 1024;
  const int row = 4 * (shape.output_width * shape.output_channels +
                       shape.stride * shape.input_width * shape.input_channels);
  const int rows = bytes / row;
  return rows < 1 ? 1 : rows < shape.output_height ? rows : shape.output_height;
}

}  // namespace

void weight_gradient_avx2(const WeightGradientShape& shape, const float* x, const float* dy, int images,
                          float* gradient) {
  const std::ptrdiff_t inputs = shape.input_channels;
  const std::ptrdiff_t outputs = shape.output_channels;
  const std::ptrdiff_t step = shape.stride * inputs;
  const std::ptrdiff_t x_row = shape.input_width * inputs;
  const std::ptrdiff_t dy_row = shape.output_width * outputs;
  const int last = shape.output_width - 1;
  const bool last_right = last * shape.stride + 1 < shape.input_width;
  const int strip = strip_rows(shape);
  __builtin_memset(gradient, 0, shape.count() * sizeof(float));
  for (int image = 0; image < images; ++image) {
    const float* const image_x = x + image * shape.input_height * x_row;
    const float* const image_dy = dy + image * shape.output_height * dy_row;
    for (int top = 0; top < shape.output_height; top += strip) {
      const int bottom = top + strip < shape.output_height ? top + strip : shape.output_height;
      float* block = gradient;
      for (int tap_row = 0; tap_row < 3; ++tap_row) {
        // Rows that this tap reads from inside the image.
        int first = top;
        while (first * shape.stride + tap_row - 1 < 0) ++first;
        int end = bottom;
        while ((end - 1) * shape.stride + tap_row - 1 >= shape.input_height) --end;
        for (std::ptrdiff_t input = 0; input < inputs; input += kInputs) {
          for (std::ptrdiff_t output = 0; output < outputs; output += kOutputs, block += kBlock) {
            Sums sums;
#pragma GCC unroll 12
            for (int i = 0; i < kBlock / kLanes; ++i) {
              sums.at[i / 4][i / 2 % 2][i % 2] = _mm256_loadu_ps(block + i * kLanes);
            }
            for (int row = first; row < end; ++row) {
              const float* from = image_x + (row * shape.stride + tap_row - 1) * x_row + input;
              const float* d = image_dy + row * dy_row + output;
              add_pixel<false, true>(sums, from, inputs, d);
              for (int column = 1; column < last; ++column) {
                from += step;
                d += outputs;
                add_pixel<true, true>(sums, from, inputs, d);
              }
              if (last_right) {
                add_pixel<true, true>(sums, from + step, inputs, d + outputs);
              } else {
                add_pixel<true, false>(sums, from + step, inputs, d + outputs);
              }
            }
#pragma GCC unroll 12
            for (int i = 0; i < kBlock / kLanes; ++i) {
              _mm256_storeu_ps(block + i * kLanes, sums.at[i / 4][i / 2 % 2][i % 2]);
            }
          }
        }
      }
    }
  }
}

}  // namespace nibble
