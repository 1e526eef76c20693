#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/fold.h"

namespace nibble {

/// What the FP32 network gives for a step's images.
struct LearnedTargets {
  std::vector<const float*> blocks;  ///< [images][rows][columns][channels] of each block; may be null
  const float* logits = nullptr;     ///< [images][classes]
};

/// The FP32 network in groups of images: pixels to the outputs of all blocks and logits.
class FloatBlocks {
 public:
  FloatBlocks(const NetworkDescription& network, const FoldedParameters& folded);
  ~FloatBlocks();

  /// `pixels`: images x NHWC, a multiple of kGroupImages of them. Runs the first `blocks` blocks only, and
  /// the linear layer if these are all. Pointers stay valid until the next call.
  LearnedTargets run(std::span<const std::uint8_t> pixels, int blocks);

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
