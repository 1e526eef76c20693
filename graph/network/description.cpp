#include "graph/network/description.h"

#include <array>
#include <span>

#include "graph/network/error.h"

namespace nibble {
namespace {

struct Stage {
  int channels;
  int blocks;
  int stride;  // of the first block
};

/// A network variant is one row here.
struct Variant {
  const char* name;
  int depth;
  const char* shortcut;
  int projection_kernel;
  std::array<Stage, 3> stages;
};

constexpr std::array<Stage, 3> he_stages(int n) {
  return {Stage{16, n, 1}, Stage{32, n, 2}, Stage{64, n, 2}};
}

constexpr Variant kVariants[] = {
    {"resnet_344", 24, "B", 3, {Stage{16, 3, 1}, Stage{32, 4, 2}, Stage{64, 4, 2}}},
    {"he", 8, "A", 0, he_stages(1)},
    {"he", 8, "B", 1, he_stages(1)},
    {"he", 20, "A", 0, he_stages(3)},
    {"he", 20, "B", 1, he_stages(3)},
    {"he", 32, "A", 0, he_stages(5)},
    {"he", 32, "B", 1, he_stages(5)},
    {"he", 44, "A", 0, he_stages(7)},
    {"he", 44, "B", 1, he_stages(7)},
    {"he", 56, "A", 0, he_stages(9)},
    {"he", 56, "B", 1, he_stages(9)},
};

/// How many of `outputs` positions see the input at kernel offset `tap` without touching the padding.
std::int64_t valid_positions(int outputs, int stride, int padding, int inputs, int tap) {
  std::int64_t valid = 0;
  for (int output = 0; output < outputs; ++output) {
    const int input = output * stride - padding + tap;
    valid += input >= 0 && input < inputs;
  }
  return valid;
}

NetworkDescription build(const Variant& variant) {
  NetworkDescription network{};
  network.variant = variant.name;
  network.depth = variant.depth;
  network.shortcut = variant.shortcut;
  network.image_channels = 3;
  network.image_size = 32;
  network.classes = 10;

  int channels = variant.stages[0].channels;
  int size = network.image_size;
  network.convolutions.push_back({"conv1", network.image_channels, channels, 3, 1, 1, size, size});
  for (const Stage& stage : variant.stages) {
    for (int i = 0; i < stage.blocks; ++i) {
      const int stride = i == 0 ? stage.stride : 1;
      const std::string name = "blocks." + std::to_string(network.blocks.size());
      Block block{};
      block.conv1 = static_cast<int>(network.convolutions.size());
      block.conv2 = block.conv1 + 1;
      block.projection = -1;
      network.convolutions.push_back({name + ".conv1", channels, stage.channels, 3, stride, 1, size, size});
      const int output_size = network.convolutions.back().output_height();
      network.convolutions.push_back(
          {name + ".conv2", stage.channels, stage.channels, 3, 1, 1, output_size, output_size});
      if (stride == 1 && channels == stage.channels) {
        block.shortcut = Shortcut::identity;
      } else if (variant.projection_kernel == 0) {
        block.shortcut = Shortcut::pad_channels;
      } else {
        block.shortcut = Shortcut::projection;
        block.projection = block.conv2 + 1;
        network.convolutions.push_back({name + ".shortcut", channels, stage.channels,
                                        variant.projection_kernel, stride, variant.projection_kernel / 2,
                                        size, size});
      }
      network.blocks.push_back(block);
      channels = stage.channels;
      size = output_size;
    }
  }
  network.feature_channels = channels;
  network.feature_size = size;
  return network;
}

}  // namespace

std::int64_t Convolution::multiply_accumulates() const {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  for (int tap = 0; tap < kernel; ++tap) {
    rows += valid_positions(output_height(), stride, padding, input_height, tap);
    columns += valid_positions(output_width(), stride, padding, input_width, tap);
  }
  return rows * columns * input_channels * output_channels;
}

std::int64_t NetworkDescription::multiply_accumulates() const {
  std::int64_t total = std::int64_t{feature_channels} * classes;
  for (const Convolution& convolution : convolutions) total += convolution.multiply_accumulates();
  return total;
}

std::int64_t NetworkDescription::parameter_count() const {
  std::int64_t total = std::int64_t{feature_channels} * classes + classes;
  for (const Convolution& convolution : convolutions) {
    total += convolution.weight_count() + 2 * convolution.output_channels;
  }
  return total;
}

NetworkDescription describe_network(const std::string& variant, int depth, const std::string& shortcut) {
  for (const Variant& row : kVariants) {
    const bool depth_fits = row.depth == depth || (depth == 0 && variant != "he");
    const bool shortcut_fits = row.shortcut == shortcut || (shortcut.empty() && variant != "he");
    if (row.name == variant && depth_fits && shortcut_fits) return build(row);
  }
  throw InputError("there is no network '" + variant + "' of depth " + std::to_string(depth) +
                   " with shortcut '" + shortcut +
                   "'; choose resnet_344, or he with depth 8, 20, 32, 44 or 56 and shortcut A or B");
}

}  // namespace nibble
