#pragma once

#include <memory>
#include <span>

#include "graph/network/description.h"

namespace nibble {

/// One convolution in float32 through oneDNN's direct algorithm, NHWC in and out, no bias: calibration's
/// engine. With integer values as weights and inputs its sums are exact while every partial sum is below
/// 2^24 in magnitude, in whatever order they are added.
class ConvolutionRunner {
 public:
  /// `shape.padding` zeros surround the input. Images are processed `chunk` at a time at most.
  ConvolutionRunner(const Convolution& shape, int chunk);
  ConvolutionRunner(ConvolutionRunner&&) noexcept;
  ConvolutionRunner& operator=(ConvolutionRunner&&) noexcept;
  ~ConvolutionRunner();

  /// [output channel][row][column][input channel]
  void set_weights(std::span<const float> weights);

  /// `input`: [count][rows][columns][input channels], `output` likewise; 1 <= count <= chunk.
  void run(std::span<const float> input, int count, std::span<float> output);

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
