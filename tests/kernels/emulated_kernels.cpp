#include "kernels/registry.h"
#include "tests/kernels/tested_kernels.h"

namespace nibble {

// The registry's AVX-512 rows are the emulated ones here: this program's own objects of those files come
// before the archive's. Nothing emulates AMX.
std::vector<ConvolutionKernel> tested_kernels() {
  std::vector<ConvolutionKernel> kernels;
  for (const ConvolutionKernel& kernel : convolution_kernels()) {
    if (kernel.instruction_set >= InstructionSet::avx512_vnni &&
        kernel.instruction_set != InstructionSet::avx512_amx) {
      kernels.push_back(kernel);
    }
  }
  return kernels;
}

int random_problems(const ConvolutionKernel&) {
  return 2000;
}

}  // namespace nibble
