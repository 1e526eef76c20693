#include "quant/rounding_search.h"

#include <algorithm>
#include <cmath>
#include <dnnl.hpp>

#include "kernels/requantize.h"

namespace nibble {
namespace {

constexpr std::size_t kLargestSample = 65536;
/// Patches summed in float32 at a time: 256 * 255^2 < 2^24, so every sum is an exact integer.
constexpr std::size_t kExactPatches = 256;

std::size_t at(int index) {
  return static_cast<std::size_t>(index);
}

/// What the taps of output pixel (row, column) read.
void copy_patch(const Convolution& shape, const std::int16_t* image, int row, int column, float* patch) {
  const auto channels = at(shape.input_channels);
  for (int tap_row = 0; tap_row < shape.kernel; ++tap_row) {
    for (int tap_column = 0; tap_column < shape.kernel; ++tap_column, patch += channels) {
      const int from_row = row * shape.stride + tap_row - shape.padding;
      const int from_column = column * shape.stride + tap_column - shape.padding;
      const bool inside = from_row >= 0 && from_row < shape.input_height && from_column >= 0 &&
                          from_column < shape.input_width;
      if (inside) {
        std::copy_n(image + at(from_row * shape.input_width + from_column) * channels, channels, patch);
      } else {
        std::fill_n(patch, channels, 0.0F);
      }
    }
  }
}

/// The levels below and above `level`; `level` itself where there is none.
std::pair<int, int> neighbours(int level, const WeightRule& rule) {
  if (rule.bits != 2) {
    const int limit = weight_limit(rule.bits);
    return {std::max(level - 1, -limit), std::min(level + 1, limit)};
  }
  const auto found = std::find(rule.levels.begin(), rule.levels.end(), level);
  return {found == rule.levels.begin() ? level : *(found - 1),
          found + 1 == rule.levels.end() ? level : *(found + 1)};
}

std::vector<double> times(std::span<const double> covariance, std::span<const double> vector) {
  const std::size_t taps = vector.size();
  std::vector<double> product(taps);
  for (std::size_t i = 0; i < taps; ++i) {
    if (vector[i] == 0) continue;
    const double* row = &covariance[i * taps];
    for (std::size_t j = 0; j < taps; ++j) product[j] += vector[i] * row[j];
  }
  return product;
}

double dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// In units of the scale. Returns whether an integer moved.
bool descend(std::span<const double> scaled_weights, std::span<const double> covariance,
             const WeightRule& rule, std::span<std::int16_t> integers) {
  const std::size_t taps = integers.size();
  std::vector<double> error(taps);
  for (std::size_t i = 0; i < taps; ++i) error[i] = scaled_weights[i] - integers[i];
  std::vector<double> slope = times(covariance, error);
  bool moved = false;
  // Every move lessens the error, so no state comes twice; the bound is against endless rounding noise.
  for (std::size_t moves = 0; moves < 8 * taps; ++moves) {
    double best = 0;
    std::size_t which = 0;
    int target = 0;
    for (std::size_t i = 0; i < taps; ++i) {
      const auto [below, above] = neighbours(integers[i], rule);
      const int wanted = slope[i] > 0 ? above : below;
      const double step = wanted - integers[i];
      const double change = step * (step * covariance[i * taps + i] - 2 * slope[i]);
      if (change < best) {
        best = change;
        which = i;
        target = wanted;
      }
    }
    if (!(best < -1e-9 * covariance[which * taps + which])) break;
    const double step = target - integers[which];
    integers[which] = static_cast<std::int16_t>(target);
    for (std::size_t j = 0; j < taps; ++j) slope[j] -= step * covariance[which * taps + j];
    moved = true;
  }
  return moved;
}

}  // namespace

std::vector<double> tap_covariance(const Convolution& shape, const Integers& inputs) {
  const std::size_t taps = at(shape.kernel * shape.kernel * shape.input_channels);
  const std::size_t image_values = at(shape.input_height * shape.input_width * shape.input_channels);
  const std::size_t pixels = at(shape.output_height() * shape.output_width());
  const std::size_t all = inputs.size() / image_values * pixels;
  // Odd, so that all columns and rows are met, whose numbers are powers of two.
  const std::size_t step = std::max<std::size_t>(1, all / kLargestSample) | 1;
  std::vector<double> products(taps * taps);
  std::vector<double> sums(taps);
  std::vector<float> patches(kExactPatches * taps);
  std::vector<float> part(taps * taps);
  std::size_t count = 0;
  for (std::size_t next = 0; next < all;) {
    std::size_t filled = 0;
    for (; filled < kExactPatches && next < all; ++filled, next += step) {
      const int pixel = static_cast<int>(next % pixels);
      copy_patch(shape, &inputs[next / pixels * image_values], pixel / shape.output_width(),
                 pixel % shape.output_width(), &patches[filled * taps]);
      for (std::size_t i = 0; i < taps; ++i) sums[i] += double{patches[filled * taps + i]};
    }
    const auto size = static_cast<dnnl_dim_t>(taps);
    dnnl::sgemm('T', 'N', size, size, static_cast<dnnl_dim_t>(filled), 1.0F, patches.data(), size,
                patches.data(), size, 0.0F, part.data(), size);
    for (std::size_t i = 0; i < products.size(); ++i) products[i] += double{part[i]};
    count += filled;
  }
  const auto number = static_cast<double>(count);
  for (std::size_t i = 0; i < taps; ++i) {
    for (std::size_t j = 0; j < taps; ++j) {
      products[i * taps + j] = products[i * taps + j] / number - sums[i] / number * sums[j] / number;
    }
  }
  return products;
}

double output_error(std::span<const float> weights, double scale, std::span<const std::int16_t> integers,
                    std::span<const double> covariance) {
  std::vector<double> error(weights.size());
  for (std::size_t i = 0; i < error.size(); ++i) error[i] = double{weights[i]} - scale * integers[i];
  return dot(error, times(covariance, error));
}

double search_rounding(std::span<const float> weights, double scale, std::span<const double> covariance,
                       const WeightRule& rule, std::span<std::int16_t> integers) {
  const std::vector<double> real(weights.begin(), weights.end());
  const std::vector<double> wanted = times(covariance, real);
  constexpr int rounds = 10;
  for (int round = 0; round < rounds; ++round) {
    std::vector<double> scaled(real);
    for (double& weight : scaled) weight /= scale;
    // The given scale is not fitted to the covariance yet.
    if (!descend(scaled, covariance, rule, integers) && round > 0) break;
    const std::vector<double> now(integers.begin(), integers.end());
    const double square = dot(now, times(covariance, now));
    const double product = dot(now, wanted);
    if (!(square > 0 && product > 0)) break;
    scale = product / square;
  }
  return scale;
}

}  // namespace nibble
