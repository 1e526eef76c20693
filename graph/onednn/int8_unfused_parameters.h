#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "graph/network/description.h"

namespace nibble {

/// A convolution and its batch normalization, each with an s8 output of its own scale.
///
///   s8 x (the first: u8 pixels) -> convolution -> s8, convolution_scale -> batch normalization -> s8,
///   output_scale
struct UnfusedConvolution {
  std::vector<std::int8_t> weights;  ///< [output channel][row][column][input channel], not folded
  std::vector<float> weight_scale;   ///< [output channel], > 0
  std::vector<float> gamma;          ///< batch normalization in real units, as the next three
  std::vector<float> beta;
  std::vector<float> mean;
  std::vector<float> variance;
  float convolution_scale;
  float output_scale;  ///< before a ReLU it covers the positive values only: the others become 0 anyway
};

/// The unfused 8-bit network: every operation is a primitive of its own, every tensor but the
/// pixels is s8 with zero point 0.
struct UnfusedParameters {
  std::vector<UnfusedConvolution> convolutions;  ///< in the order of NetworkDescription::convolutions
  std::vector<float> block_scale;                ///< of the stream that leaves each block
  std::vector<std::int8_t> linear_weights;       ///< [class][feature]
  std::vector<float> linear_scale;               ///< [class]
  std::vector<float> linear_bias;
  std::map<std::string, std::string> provenance;  ///< as QuantizedParameters::provenance
};

struct UnfusedNetwork {
  NetworkDescription network;
  UnfusedParameters parameters;
};

inline constexpr const char* unfused_format = "nibble-unfused-1";

/// Writes a "nibble-unfused-1" file: "<convolution>.weight" and "linear.weight" (I8), "<convolution>.gamma",
/// ".beta", ".mean", ".variance" and ".weight_scale" (F32), "linear.scale", "linear.bias", and "scales" (F32:
/// convolution_scale and output_scale of each convolution, then block_scale). Throws RunError.
void write_unfused(const std::filesystem::path& path, const UnfusedNetwork& unfused);

/// Reads and checks it. Throws InputError that names the file, the tensor and what was expected.
UnfusedNetwork read_unfused(const std::filesystem::path& path);

}  // namespace nibble
