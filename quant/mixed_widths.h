#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/float_parameters.h"
#include "quant/method.h"

namespace nibble {

/// What one block costs and loses with weights and activations of `bits` bits.
struct BlockWidth {
  int bits;
  double loss;     ///< KL(FP32 || quantized) a calibration image, all other blocks having 8 bits
  double bytes;    ///< of its weights and levels in the file
  double seconds;  ///< of one image, measured on this machine's kernels and threads, many images at once
};

struct WidthTable {
  std::vector<std::vector<BlockWidth>> blocks;  ///< widths 8, 4, 2
  double other_bytes;                           ///< upper bound of everything else in the file
  double other_seconds;                         ///< of the first convolution, pooling and the linear layer
};

/// Quantizes with each block in turn at 4 and at 2 bits, by nearest rounding, and looks at the logits (the
/// sensitivity of HAWQ-V2, Dong et al. 2019, arXiv:1911.03852, measured instead of estimated); times the
/// uniform networks layer by layer.
WidthTable measure_widths(const NetworkDescription& network, const FloatParameters& parameters,
                          std::span<const std::uint8_t> pixels_nhwc, const QuantizationOptions& options);

/// What must not be passed; 0: no limit.
struct Budget {
  double bytes = 0;    ///< of the whole file
  double seconds = 0;  ///< of one image among many
};

/// The widths with the least sum of losses within the budget, exactly, one a block. Throws InputError that
/// names the least possible size or time when even 2 bits everywhere pass the budget.
std::vector<int> choose_widths(const WidthTable& table, const Budget& budget);

}  // namespace nibble
