#include "graph/network/reference_network.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <set>

#include "graph/network/signature.h"
#include "tests/graph/network/random_network.h"

namespace nibble {
namespace {

/// The definition of the whole network once more, written apart from the reference: maps as [channel][row]
/// [column] of long double, sums in long double (exact), factors made where they are used.
using Real = long double;
using Map = std::vector<Real>;

class PlainNetwork {
 public:
  PlainNetwork(const QuantizedNetwork& quantized) : n_(quantized.network), p_(quantized.parameters) {}

  std::vector<float> logits(const std::uint8_t* pixels) {
    const int top = p_.weight_bits == 16 ? 32767 : 255;
    // The bordered image.
    Map image(3 * 34 * 34);
    for (int c = 0; c < 3; ++c) {
      const int mean[] = {124, 116, 104};
      for (int y = 0; y < 34; ++y) {
        for (int x = 0; x < 34; ++x) {
          const bool inside = y > 0 && y < 33 && x > 0 && x < 33;
          image[static_cast<std::size_t>((c * 34 + y) * 34 + x)] =
              inside ? pixels[((y - 1) * 32 + x - 1) * 3 + c] : mean[c];
        }
      }
    }
    float scale = p_.first_output_scale;
    Map r = quantize(convolve(0, image, 34, 0), 0, 1.0F, scale, {}, 0, 0, top);
    int size = 32;
    for (std::size_t b = 0; b < n_.blocks.size(); ++b) {
      const Block& block = n_.blocks[b];
      const QuantizedBlock& q = p_.blocks[b];
      Map x = r;
      if (q.input_bits < 8) {
        const float ratio =
            static_cast<float>(static_cast<double>(scale) / static_cast<double>(q.input_scale));
        for (Real& v : x) {
          v = std::min<float>(std::nearbyint(static_cast<float>(v) * ratio),
                              static_cast<float>((1 << q.input_bits) - 1));
        }
      }
      const int middle_top = q.middle_bits == 16 ? 32767 : (1 << q.middle_bits) - 1;
      const Map y = quantize(convolve(block.conv1, x, size, 1), block.conv1, q.input_scale, q.middle_scale,
                             {}, 0, 0, middle_top);
      const int stride = n_.convolutions[static_cast<std::size_t>(block.conv1)].stride;
      Map shortcut = r;
      float shortcut_scale = scale;
      if (block.shortcut == Shortcut::projection) {
        const int kernel = n_.convolutions[static_cast<std::size_t>(block.projection)].kernel;
        shortcut = quantize(convolve(block.projection, x, size, kernel / 2), block.projection, q.input_scale,
                            q.shortcut_scale, {}, 0, top == 255 ? -128 : -32768, top == 255 ? 127 : 32767);
        shortcut_scale = q.shortcut_scale;
      } else if (block.shortcut == Shortcut::pad_channels) {
        const int half = size / 2;
        const int channels = static_cast<int>(r.size()) / (size * size);
        shortcut.assign(static_cast<std::size_t>(2 * channels * half * half), 0);
        for (int c = 0; c < channels; ++c) {
          for (int i = 0; i < half; ++i) {
            for (int j = 0; j < half; ++j) {
              shortcut[static_cast<std::size_t>(((c + channels / 2) * half + i) * half + j)] =
                  r[static_cast<std::size_t>((c * size + 2 * i) * size + 2 * j)];
            }
          }
        }
      }
      size /= stride;
      r = quantize(convolve(block.conv2, y, size, 1), block.conv2, q.middle_scale, q.output_scale, shortcut,
                   shortcut_scale, 0, top);
      scale = q.output_scale;
    }
    std::vector<float> result;
    for (int k = 0; k < n_.classes; ++k) {
      const auto class_index = static_cast<std::size_t>(k);
      Real sum = 0;
      for (std::size_t c = 0; c < 64; ++c) {
        for (std::size_t i = 0; i < 64; ++i) sum += r[c * 64 + i] * p_.linear.weights[class_index * 64 + c];
      }
      const auto s = static_cast<float>(static_cast<double>(scale) *
                                        static_cast<double>(p_.linear.weight_scale[class_index]) / 64.0);
      const float product = static_cast<float>(static_cast<double>(sum)) * s;
      result.push_back(product + p_.linear.bias[class_index]);
    }
    return result;
  }

 private:
  Map convolve(int index, const Map& input, int size, int padding) const {
    const Convolution& c = n_.convolutions[static_cast<std::size_t>(index)];
    const std::vector<std::int16_t>& weights = p_.convolutions[static_cast<std::size_t>(index)].weights;
    const int outputs = (size + 2 * padding - c.kernel) / c.stride + 1;
    Map sums;
    for (int o = 0; o < c.output_channels; ++o) {
      for (int row = 0; row < outputs; ++row) {
        for (int column = 0; column < outputs; ++column) {
          Real sum = 0;
          for (int i = 0; i < c.input_channels; ++i) {
            for (int y = 0; y < c.kernel; ++y) {
              for (int x = 0; x < c.kernel; ++x) {
                const int u = row * c.stride + y - padding;
                const int v = column * c.stride + x - padding;
                if (u < 0 || v < 0 || u >= size || v >= size) continue;
                sum += input[static_cast<std::size_t>((i * size + u) * size + v)] *
                       weights[static_cast<std::size_t>(
                           ((o * c.kernel + y) * c.kernel + x) * c.input_channels + i)];
              }
            }
          }
          sums.push_back(sum);
        }
      }
    }
    return sums;
  }

  Map quantize(Map sums, int index, float input_scale, float output_scale, const Map& residual,
               float residual_scale, int lowest, int highest) const {
    const QuantizedLayer& layer = p_.convolutions[static_cast<std::size_t>(index)];
    const std::size_t positions = sums.size() / layer.weight_scale.size();
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const std::size_t c = i / positions;
      const auto s =
          static_cast<float>(static_cast<double>(input_scale) * static_cast<double>(layer.weight_scale[c]) /
                             static_cast<double>(output_scale));
      const auto b =
          static_cast<float>(static_cast<double>(layer.bias[c]) / static_cast<double>(output_scale));
      volatile float y = static_cast<float>(sums[i]) * s;  // volatile: rounded before the addition
      y = y + b;
      if (!residual.empty()) {
        // 15 + 24 bits of product and 24 of y fit the 64 of long double unless the exponents are far apart.
        const auto ratio =
            static_cast<float>(static_cast<double>(residual_scale) / static_cast<double>(output_scale));
        y = std::fma(static_cast<float>(residual[i]), ratio, y);
      }
      const float rounded = std::nearbyint(y);
      sums[i] = std::min(std::max(rounded, static_cast<float>(lowest)), static_cast<float>(highest));
    }
    return sums;
  }

  const NetworkDescription& n_;
  const QuantizedParameters& p_;
};

struct Case {
  const char* variant;
  int depth;
  const char* shortcut;
  int weight_bits;
  int activation_bits;
};

class ReferenceNetworkOf : public testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Networks, ReferenceNetworkOf,
                         testing::Values(Case{"resnet_344", 24, "B", 16, 16},
                                         Case{"resnet_344", 24, "B", 8, 8}, Case{"resnet_344", 24, "B", 4, 4},
                                         Case{"resnet_344", 24, "B", 2, 2}, Case{"resnet_344", 24, "B", 2, 8},
                                         Case{"he", 20, "A", 4, 4}, Case{"he", 20, "B", 2, 2},
                                         Case{"he", 32, "A", 8, 8}, Case{"he", 20, "A", 16, 16}));

TEST_P(ReferenceNetworkOf, EqualsThePlainDefinition) {
  const Case& c = GetParam();
  const QuantizedNetwork quantized =
      random_network(describe_network(c.variant, c.depth, c.shortcut), c.weight_bits, c.activation_bits, 11);
  const std::vector<std::uint8_t> pixels = random_pixels(1, 12);
  std::vector<float> logits(10);
  ReferenceNetwork(quantized).run(pixels.data(), 1, logits.data());
  EXPECT_EQ(logits, PlainNetwork(quantized).logits(pixels.data()));
  EXPECT_GT(std::set<float>(logits.begin(), logits.end()).size(), 5U) << "the network is dead";
}

TEST(ReferenceNetwork, DoesNotDependOnThreadsOrBatch) {
  const QuantizedNetwork quantized = random_network(describe_network("he", 20, "A"), 4, 4, 1);
  const ReferenceNetwork network(quantized);
  const std::vector<std::uint8_t> pixels = random_pixels(5, 2);
  std::vector<float> one_by_one(50);
  omp_set_num_threads(1);
  for (int i = 0; i < 5; ++i) network.run(pixels.data() + i * 3072, 1, one_by_one.data() + i * 10);
  omp_set_num_threads(3);
  std::vector<float> together(50);
  network.run(pixels.data(), 5, together.data());
  EXPECT_EQ(signature(one_by_one), signature(together));
}

TEST(Signature, IsXxh64OfTheBits) {
  // By the published algorithm, for no bytes and for the four bytes 00 00 80 3f.
  EXPECT_EQ(signature(std::span<const float>()), "ef46db3751d8e999");
  const float one = 1.0F;
  EXPECT_EQ(signature({&one, 1}), "7b54265d12bf1ccd");
}

}  // namespace
}  // namespace nibble
