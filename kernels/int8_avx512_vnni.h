#pragma once

// The VNNI kernel that computes every tap, for all widths up to 8 bits: what the others leave to it.

#include "kernels/convolution_kernel.h"

namespace nibble {

bool supports_quads(const ConvolutionLayer& layer);
/// program: the largest magnitude of a sum.
PackedConvolution pack_quads(const ConvolutionLayer& layer);
/// What is packed behind the weights and the program of pack_quads() does not matter.
void run_quads(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call);

}  // namespace nibble
