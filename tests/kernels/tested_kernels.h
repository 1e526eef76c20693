#pragma once

#include <vector>

#include "kernels/convolution_kernel.h"

namespace nibble {

/// The rows that a test program covers. tested_kernels.cpp: those that this machine can run, within
/// NIBBLE_MAX_ISA. emulated_kernels.cpp: the AVX-512 rows, compiled against emulated_avx512.h.
std::vector<ConvolutionKernel> tested_kernels();

/// How many random problems each gets.
int random_problems(const ConvolutionKernel& kernel);

}  // namespace nibble
