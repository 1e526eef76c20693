#pragma once

#include <functional>
#include <vector>

#include "bench/bare_convolutions.h"

namespace nibble {

/// A network end to end beside the bare sum of its oneDNN convolutions.
struct NetworkComparison {
  double images_per_second;
  double bare_images_per_second;  ///< at the batch and in the layout that are best for the bare convolutions
  int bare_batch;
  BareKind bare_kind;
  double ratio() const { return images_per_second / bare_images_per_second; }
};

/// Both sides in turn, `rounds` times; medians. `run_batch` runs the network on `batch` images. The bare
/// convolutions have batches of 16, 64, 256 and 1024 images; of 1 when `batch` is 1.
NetworkComparison compare_with_bare(const NetworkDescription& network, int batch,
                                    const std::vector<BareKind>& kinds,
                                    const std::function<void()>& run_batch, int rounds);

}  // namespace nibble
