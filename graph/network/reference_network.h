#pragma once

#include <cstdint>

#include "graph/network/factors.h"
#include "graph/network/quantized_parameters.h"

namespace nibble {

/// The whole quantized network on the scalar reference (kernels/reference.h): slow, obviously right, the
/// measure of every other engine.
class ReferenceNetwork {
 public:
  explicit ReferenceNetwork(QuantizedNetwork quantized);

  /// pixels: count x [row][column][colour], u8 as in the data set; logits: count x [class]. OpenMP over
  /// images.
  void run(const std::uint8_t* pixels, std::int64_t count, float* logits) const;

  const QuantizedNetwork& quantized() const { return quantized_; }

 private:
  template <typename Accumulator>
  void run_image(const std::uint8_t* pixels, float* logits) const;

  QuantizedNetwork quantized_;
  NetworkFactors factors_;
};

}  // namespace nibble
