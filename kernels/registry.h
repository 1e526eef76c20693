#pragma once

#include <span>

#include "kernels/convolution_kernel.h"

namespace nibble {

/// All convolution kernels, best first; the scalar reference's rows come last. Dispatch, the tests and
/// kernel_bench walk this one list, so a kernel cannot exist untested.
std::span<const ConvolutionKernel> convolution_kernels();

/// Whether the row is of the layer's widths, not above `limit`, and supports it.
bool fits(const ConvolutionKernel& kernel, const ConvolutionLayer& layer, InstructionSet limit);

/// The first row of the layer's widths, not above `limit`, that supports it. There always is one: the scalar
/// reference takes every layer.
const ConvolutionKernel& choose_kernel(const ConvolutionLayer& layer, InstructionSet limit);

}  // namespace nibble
