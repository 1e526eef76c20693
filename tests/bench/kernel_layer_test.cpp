#include "bench/kernel_layer.h"

#include <gtest/gtest.h>

#include "graph/network/instruction_set.h"
#include "kernels/registry.h"

namespace nibble {
namespace {

TEST(KernelLayer, EveryKernelRunsTheLayersOfItsWidths) {
  const std::vector<DistinctLayer> layers = distinct_layers(describe_network("resnet_344", 0, ""));
  for (const ConvolutionKernel& kernel : convolution_kernels()) {
    if (kernel.instruction_set > effective_instruction_set()) continue;
    int supported = 0;
    for (const DistinctLayer& layer : layers) {
      if (!KernelLayer::supported(kernel, layer)) continue;
      ++supported;
      KernelLayer tile(kernel, layer);
      tile.run();
      EXPECT_EQ(tile.images(), kernel.lanes);
      EXPECT_EQ(tile.multiply_accumulates(),
                static_cast<double>(layer.convolution.multiply_accumulates()) * kernel.lanes);
    }
    EXPECT_GT(supported, 0) << kernel.name;
  }
}

TEST(KernelLayer, PixelsAreForKernelsThatReadThem) {
  const DistinctLayer pixels = distinct_layers(describe_network("resnet_344", 0, "")).front();
  ASSERT_TRUE(pixels.reads_pixels);
  for (const ConvolutionKernel& kernel : convolution_kernels()) {
    const bool may = kernel.activation_bits == 8 && kernel.weight_bits >= 8;
    EXPECT_TRUE(may || !KernelLayer::supported(kernel, pixels)) << kernel.name;
  }
}

}  // namespace
}  // namespace nibble
