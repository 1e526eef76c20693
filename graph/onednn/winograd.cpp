#include "graph/onednn/winograd.h"

namespace nibble {
namespace {

/// transformed[output / 16][place][input][output % 16] from the 3x3 filter that filter(input, output, row,
/// column) gives.
template <typename Filter>
void transform(const WinogradShape& shape, const Filter& filter, float* transformed) {
  const auto half_sums = [](float a, float b, float c, float* to) {
    to[0] = a;
    to[1] = 0.5F * (a + b + c);
    to[2] = 0.5F * (a - b + c);
    to[3] = c;
  };
  for (int output = 0; output < shape.output_channels; ++output) {
    for (int input = 0; input < shape.input_channels; ++input) {
      float rows[3][4];
      for (int row = 0; row < 3; ++row) {
        half_sums(filter(input, output, row, 0), filter(input, output, row, 1), filter(input, output, row, 2),
                  rows[row]);
      }
      float* to =
          transformed + (output / 16 * 16 * shape.input_channels + input) * std::ptrdiff_t{16} + output % 16;
      const std::ptrdiff_t place = std::ptrdiff_t{16} * shape.input_channels;
      for (int column = 0; column < 4; ++column) {
        float values[4];
        half_sums(rows[0][column], rows[1][column], rows[2][column], values);
        for (int row = 0; row < 4; ++row) to[(row * 4 + column) * place] = values[row];
      }
    }
  }
}

}  // namespace

void winograd_weight(const WinogradShape& shape, const float* weight, float* transformed) {
  transform(
      shape,
      [&](int input, int output, int row, int column) {
        return weight[((output * 3 + row) * 3 + column) * shape.input_channels + input];
      },
      transformed);
}

void winograd_gradient_weight(const WinogradShape& shape, const float* weight, float* transformed) {
  transform(
      shape,
      [&](int input, int output, int row, int column) {
        return weight[((input * 3 + 2 - row) * 3 + 2 - column) * shape.output_channels + output];
      },
      transformed);
}

}  // namespace nibble
