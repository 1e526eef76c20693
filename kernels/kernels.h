#pragma once

#include <span>

#include "kernels/convolution_kernel.h"

namespace nibble {

// The rows that each kernel file brings; registry.cpp puts them in order.

std::span<const ConvolutionKernel> reference_kernels();
std::span<const ConvolutionKernel> int8_avx512_amx_kernels();
std::span<const ConvolutionKernel> int2_avx512_vbmi_kernels();
std::span<const ConvolutionKernel> int8_avx512_vnni_kernels();
std::span<const ConvolutionKernel> int4_avx512_vnni_kernels();
std::span<const ConvolutionKernel> int2_avx2_kernels();
std::span<const ConvolutionKernel> int4_avx2_kernels();
std::span<const ConvolutionKernel> int8_avx2_kernels();
std::span<const ConvolutionKernel> int16_avx2_kernels();

}  // namespace nibble
