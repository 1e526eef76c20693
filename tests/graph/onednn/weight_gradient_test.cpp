#include "graph/onednn/weight_gradient.h"

#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <vector>

#include "tests/graph/onednn/cases.h"

namespace nibble {
namespace {

void check(const WeightGradientShape& shape, int images) {
  const int inputs = shape.input_channels;
  const int outputs = shape.output_channels;
  const auto size = [](int a, int b, int c, int d) { return static_cast<std::size_t>(a * b * c * d); };
  const auto x = cases::random_gradients(size(images, shape.input_height, shape.input_width, inputs), 1);
  const auto dy = cases::random_gradients(size(images, shape.output_height, shape.output_width, outputs), 2);
  std::vector<float> blocked(shape.count(), 1.0F), actual(shape.count());
  weight_gradient_avx2(shape, x.data(), dy.data(), images, blocked.data());
  unblock_weight_gradient(shape, blocked.data(), actual.data());

  for (int output = 0; output < outputs; ++output) {
    for (int tap = 0; tap < 9; ++tap) {
      for (int input = 0; input < inputs; ++input) {
        double expected = 0;
        double magnitude = 0;
        for (int pixel = 0; pixel < images * shape.output_height * shape.output_width; ++pixel) {
          const int column = pixel % shape.output_width * shape.stride + tap % 3 - 1;
          const int row = pixel / shape.output_width % shape.output_height * shape.stride + tap / 3 - 1;
          if (row < 0 || row >= shape.input_height || column < 0 || column >= shape.input_width) continue;
          const int image = pixel / (shape.output_width * shape.output_height);
          const int from = ((image * shape.input_height + row) * shape.input_width + column) * inputs + input;
          const double product = double{x[static_cast<std::size_t>(from)]} *
                                 double{dy[static_cast<std::size_t>(pixel * outputs + output)]};
          expected += product;
          magnitude += std::abs(product);
        }
        const int at = (output * 9 + tap) * inputs + input;
        ASSERT_NEAR(actual[static_cast<std::size_t>(at)], expected, 2e-6 * magnitude)
            << inputs << "x" << outputs << " stride " << shape.stride << ", " << shape.input_height << "x"
            << shape.input_width << ", output " << output << " tap " << tap << " input " << input;
      }
    }
  }
}

/// The networks' own shapes, odd maps, maps lower than the kernel, strips that do not divide the rows.
TEST(WeightGradient, IsTheSumOfProducts) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::cout << "this CPU has no AVX2: the network's steps use oneDNN's weight gradient\n";
    return;
  }
  struct Case {
    int inputs, outputs, stride, height, width, images;
  };
  for (const Case& each : {Case{16, 16, 1, 32, 32, 1}, Case{16, 32, 2, 32, 32, 2}, Case{32, 32, 1, 16, 16, 2},
                           Case{32, 64, 2, 16, 16, 4}, Case{64, 64, 1, 8, 8, 3}, Case{2, 16, 1, 1, 2, 1},
                           Case{6, 48, 1, 5, 7, 3}, Case{6, 48, 2, 5, 7, 3}, Case{4, 16, 2, 9, 4, 2},
                           Case{4, 16, 1, 37, 33, 1}, Case{2, 32, 2, 2, 3, 1}, Case{66, 80, 1, 3, 3, 2}}) {
    const auto out = [&](int input) { return (input - 1) / each.stride + 1; };
    check(
        {each.inputs, each.outputs, each.stride, each.height, each.width, out(each.height), out(each.width)},
        each.images);
  }
}

}  // namespace
}  // namespace nibble
