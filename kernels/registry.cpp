#include "kernels/registry.h"

#include <algorithm>
#include <vector>

#include "kernels/kernels.h"

namespace nibble {

std::span<const ConvolutionKernel> convolution_kernels() {
  static const std::vector<ConvolutionKernel> kernels = [] {
    std::vector<ConvolutionKernel> rows;
    for (const std::span<const ConvolutionKernel> more : {
             int8_avx512_amx_kernels(),
             int2_avx512_vbmi_kernels(),
             int8_avx512_vnni_kernels(),
             int4_avx512_vnni_kernels(),
             int2_avx2_kernels(),
             int4_avx2_kernels(),
             int8_avx2_kernels(),
             int16_avx2_kernels(),
             reference_kernels(),
         }) {
      rows.insert(rows.end(), more.begin(), more.end());
    }
    return rows;
  }();
  return kernels;
}

bool fits(const ConvolutionKernel& kernel, const ConvolutionLayer& layer, InstructionSet limit) {
  return kernel.instruction_set <= limit && kernel.weight_bits == layer.weight_bits &&
         kernel.activation_bits == layer.activation_bits && kernel.supports(layer);
}

const ConvolutionKernel& choose_kernel(const ConvolutionLayer& layer, InstructionSet limit) {
  const std::span<const ConvolutionKernel> kernels = convolution_kernels();
  return *std::find_if(kernels.begin(), kernels.end(),
                       [&](const ConvolutionKernel& kernel) { return fits(kernel, layer, limit); });
}

}  // namespace nibble
