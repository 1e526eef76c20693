#include "train/mixup.h"

#include <cmath>
#include <numbers>

#include "graph/data/random.h"

namespace nibble {
namespace {

double normal(SplitMix64& random) {  // Box and Muller
  const double radius = std::sqrt(-2 * std::log(1 - random.uniform()));
  return radius * std::cos(2 * std::numbers::pi * random.uniform());
}

/// Marsaglia and Tsang 2000. For shape < 1: Gamma(shape) = Gamma(shape + 1) * U^(1 / shape).
double gamma(SplitMix64& random, double shape) {
  if (shape < 1) return gamma(random, shape + 1) * std::pow(1 - random.uniform(), 1 / shape);
  const double d = shape - 1.0 / 3;
  const double c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = normal(random);
    const double v = std::pow(1 + c * x, 3);
    if (v > 0 && std::log(1 - random.uniform()) < x * x / 2 + d - d * v + d * std::log(v)) return d * v;
  }
}

}  // namespace

Mixup draw_mixup(double alpha, std::uint64_t seed, std::uint64_t epoch, int batch, int size) {
  constexpr std::uint64_t purpose = 0x6d69787570;  // keeps this stream apart from the images' augmentation
  SplitMix64 random(mix_seed(seed, epoch, batch, purpose));
  const double first = gamma(random, alpha);
  const double second = gamma(random, alpha);
  Mixup mixup;
  // Both can be zero for a very small alpha; Beta(alpha, alpha) is then 0 or 1.
  mixup.weight = first + second > 0 ? first / (first + second) : 1;
  mixup.shift = size > 1 ? 1 + static_cast<int>(random.below(static_cast<std::uint32_t>(size - 1))) : 0;
  return mixup;
}

void mix_images(const Mixup& mixup, int size, std::span<const std::uint8_t> pixels,
                std::span<std::uint8_t> mixed) {
  const std::size_t images = static_cast<std::size_t>(size);
  const std::size_t length = pixels.size() / images;
  const float own = static_cast<float>(mixup.weight);
  const float other = static_cast<float>(1 - mixup.weight);
  for (std::size_t image = 0; image < images; ++image) {
    const std::uint8_t* const a = pixels.data() + image * length;
    const std::uint8_t* const b =
        pixels.data() + (image + static_cast<std::size_t>(mixup.shift)) % images * length;
    std::uint8_t* const result = mixed.data() + image * length;
    for (std::size_t i = 0; i < length; ++i) {
      result[i] =
          static_cast<std::uint8_t>(static_cast<float>(a[i]) * own + static_cast<float>(b[i]) * other + 0.5F);
    }
  }
}

}  // namespace nibble
