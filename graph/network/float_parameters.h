#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/tensor_file.h"

namespace nibble {

/// Added to the variance before the square root, as in PyTorch.
inline constexpr double kBatchNormalizationEpsilon = 1e-5;

/// Mean and deviation that pixels / 255 are normalized with (ImageNet's, red green blue).
inline constexpr float kPixelMean[3] = {0.485F, 0.456F, 0.406F};
inline constexpr float kPixelDeviation[3] = {0.229F, 0.224F, 0.225F};

struct FloatConvolution {
  std::vector<float> weight;  ///< [output channel][row][column][input channel]
  std::vector<float> gamma;   ///< batch normalization, one value an output channel, as the next three
  std::vector<float> beta;
  std::vector<float> running_mean;
  std::vector<float> running_variance;
};

/// All parameters of a network in FP32; `convolutions` follows NetworkDescription::convolutions.
struct FloatParameters {
  std::vector<FloatConvolution> convolutions;
  std::vector<float> linear_weight;  ///< [class][feature channel]
  std::vector<float> linear_bias;    ///< [class]
};

/// Parameters of the right sizes: all zero, gamma and running_variance one.
FloatParameters make_parameters(const NetworkDescription& network);

inline constexpr const char* kFloatFormat = "nibble-float-1";  ///< metadata entry "format" of such a file

/// Tensor names: "<convolution>.weight" (F32, [O, rows, columns, I]), "<convolution>.gamma", ".beta",
/// ".running_mean", ".running_variance" (F32, [O]), "linear.weight" ([classes, features]), "linear.bias".
/// The metadata gets "format" = kFloatFormat, "variant", "depth", "shortcut".
void store_parameters(const NetworkDescription& network, const FloatParameters& parameters, TensorFile& file);

/// The network that the metadata names; throws InputError unless "format" is `format`.
NetworkDescription stored_network(const TensorFile& file, const std::string& format = kFloatFormat);

/// Checks every shape against `network`; NaN, Inf and negative variances are refused with InputError.
/// Tensors that are not parameters (the optimizer's state, under "optimizer.") are left alone.
FloatParameters stored_parameters(const NetworkDescription& network, const TensorFile& file);

}  // namespace nibble
