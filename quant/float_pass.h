#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/fold.h"
#include "quant/convolution_runner.h"

namespace nibble {

/// What one convolution made of some images in float32, NHWC.
struct FloatTap {
  int convolution;                ///< index in NetworkDescription::convolutions
  int images;                     ///< in this call
  std::span<const float> sums;    ///< convolution + bias, before residual and ReLU
  std::span<const float> output;  ///< what gets a scale: y1, the residual stream, or a projection's output
};

/// The folded FP32 network with every tensor laid open, for calibration. Simple and slow beside FloatNetwork.
class FloatPass {
 public:
  FloatPass(const NetworkDescription& network, const FoldedParameters& parameters, int chunk = 50);

  /// Runs `pixels_nhwc` ([images][32][32][3]) chunk by chunk and calls `see` after each convolution, in the
  /// order of execution (a projection before its block's conv2). Returns the logits, [images][classes].
  std::vector<float> run(std::span<const std::uint8_t> pixels_nhwc,
                         const std::function<void(const FloatTap&)>& see);

 private:
  void convolve(int convolution, std::span<const float> input, int images, std::vector<float>& sums);

  const NetworkDescription network_;
  const FoldedParameters parameters_;
  int chunk_;
  std::vector<ConvolutionRunner> runners_;
};

}  // namespace nibble
