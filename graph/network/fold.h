#pragma once

#include <vector>

#include "graph/network/description.h"
#include "graph/network/float_parameters.h"

namespace nibble {

struct FoldedConvolution {
  std::vector<float> weight;  ///< [output channel][row][column][input channel]
  std::vector<float> bias;    ///< [output channel]
};

/// A network without batch normalization; `convolutions` follows NetworkDescription::convolutions.
struct FoldedParameters {
  std::vector<FoldedConvolution> convolutions;
  std::vector<float> linear_weight;  ///< [class][feature channel]
  std::vector<float> linear_bias;    ///< [class]
};

/// Folds each batch normalization into its convolution, in double, rounded once:
///
///   weight' = weight * gamma / sqrt(variance + 1e-5)     bias' = beta - mean * gamma / sqrt(variance + 1e-5)
///
/// The first convolution still expects normalized pixels. Throws InputError where a result is not finite.
FoldedParameters fold_batch_normalization(const NetworkDescription& network,
                                          const FloatParameters& parameters);

}  // namespace nibble
