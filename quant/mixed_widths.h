#pragma once

#include <map>
#include <string>
#include <vector>

#include "quant/quantize.h"

namespace nibble {

/// What one block costs and loses with weights and activations of `bits` bits.
struct BlockWidth {
  int bits;
  double loss;     ///< KL(FP32 || quantized) a calibration image, all other blocks having 8 bits
  double bytes;    ///< of its weights and levels in the file
  double seconds;  ///< of one image among many, measured with this machine's kernels and threads
};

struct WidthTable {
  std::vector<std::vector<BlockWidth>> blocks;  ///< widths 8, 4, 2
  double other_bytes;                           ///< of everything else in the file, up to 100 too many
  double other_seconds;                         ///< of the first convolution, pooling and the linear layer
};

/// Quantizes with each block in turn at 4 and at 2 bits, by nearest rounding, and looks at the logits (the
/// sensitivity of HAWQ-V2, Dong et al. 2019, arXiv:1911.03852, measured instead of estimated); times the
/// uniform networks layer by layer. `provenance`: what the caller will add to the file's.
WidthTable measure_widths(const CalibratedNetwork& source, const QuantizationOptions& options,
                          const std::map<std::string, std::string>& provenance);

/// What must not be passed; 0: no limit.
struct Budget {
  double bytes = 0;    ///< of the whole file
  double seconds = 0;  ///< of one image among many
};

/// The widths with the least sum of losses within the budget, exactly, one a block. Throws InputError that
/// names the least possible size or time when no choice is within the budget.
std::vector<int> choose_widths(const WidthTable& table, const Budget& budget);

/// Seconds of one image among many in the whole network, the median of several passes.
double measure_seconds(const QuantizedNetwork& quantized);

/// choose_widths() with the whole network of the choice measured, as the sum of the layers' times leaves out
/// what one block makes for the next: where it passes the budget, a faster one is chosen. Throws InputError
/// as that does.
std::vector<int> choose_measured_widths(const CalibratedNetwork& source, WidthTable table,
                                        const Budget& budget, const QuantizationOptions& options);

}  // namespace nibble
