#pragma once

#include <memory>

#include "bench/bare_convolutions.h"
#include "kernels/convolution_kernel.h"

namespace nibble {

/// One kernel of the registry on one layer, as the integer network calls it: lanes are images, the maps of a
/// tile of kernel.lanes images stay where they are, borders skip the taps that would meet padding. What the
/// layer writes besides (the residual added, the next block's input derived) is written here too.
class KernelLayer {
 public:
  /// Whether such a network has this layer at the kernel's widths, and the kernel takes it.
  static bool supported(const ConvolutionKernel& kernel, const DistinctLayer& layer);

  KernelLayer(const ConvolutionKernel& kernel, const DistinctLayer& layer);
  ~KernelLayer();

  void run();  ///< kernel.lanes images
  int images() const;
  double multiply_accumulates() const;  ///< of run(), valid taps only

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
