#pragma once

#include <span>

#include "kernels/convolution_kernel.h"

namespace nibble {

// The rows that each kernel file brings; registry.cpp puts them in order.

std::span<const ConvolutionKernel> reference_kernels();

}  // namespace nibble
