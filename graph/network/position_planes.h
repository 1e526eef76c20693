#pragma once

#include <cstdint>
#include <vector>

#include "graph/network/integer_plan.h"
#include "graph/network/tensor_plan.h"
#include "kernels/geometry.h"

namespace nibble {

/// Runs a network on one image with lanes = positions: every channel group is a plane, there three times
/// where a convolution reads it (ColumnCopies, kernels/geometry.h). No second image is needed to fill a
/// register, and threads share one image.
class PositionPlanes {
 public:
  explicit PositionPlanes(const IntegerPlan& plan);

  std::size_t scratch_bytes() const { return tensors_.memory.bytes(); }

  /// Which of the threads that share an image this is.
  struct Team {
    int thread = 0;
    int threads = 1;
  };
  /// The logits of one image. Every thread of a team calls it with the same scratch of scratch_bytes(); a
  /// team of several is the whole team of the innermost OpenMP parallel region.
  void run(const IntegerPlan& plan, const std::uint8_t* pixels, float* logits, std::uint8_t* scratch,
           Team team) const;

 private:
  struct Layer {
    ColumnCopies layout;  ///< of the outputs
    std::vector<Tap> taps;
    std::ptrdiff_t input_plane_bytes;
    std::ptrdiff_t input_copy_bytes;  ///< of all groups of a copy
    bool copies_output = false;       ///< whether a stride-1 convolution reads the output
    bool copies_derived = false;
  };
  /// One pass: what all steps need.
  struct Pass {
    const IntegerPlan& plan;
    std::uint8_t* scratch;
    Team team;
  };
  std::uint8_t* data(const Pass& pass, std::size_t tensor) const {
    return pass.scratch + tensors_.memory.offset(tensor);
  }
  void load_image(const Pass& pass, const std::uint8_t* pixels) const;
  void split_phases(const Pass& pass, std::size_t block) const;
  void run_layer(const Pass& pass, std::size_t index, std::size_t input, std::size_t output,
                 std::size_t residual, std::size_t derived) const;
  void pad_shortcut(const Pass& pass, std::size_t block) const;
  template <typename Value, typename Accumulator>
  void classify(const Pass& pass, float* logits) const;

  TensorPlan tensors_;
  std::vector<Layer> layers_;           ///< as plan.convolutions
  std::vector<std::uint8_t> no_image_;  ///< the pixels' planes, all border
};

}  // namespace nibble
