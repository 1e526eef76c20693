#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/factors.h"
#include "graph/network/quantized_parameters.h"
#include "kernels/convolution_kernel.h"
#include "kernels/geometry.h"

namespace nibble {

/// What a convolution adds before its output.
enum class Residual { none, stream, projection };

/// One 8-bit convolution on our own kernels between nhwc maps, for layers that oneDNN would compute with
/// saturation. Lanes are positions of one image: its map is copied into the planes of kernels/geometry.h and
/// the result back.
class OwnConvolution {
 public:
  /// `border`: pixels (one for each input channel) that lie around the map instead of zeros; empty: zeros.
  OwnConvolution(const Convolution& shape, const QuantizedLayer& quantized, const LayerFactors& factors,
                 bool is_signed, Residual residual, float residual_ratio, std::vector<std::uint8_t> border);

  /// Bytes of scratch memory that run() needs, aligned to 64.
  std::size_t scratch_bytes() const { return input_bytes_ + output_bytes_; }

  /// x: [row][column][channel] of one image, `row_stride` bytes from row to row; y: likewise without gaps,
  /// holds the residual before.
  void run(const std::uint8_t* x, std::size_t row_stride, std::uint8_t* y, std::uint8_t* scratch) const;

  std::string kernel_name() const { return std::string(kernel_->name); }

 private:
  ConvolutionShape shape_;
  const ConvolutionKernel* kernel_;
  PackedConvolution packed_;
  AlignedVector<float> scale_, offset_;
  bool is_signed_;
  Residual residual_;
  float residual_ratio_;
  std::vector<std::uint8_t> border_;
  PlaneLayout layout_;
  std::vector<Tap> taps_;
  std::size_t input_bytes_;
  std::size_t output_bytes_;
};

}  // namespace nibble
