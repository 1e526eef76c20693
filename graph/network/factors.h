#pragma once

#include <vector>

#include "graph/network/quantized_parameters.h"

namespace nibble {

/// S and B of one layer, [output channel].
struct LayerFactors {
  std::vector<float> scale;
  std::vector<float> offset;
};

struct BlockFactors {
  float input_ratio;     ///< s_res / s_x: x from the stream at 4 and 2 bits
  float residual_ratio;  ///< s_r / s_out, where r is the stream or the projection's output
};

/// Every float32 number that a quantized network computes with; made from the file's scales in double and
/// rounded once (kernels/requantize.h).
struct NetworkFactors {
  std::vector<LayerFactors> convolutions;  ///< in the order of NetworkDescription::convolutions
  std::vector<BlockFactors> blocks;
  LayerFactors linear;  ///< 1 / pixels of the average pool is part of `scale`
};

NetworkFactors make_factors(const QuantizedNetwork& quantized);

}  // namespace nibble
