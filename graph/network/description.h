#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

/// One convolution of a network: shapes only. Weights are [output channel][row][column][input channel].
struct Convolution {
  std::string name;  ///< "conv1", "blocks.3.conv2", "blocks.3.shortcut": the prefix of its tensors.
  int input_channels;
  int output_channels;
  int kernel;   ///< rows = columns: 3 or 1
  int stride;   ///< 1 or 2
  int padding;  ///< zeros on each side
  int input_height;
  int input_width;

  int output_height() const { return (input_height + 2 * padding - kernel) / stride + 1; }
  int output_width() const { return (input_width + 2 * padding - kernel) / stride + 1; }
  std::int64_t weight_count() const {
    return std::int64_t{output_channels} * kernel * kernel * input_channels;
  }
  /// Multiply-accumulates an image, valid taps only: products with the padding's zeros do not count.
  std::int64_t multiply_accumulates() const;
};

enum class Shortcut {
  identity,      ///< the block's input itself
  pad_channels,  ///< He et al. 2015, option A: every second row and column, new channels are zero
  projection     ///< a convolution with batch normalization (option B, or 3x3 in `resnet_344`)
};

/// A residual block: conv1 - BN - ReLU - conv2 - BN, plus the shortcut, then ReLU.
/// The integers index NetworkDescription::convolutions.
struct Block {
  int conv1;
  int conv2;
  Shortcut shortcut;
  int projection;  ///< -1 unless shortcut == Shortcut::projection
};

/// A residual network for 32x32 colour images as data. Every execution (float, int8, integer) walks this.
///
///   pixels -> convolutions[0], BN, ReLU -> blocks -> average over rows and columns -> linear -> logits
struct NetworkDescription {
  std::string variant;   ///< "resnet_344" or "he"
  int depth;             ///< layers with weights on the main path, as He et al. count them
  std::string shortcut;  ///< "A" or "B" for `he`; "B" (a 3x3 projection) for `resnet_344`

  std::vector<Convolution>
      convolutions;  ///< in the order of execution; a projection follows its block's conv2
  std::vector<Block> blocks;
  int image_channels = 3;
  int image_size = 32;
  int feature_channels;  ///< inputs of the linear layer
  int feature_size;      ///< rows = columns of the last map, averaged by the pool
  int classes = 10;

  std::int64_t multiply_accumulates() const;  ///< convolutions and linear layer, an image, valid taps only
  std::int64_t parameter_count() const;       ///< weights, BN gamma and beta, linear weights and bias
  bool operator==(const NetworkDescription& other) const {
    return variant == other.variant && depth == other.depth && shortcut == other.shortcut;
  }
};

/// The network called `variant`: "resnet_344" (depth and shortcut are its own and may be 0 and "") or
/// "he" (depth 20, 32, 44 or 56, or 8 for quick trials; shortcut "A" or "B"; He et al. 2015,
/// arXiv:1512.03385, section 4.2). Throws InputError when there is no such network, naming those that exist.
NetworkDescription describe_network(const std::string& variant, int depth, const std::string& shortcut);

}  // namespace nibble
