#pragma once

#include <functional>
#include <vector>

#include "graph/network/integer_plan.h"
#include "graph/network/memory_plan.h"

namespace nibble {

/// The tensors of one pass over a network and who reads and writes them; indices into a MemoryPlan.
///
///   pixels -> first convolution -> stream 0 (and x 0) -> block 0 -> stream 1 (and x 1) -> ... -> features
struct TensorPlan {
  struct BlockTensors {
    std::size_t stream;      ///< enters the block
    std::size_t input;       ///< x; the stream itself where nothing is derived
    std::size_t phases;      ///< x for stride 2, see ColumnCopies; only where `phased`
    std::size_t middle;      ///< y1
    std::size_t shortcut;    ///< the residual of conv2; the stream where the shortcut is the identity
    std::size_t output;      ///< leaves the block; in place of the residual where the formats are equal
    std::size_t next_input;  ///< x of the next block
  };
  MemoryPlan memory;
  std::size_t pixels;
  std::vector<BlockTensors> blocks;
  std::size_t features;
  std::size_t sums;
};

/// Bytes of a map of `channels` channels in `format`, of size x size positions.
using MapBytes = std::function<std::size_t(int size, int channels, const ActivationFormat& format)>;

/// phased: whether a stride-2 block's x is also needed by even and odd rows.
TensorPlan plan_tensors(const IntegerPlan& plan, std::size_t pixel_bytes, std::size_t sum_bytes, bool phased,
                        const MapBytes& map_bytes);

}  // namespace nibble
