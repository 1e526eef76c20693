#include "graph/onednn/winograd.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/cpu.h"
#include "tests/graph/onednn/cases.h"

namespace nibble {
namespace {

std::vector<float> convolved(const WinogradShape& shape, const std::vector<float>& x, int images,
                             const std::vector<float>& transformed) {
  std::vector<float> scratch(shape.scratch_count() + 1, -7.0F);
  std::vector<float> y(static_cast<std::size_t>(images * shape.height * shape.width * shape.output_channels));
  winograd_avx512(shape, x.data(), transformed.data(), images, scratch.data(), y.data());
  EXPECT_EQ(scratch.back(), -7.0F);
  return y;
}

/// Of every output and input channel of each tap: visit(output, input, the tap's weight), in values.
template <typename Visit>
void for_products(const WinogradShape& shape, int images, const Visit& visit) {
  for (int pixel = 0; pixel < images * shape.height * shape.width; ++pixel) {
    for (int tap = 0; tap < 9; ++tap) {
      const int row = pixel / shape.width % shape.height + tap / 3 - 1;
      const int column = pixel % shape.width + tap % 3 - 1;
      if (row < 0 || row >= shape.height || column < 0 || column >= shape.width) continue;
      const int from = pixel + (tap / 3 - 1) * shape.width + tap % 3 - 1;
      for (int output = 0; output < shape.output_channels; ++output) {
        for (int input = 0; input < shape.input_channels; ++input) {
          visit(static_cast<std::size_t>(pixel * shape.output_channels + output),
                static_cast<std::size_t>(from * shape.input_channels + input),
                static_cast<std::size_t>((output * 9 + tap) * shape.input_channels + input));
        }
      }
    }
  }
}

void check(const std::vector<float>& actual, const std::vector<double>& expected,
           const std::vector<double>& magnitude) {
  for (std::size_t i = 0; i < actual.size(); ++i)
    ASSERT_NEAR(actual[i], expected[i], 1e-6 * magnitude[i]) << i;
}

/// The networks' own shapes, maps as small as a tile's outputs, numbers of tiles that 16 does not divide.
TEST(Winograd, IsTheConvolutionAndItsDataGradient) {
  if (!has_avx512_bf16()) {
    GTEST_SKIP() << "this CPU has no AVX-512 with BF16: FP32 steps use oneDNN's convolutions";
  }
  struct Case {
    WinogradShape shape;
    int images;
  };
  for (const auto& [shape, images] :
       {Case{{16, 16, 32, 32}, 1}, Case{{32, 32, 16, 16}, 2}, Case{{64, 64, 8, 8}, 4},
        Case{{16, 32, 2, 2}, 3}, Case{{64, 16, 4, 6}, 3}, Case{{32, 64, 6, 2}, 1}}) {
    SCOPED_TRACE(testing::Message() << shape.input_channels << " to " << shape.output_channels << ", "
                                    << shape.height << "x" << shape.width << ", " << images << " images");
    const int pixels = images * shape.height * shape.width;
    const auto x = cases::random_gradients(static_cast<std::size_t>(pixels * shape.input_channels), 1);
    const auto dy = cases::random_gradients(static_cast<std::size_t>(pixels * shape.output_channels), 2);
    const auto weight = cases::random_gradients(
        static_cast<std::size_t>(9 * shape.input_channels * shape.output_channels), 3);
    std::vector<double> y(dy.size()), y_magnitude(dy.size()), dx(x.size()), dx_magnitude(x.size());
    for_products(shape, images, [&](std::size_t output, std::size_t input, std::size_t tap) {
      const double forward = double{x[input]} * double{weight[tap]};
      const double backward = double{dy[output]} * double{weight[tap]};
      y[output] += forward;
      y_magnitude[output] += std::abs(forward);
      dx[input] += backward;
      dx_magnitude[input] += std::abs(backward);
    });
    std::vector<float> transformed(shape.weight_count());
    winograd_weight(shape, weight.data(), transformed.data());
    check(convolved(shape, x, images, transformed), y, y_magnitude);

    const WinogradShape gradient{shape.output_channels, shape.input_channels, shape.height, shape.width};
    winograd_gradient_weight(gradient, weight.data(), transformed.data());
    check(convolved(gradient, dy, images, transformed), dx, dx_magnitude);
  }
}

}  // namespace
}  // namespace nibble
