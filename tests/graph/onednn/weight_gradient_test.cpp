#include "graph/onednn/weight_gradient.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "graph/onednn/primitives.h"
#include "kernels/cpu.h"
#include "tests/graph/onednn/cases.h"
#include "tests/kernels/guarded_memory.h"

namespace nibble {
namespace {

/// Both as [output channel][row][column][input channel].
std::vector<float> computed_gradient(const WeightGradientShape& shape, const std::vector<float>& x,
                                     const std::vector<float>& dy, int images, const Bf16WeightGradient*) {
  std::vector<float> blocked(shape.count(), 1.0F), gradient(shape.count());
  weight_gradient_avx2(shape, x.data(), dy.data(), images, blocked.data());
  unblock_weight_gradient(shape, kFp32WeightGradientBlock, blocked.data(), gradient.data());
  return gradient;
}

/// The maps begin or end at pages that may not be accessed; the scratch memory is full of NaN.
std::vector<float> computed_gradient(const WeightGradientShape& shape, const std::vector<Bfloat16>& x,
                                     const std::vector<Bfloat16>& dy, int images,
                                     const Bf16WeightGradient* method, GuardedMemory::Guard guard) {
  const auto copied = [](GuardedMemory& memory, const void* values) {
    return std::memcpy(memory.data(), values, memory.size());
  };
  GuardedMemory x_memory(x.size() * sizeof(Bfloat16), guard), dy_memory(dy.size() * sizeof(Bfloat16), guard);
  GuardedMemory scratch(method->scratch(shape), guard), blocked(shape.count() * sizeof(float), guard);
  std::memset(scratch.data(), 0xFF, scratch.size());
  std::memset(blocked.data(), 0xFF, blocked.size());
  method->sum(shape, static_cast<const Bfloat16*>(copied(x_memory, x.data())),
              static_cast<const Bfloat16*>(copied(dy_memory, dy.data())), images, scratch.data(),
              reinterpret_cast<float*>(blocked.data()));
  EXPECT_TRUE(scratch.intact() && blocked.intact());
  std::vector<float> gradient(shape.count());
  unblock_weight_gradient(shape, method->block, reinterpret_cast<const float*>(blocked.data()),
                          gradient.data());
  return gradient;
}

std::vector<float> computed_gradient(const WeightGradientShape& shape, const std::vector<Bfloat16>& x,
                                     const std::vector<Bfloat16>& dy, int images,
                                     const Bf16WeightGradient* method) {
  const auto behind = computed_gradient(shape, x, dy, images, method, GuardedMemory::Guard::behind);
  EXPECT_EQ(behind, computed_gradient(shape, x, dy, images, method, GuardedMemory::Guard::before));
  return behind;
}

template <typename T>
std::vector<T> random_values(int images, int height, int width, int channels, std::uint32_t seed) {
  const auto values =
      cases::random_gradients(static_cast<std::size_t>(images * height * width * channels), seed);
  std::vector<T> result(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) store_value(values[i], &result[i]);
  return result;
}

template <typename T>
void check(const WeightGradientShape& shape, int images, const Bf16WeightGradient* method) {
  const int inputs = shape.input_channels;
  const int outputs = shape.output_channels;
  const auto x = random_values<T>(images, shape.input_height, shape.input_width, inputs, 1);
  const auto dy = random_values<T>(images, shape.output_height, shape.output_width, outputs, 2);
  const std::vector<float> actual = computed_gradient(shape, x, dy, images, method);

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
          const double product = double{to_float(x[static_cast<std::size_t>(from)])} *
                                 double{to_float(dy[static_cast<std::size_t>(pixel * outputs + output)])};
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

struct Case {
  int inputs, outputs, stride, height, width, images;
};

template <typename T>
void check(const std::vector<Case>& cases, const Bf16WeightGradient* method = nullptr) {
  for (const Case& each : cases) {
    const auto out = [&](int input) { return (input - 1) / each.stride + 1; };
    check<T>(
        {each.inputs, each.outputs, each.stride, each.height, each.width, out(each.height), out(each.width)},
        each.images, method);
  }
}

/// The networks' own shapes, odd maps, maps lower than the kernel, strips that do not divide the rows.
TEST(WeightGradient, IsTheSumOfProducts) {
  if (!has_avx2()) {
    GTEST_SKIP() << "this CPU has no AVX2: the network's steps use oneDNN's weight gradient";
  }
  check<float>({{16, 16, 1, 32, 32, 1},
                {16, 32, 2, 32, 32, 2},
                {32, 32, 1, 16, 16, 2},
                {32, 64, 2, 16, 16, 4},
                {64, 64, 1, 8, 8, 3},
                {2, 16, 1, 1, 2, 1},
                {6, 48, 1, 5, 7, 3},
                {6, 48, 2, 5, 7, 3},
                {4, 16, 2, 9, 4, 2},
                {4, 16, 1, 37, 33, 1},
                {2, 32, 2, 2, 3, 1},
                {66, 80, 1, 3, 3, 2}});
}

/// The same, and numbers of images that are odd or not a multiple of those that are summed at once.
void check_bf16(const Bf16WeightGradient& method) {
  check<Bfloat16>({{16, 16, 1, 32, 32, 1},
                   {16, 16, 1, 32, 32, 2},
                   {16, 32, 2, 32, 32, 3},
                   {32, 32, 1, 16, 16, 4},
                   {32, 64, 2, 16, 16, 4},
                   {64, 64, 1, 8, 8, 8},
                   {64, 64, 1, 8, 8, 11},
                   {16, 16, 1, 1, 2, 1},
                   {16, 48, 1, 5, 7, 3},
                   {48, 48, 2, 5, 7, 3},
                   {16, 16, 2, 9, 4, 2},
                   {16, 16, 1, 37, 33, 2},
                   {32, 16, 1, 3, 24, 3},
                   {16, 32, 2, 2, 3, 1},
                   {80, 80, 1, 3, 3, 2}},
                  &method);
}

TEST(WeightGradient, IsTheSumOfProductsInBf16) {
  if (!has_avx512_bf16()) {
    GTEST_SKIP() << "this CPU has no AVX512_BF16: it cannot train in BF16";
  }
  check_bf16(kAvx512WeightGradient);
}

TEST(WeightGradient, IsTheSumOfProductsWithAmx) {
  if (!onednn_has(dnnl::cpu_isa::avx512_core_amx)) {
    GTEST_SKIP() << "this CPU has no AMX that oneDNN may use: training in BF16 uses AVX512_BF16";
  }
  check_bf16(kAmxWeightGradient);
}

}  // namespace
}  // namespace nibble
