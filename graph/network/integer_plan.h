#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "graph/network/quantized_parameters.h"
#include "kernels/convolution_kernel.h"

namespace nibble {

/// A convolution that is ready to run: its kernel, its weights in the kernel's order, its output stage.
struct PlannedConvolution {
  std::string name;
  ConvolutionShape
      shape;  ///< with padding; the first convolution's border is the mean pixel instead of zeros
  const ConvolutionKernel* kernel;
  PackedConvolution packed;
  OutputStage stage;  ///< its pointers are into the vectors below
  AlignedVector<float> scale;
  AlignedVector<float> offset;
  std::vector<std::int16_t> sum_thresholds;
  std::vector<std::uint8_t> byte_thresholds;
};

struct PlannedBlock {
  bool derives_input;         ///< x is a tensor of its own, written beside the stream by the layer before
  ActivationFormat stream;    ///< of the stream that enters the block
  ActivationFormat input;     ///< of x: what conv1 and a projection read
  ActivationFormat middle;    ///< of y1
  ActivationFormat shortcut;  ///< of a projection's output or of shortcut A
  ActivationFormat output;    ///< of the stream that leaves the block
};

/// Everything about a quantized network that does not depend on how its activations lie in memory: built
/// once, shared by the two ways of running it.
struct IntegerPlan {
  IntegerPlan() = default;
  IntegerPlan(IntegerPlan&&) = default;
  IntegerPlan& operator=(IntegerPlan&&) = default;
  IntegerPlan(const IntegerPlan&) = delete;  // stages point into their own convolution's vectors
  IntegerPlan& operator=(const IntegerPlan&) = delete;

  NetworkDescription network;
  int weight_bits;
  int activation_bits;
  bool wide;  ///< 16 bits: u15 stream, 64-bit sums in the linear layer
  int lanes;  ///< a tile's images: the largest block of lanes of its kernels
  std::vector<PlannedConvolution> convolutions;  ///< in the order of NetworkDescription::convolutions
  std::vector<PlannedBlock> blocks;
  ActivationFormat features;  ///< of the last stream: one channel a group
  std::vector<std::int16_t> linear_weights;
  std::vector<float> linear_scale;
  std::vector<float> linear_offset;

  /// Bytes of weights, tables and factors.
  std::size_t bytes() const;
};

/// Chooses a kernel no wider than `limit` for each convolution, packs its weights and agrees with its
/// neighbours on the formats of the maps between them. The scalar reference takes every layer.
IntegerPlan make_plan(const QuantizedNetwork& quantized, InstructionSet limit);

}  // namespace nibble
