#include "tests/kernels/tested_kernels.h"

#include <cstdlib>

#include "kernels/registry.h"

namespace nibble {

std::vector<ConvolutionKernel> tested_kernels() {
  const char* cap = std::getenv("NIBBLE_MAX_ISA");
  const InstructionSet limit = cap == nullptr ? detected_instruction_set() : capped_instruction_set(cap);
  std::vector<ConvolutionKernel> kernels;
  for (const ConvolutionKernel& kernel : convolution_kernels()) {
    if (kernel.instruction_set <= limit) kernels.push_back(kernel);
  }
  return kernels;
}

int random_problems(const ConvolutionKernel& kernel) {
  return kernel.instruction_set == InstructionSet::reference ? 200 : 2000;
}

}  // namespace nibble
