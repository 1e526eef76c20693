#pragma once

#include <cstdint>
#include <vector>

#include "graph/network/image_division.h"
#include "graph/network/integer_plan.h"
#include "graph/network/tensor_plan.h"
#include "graph/network/thread_team.h"
#include "kernels/geometry.h"

namespace nibble {

/// Runs a network on one image with lanes = positions: every channel group is a plane, there three times
/// where a convolution reads it (ColumnCopies, kernels/geometry.h). No second image is needed to fill a
/// register, and threads share one image: each has planes of whole maps in scratch memory of its own, and in
/// them its share and the rows that it got from others.
class PositionPlanes {
 public:
  /// threads: of a team.
  PositionPlanes(const IntegerPlan& plan, int threads);

  std::size_t scratch_bytes() const { return tensors_.memory.bytes(); }  ///< of one thread
  std::size_t message_bytes() const { return together_.message_bytes; }  ///< of a team's thread

  /// The logits of one image, in scratch memory of scratch_bytes().
  void run(const IntegerPlan& plan, const std::uint8_t* pixels, float* logits, std::uint8_t* scratch) const {
    run({plan, alone_, scratch, nullptr, 0}, pixels, logits);
  }
  /// The same by a team: all its threads call it, each with its own scratch memory. Thread 0 writes the
  /// logits.
  void run(const IntegerPlan& plan, const std::uint8_t* pixels, float* logits, std::uint8_t* scratch,
           ThreadTeam& team, int thread) const {
    run({plan, together_, scratch, &team, thread}, pixels, logits);
  }

 private:
  struct Layer {
    ColumnCopies layout;  ///< of the outputs
    std::vector<Tap> taps;
    std::ptrdiff_t input_plane_bytes;
    std::ptrdiff_t input_copy_bytes;  ///< of all groups of a copy
  };
  /// One pass of one thread: what all steps need.
  struct Pass {
    const IntegerPlan& plan;
    const ImageDivision& division;
    std::uint8_t* scratch;
    ThreadTeam* team;  ///< nullptr: alone
    int thread;

    std::size_t index() const { return static_cast<std::size_t>(thread); }
  };
  std::uint8_t* data(const Pass& pass, std::size_t tensor) const {
    return pass.scratch + tensors_.memory.offset(tensor);
  }
  void run(const Pass& pass, const std::uint8_t* pixels, float* logits) const;
  void load_image(const Pass& pass, const std::uint8_t* pixels) const;
  /// A map that a layer writes, and who of the team gets it; transfer = nullptr: nobody.
  struct Destination {
    const Transfer* transfer;
    std::size_t tensor;
  };
  void send(const Pass& pass, const Transfer& transfer, const ColumnCopies& layout, std::size_t tensor) const;
  void receive(const Pass& pass, const Transfer& transfer, const ColumnCopies& layout,
               std::size_t tensor) const;
  void prepare_input(const Pass& pass, const Transfer& transfer, std::size_t index, std::size_t tensor,
                     std::size_t phases) const;
  struct LayerTensors {
    std::size_t input;
    std::size_t output;
    std::size_t residual;
    std::size_t derived;
  };
  void run_rows(const Pass& pass, std::size_t index, const LayerTensors& tensors, const Range& rows) const;
  void run_layer(const Pass& pass, std::size_t index, const LayerTensors& tensors,
                 const Destination& destination) const;
  void pad_shortcut(const Pass& pass, std::size_t block) const;
  template <typename Value, typename Accumulator>
  void classify(const Pass& pass, float* logits) const;

  TensorPlan tensors_;
  ImageDivision alone_;
  ImageDivision together_;
  std::vector<Layer> layers_;         ///< as plan.convolutions
  std::vector<std::uint8_t> border_;  ///< a border pixel of the image: [channel group], in the pixels' format
};

}  // namespace nibble
