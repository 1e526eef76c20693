#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/tensor_file.h"

namespace nibble {

/// A convolution or linear layer in integers; real weight = weights * weight_scale[output channel].
struct QuantizedLayer {
  int weight_bits;  ///< 16, 8, 4 or 2
  std::vector<std::int16_t>
      levels;  ///< at 2 bits: the four integer values that codes 0..3 stand for; else empty
  std::vector<std::int16_t>
      weights;  ///< [output channel][row][column][input channel]; linear: [class][feature]
  std::vector<float> weight_scale;  ///< [output channel], > 0
  std::vector<float> bias;          ///< [output channel], real units; BN (and the pixels' mean) folded in
};

/// The activations of one residual block.
///
///   stream r (u8 or u15) --x, input_bits--> conv1 --y1, middle_bits--> conv2 -+-> stream r'
///         \------------------- identity, pad_channels or projection(x), s8 ---/
struct QuantizedBlock {
  int input_bits;        ///< width of x, which conv1 and a projection read
  int middle_bits;       ///< width of y1, which conv2 reads
  float input_scale;     ///< s_x; equals the stream's scale where x is the stream itself (8 and 16 bits)
  float middle_scale;    ///< of y1
  float shortcut_scale;  ///< of a projection's signed output; 1 where there is no projection
  float output_scale;    ///< of the stream r' that leaves the block
};

/// Entry of a file's provenance where the blocks' widths differ: bits of each block, in their order. The
/// nominal widths are the widest ones then.
inline constexpr const char* kMixedWidths = "widths";

/// A quantized network (fused: batch normalization folded). The definition of every integer is in
/// kernels/requantize.h; files hold exactly this.
struct QuantizedParameters {
  int weight_bits;                           ///< nominal: 16, 8, 4 or 2
  int activation_bits;                       ///< nominal
  std::vector<QuantizedLayer> convolutions;  ///< in the order of NetworkDescription::convolutions
  float first_output_scale;                  ///< of the stream that leaves the first convolution
  std::vector<QuantizedBlock> blocks;
  QuantizedLayer linear;
  /// Free text about where the integers come from: "source_sha256", "calibration_seed", "calibration_count",
  /// "calibration_sha256", "observer", "method", ...
  std::map<std::string, std::string> provenance;

  /// The residual stream is u15 in a 16-bit network and u8 in all others.
  int residual_bits() const { return weight_bits == 16 ? 16 : 8; }
};

struct QuantizedNetwork {
  NetworkDescription network;
  QuantizedParameters parameters;
};

inline constexpr const char* kIntegerFormat = "nibble-integer-1";  ///< metadata entry "format" of such a file

/// A file of kIntegerFormat: each layer's weights packed to its width as U8 (canonical order, lowest bits
/// first), all scales in the tensor "scales", all biases in "biases". Throws InputError for parameters that
/// no reader would take.
TensorFile tensor_file_of(const QuantizedNetwork& quantized);

/// Writes it. Throws RunError.
void write_quantized(const std::filesystem::path& path, const QuantizedNetwork& quantized);

/// Reads and checks everything: sizes against the network, widths, levels, scales > 0, finite biases, value
/// ranges of each width. Throws InputError that names the file, the tensor and what was expected.
QuantizedNetwork read_quantized(const std::filesystem::path& path);

/// Widths of the activations that each convolution reads, in the network's order; the first reads 8-bit
/// pixels.
std::vector<int> input_widths(const QuantizedNetwork& quantized);

/// Fraction of the convolutions' and linear layer's MACs (valid taps) that run at the nominal widths.
double nominal_mac_fraction(const QuantizedNetwork& quantized);

}  // namespace nibble
