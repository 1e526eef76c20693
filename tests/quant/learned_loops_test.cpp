#include "quant/learned_loops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/requantize.h"

namespace nibble {
namespace {

std::vector<float> random_values(std::size_t count, float spread, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-spread, spread);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(generator);
  return values;
}

TEST(LearnedLoops, ForwardIsTheOneRequantization) {
  const int channels = 16;
  const std::size_t count = 16 * 500;
  std::vector<float> acc = random_values(count, 3000, 1);
  std::vector<float> residual = random_values(count, 127, 2);
  for (float& value : acc) value = std::nearbyint(value);
  for (float& value : residual) value = std::nearbyint(value) + 127;
  const std::vector<float> scale = random_values(16, 0.01F, 3);
  const std::vector<float> offset = random_values(16, 5, 4);
  std::vector<float> q(count);
  const LoopRequantization map{channels, scale.data(), offset.data(), 0.03125F, -128, 127};
  for (const bool with_residual : {false, true}) {
    requantize_forward(map, acc.data(), with_residual ? residual.data() : nullptr, count, q.data());
    for (std::size_t i = 0; i < count; ++i) {
      const auto sum = static_cast<std::int32_t>(acc[i]);
      const std::size_t c = i % 16;
      const int expected = with_residual ? requantize(sum, scale[c], offset[c], static_cast<int>(residual[i]),
                                                      map.ratio, {-128, 127})
                                         : requantize(sum, scale[c], offset[c], {-128, 127});
      ASSERT_EQ(q[i], static_cast<float>(expected));
    }
  }
  std::vector<float> x(count);
  derive_forward(residual.data(), count, 0.0117F, 3, true, x.data());
  for (std::size_t i = 0; i < count; ++i) {
    ASSERT_EQ(x[i], static_cast<float>(derive_input(static_cast<int>(residual[i]), 0.0117F, 2)));
  }
}

/// The definition of the straight-through gradient, value by value in double.
TEST(LearnedLoops, BackwardIsItsDefinition) {
  const std::size_t count = 16 * 50;
  const std::vector<float> acc = random_values(count, 3000, 1);
  const std::vector<float> residual = random_values(count, 10, 2);
  const std::vector<float> scale = random_values(16, 0.01F, 3);
  const std::vector<float> offset = random_values(16, 5, 4);
  const std::vector<float> d = random_values(count, 1, 5);
  const LoopRequantization map{16, scale.data(), offset.data(), 0.5F, 0, 15};
  std::vector<float> g(d);
  std::vector<float> d_acc(count);
  std::vector<float> sums(3 * 16);
  requantize_backward(map, acc.data(), residual.data(), g.data(), count, g.data(), d_acc.data(), sums.data(),
                      sums.data() + 16, sums.data() + 32);
  std::vector<double> expected(3 * 16);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t c = i % 16;
    const double y = double{acc[i]} * double{scale[c]} + double{offset[c]} + 0.5 * double{residual[i]};
    const bool inside = y > 0 && y < 15;
    const double passed = inside ? double{d[i]} : 0;
    EXPECT_EQ(g[i], inside ? d[i] : 0.0F);
    EXPECT_EQ(d_acc[i], g[i] * scale[c]);
    expected[c] += passed;
    expected[16 + c] += passed * double{acc[i]} * double{scale[c]};
    expected[32 + c] += double{d[i]} * (inside ? std::nearbyint(y) - y : y <= 0 ? 0.0 : 15.0);
  }
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(double{sums[i]}, expected[i], 1e-3) << i;

  std::vector<float> dr(count);
  const double step = derive_backward(acc.data(), d.data(), count, 0.01F, 15, true, dr.data());
  double expected_step = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const float y = acc[i] * 0.01F;
    EXPECT_EQ(dr[i], y < 15 ? d[i] * 0.01F : 0.0F);
    const double x = std::nearbyint(std::min(std::max(double{y}, 0.0), 15.0));
    expected_step += double{d[i]} * (y < 15 ? x - double{y} : 15);
  }
  EXPECT_NEAR(step, expected_step, 1e-2 * std::fabs(expected_step) + 1e-2);
}

}  // namespace
}  // namespace nibble
