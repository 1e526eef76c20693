#include "graph/onednn/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "graph/onednn/elementwise_tables.h"
#include "kernels/cpu.h"

namespace nibble {
namespace {

struct Fp32 {
  using Type = float;
  static const ElementwiseLoops<float>& avx2() { return elementwise_avx2_fp32(); }
  static const ElementwiseLoops<float>& avx512() { return elementwise_avx512_fp32(); }
  static constexpr double rounding = 0x1p-23;
};
struct Bf16 {
  using Type = Bfloat16;
  static const ElementwiseLoops<Bfloat16>& avx2() { return elementwise_avx2_bf16(); }
  static const ElementwiseLoops<Bfloat16>& avx512() { return elementwise_avx512_bf16(); }
  static constexpr double rounding = 0x1p-8;
};

template <typename Kind>
class Elementwise : public testing::Test {
 protected:
  using Value = typename Kind::Type;

  std::vector<Value> values(std::size_t count) {
    std::vector<Value> result(count);
    for (Value& value : result) store_value(normal_(generator_), &value);
    return result;
  }
  std::vector<float> floats(std::size_t count) {
    std::vector<float> result(count);
    for (float& value : result) value = normal_(generator_);
    return result;
  }

 private:
  std::mt19937 generator_{1};
  std::normal_distribution<float> normal_;
};

using Kinds = testing::Types<Fp32, Bf16>;
TYPED_TEST_SUITE(Elementwise, Kinds);

double as_double(float value) {
  return double{value};
}
double as_double(Bfloat16 value) {
  return double{to_float(value)};
}

/// Every loop, from all tables, against its definition in double, for the channel counts and some that are
/// not a power of two, and row counts around the length of a run of sums.
TYPED_TEST(Elementwise, LoopsAreTheirDefinitions) {
  using T = typename TypeParam::Type;
  std::vector<const ElementwiseLoops<T>*> tables = {&elementwise_baseline<T>()};
  if (has_avx2()) tables.push_back(&TypeParam::avx2());
  if (has_avx512_bf16()) tables.push_back(&TypeParam::avx512());
  for (const ElementwiseLoops<T>* loops : tables) {
    for (const int channels : {16, 32, 48, 64, 80}) {
      for (const std::size_t rows : {1U, 3U, 63U, 64U, 65U, 200U}) {
        const auto n = static_cast<std::size_t>(channels);
        const auto y = this->values(rows * n);
        const auto d = this->values(rows * n);
        const auto shortcut = this->values(rows * n);
        const auto scale = this->floats(n);
        const auto shift = this->floats(n);
        const auto mean = this->floats(n);
        std::vector<T> z(rows * n), g(rows * n);
        std::vector<double> sum(n, 1.0), product(n, 2.0);
        std::vector<double> expected_sum, expected_product;
        const auto check = [&](const std::vector<T>& actual, const auto& definition) {
          for (std::size_t i = 0; i < actual.size(); ++i) {
            const double expected = definition(i, i % n);
            ASSERT_NEAR(as_double(actual[i]), expected, TypeParam::rounding * std::abs(expected) + 2e-6) << i;
          }
        };
        const auto check_sums = [&](const std::vector<double>& actual, double start, const auto& term) {
          std::vector<double> expected(n, start), magnitude(n, start);
          for (std::size_t i = 0; i < rows * n; ++i) {
            expected[i % n] += term(i, i % n);
            magnitude[i % n] += std::abs(term(i, i % n));
          }
          for (std::size_t c = 0; c < n; ++c) ASSERT_NEAR(actual[c], expected[c], 2e-6 * magnitude[c]) << c;
        };
        const auto at = [](const auto& values, std::size_t i) { return as_double(values[i]); };
        const auto line = [&](std::size_t i, std::size_t c) {
          return at(y, i) * at(scale, c) + at(shift, c);
        };

        loops->statistics(y.data(), rows, channels, mean.data(), sum.data(), product.data());
        check_sums(sum, 1.0, [&](std::size_t i, std::size_t c) { return at(y, i) - at(mean, c); });
        check_sums(product, 2.0,
                   [&](std::size_t i, std::size_t c) { return std::pow(at(y, i) - at(mean, c), 2); });

        loops->normalize_relu(y.data(), rows, channels, scale.data(), shift.data(), z.data());
        check(z, [&](std::size_t i, std::size_t c) { return std::max(line(i, c), 0.0); });
        loops->normalize_add_relu(y.data(), rows, channels, scale.data(), shift.data(), shortcut.data(),
                                  z.data());
        check(z, [&](std::size_t i, std::size_t c) { return std::max(line(i, c) + at(shortcut, i), 0.0); });
        loops->normalize_project_relu(y.data(), rows, channels, scale.data(), shift.data(), shortcut.data(),
                                      mean.data(), z.data());
        check(z, [&](std::size_t i, std::size_t c) {
          return std::max(line(i, c) + at(shortcut, i) * at(mean, c), 0.0);
        });

        sum.assign(n, 0.0);
        product.assign(n, 0.0);
        loops->mask_by_output(d.data(), y.data(), rows, channels, scale.data(), shift.data(), mean.data(),
                              g.data(), sum.data(), product.data());
        const auto by_output = [&](std::size_t i, std::size_t c) { return line(i, c) > 0 ? at(d, i) : 0.0; };
        check(g, by_output);
        check_sums(sum, 0.0, by_output);
        check_sums(product, 0.0,
                   [&](std::size_t i, std::size_t c) { return by_output(i, c) * (at(y, i) - at(mean, c)); });

        for (const T* other : {static_cast<const T*>(nullptr), shortcut.data()}) {
          sum.assign(n, 0.0);
          product.assign(n, 0.0);
          loops->mask_by_sign(d.data(), other, z.data(), y.data(), rows, channels, mean.data(), g.data(),
                              sum.data(), product.data());
          const auto by_sign = [&](std::size_t i, std::size_t) {
            return at(z, i) > 0 ? at(d, i) + (other == nullptr ? 0.0 : at(shortcut, i)) : 0.0;
          };
          check(g, by_sign);
          check_sums(sum, 0.0, by_sign);
          check_sums(product, 0.0,
                     [&](std::size_t i, std::size_t c) { return by_sign(i, c) * (at(y, i) - at(mean, c)); });
        }
        product.assign(n, 0.0);
        loops->gradient_product(d.data(), y.data(), rows, channels, mean.data(), product.data());
        check_sums(product, 0.0,
                   [&](std::size_t i, std::size_t c) { return at(d, i) * (at(y, i) - at(mean, c)); });
        loops->input_gradient(d.data(), y.data(), rows, channels, scale.data(), shift.data(), mean.data(),
                              g.data());
        check(g, [&](std::size_t i, std::size_t c) {
          return at(scale, c) * at(d, i) + at(shift, c) * at(y, i) + at(mean, c);
        });
        const auto exact = this->floats(rows * n);
        loops->input_gradient_of_sums(d.data(), exact.data(), rows, channels, scale.data(), shift.data(),
                                      mean.data(), g.data());
        check(g, [&](std::size_t i, std::size_t c) {
          return at(scale, c) * at(d, i) + at(shift, c) * at(exact, i) + at(mean, c);
        });
      }
    }
  }
}

TEST(Bfloat16Value, RoundsToNearestEven) {
  const auto rounded = [](float value) {
    Bfloat16 result;
    store_value(value, &result);
    return to_float(result);
  };
  EXPECT_EQ(rounded(1.0F), 1.0F);
  EXPECT_EQ(rounded(1.0F + 0x1p-8F), 1.0F);                          // half way, to even
  EXPECT_EQ(rounded(1.0F + 0x1p-7F + 0x1p-8F), 1.0F + 2 * 0x1p-7F);  // half way, to even
  EXPECT_EQ(rounded(1.0F + 0x1p-8F + 0x1p-20F), 1.0F + 0x1p-7F);     // above half way
  EXPECT_EQ(rounded(-3.0F - 0x1p-7F), -3.0F);                        // a tie below -3
}

}  // namespace
}  // namespace nibble
