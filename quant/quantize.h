#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "graph/network/float_parameters.h"
#include "graph/network/quantized_parameters.h"
#include "quant/method.h"

namespace nibble {

/// The plain default of a width.
QuantizationOptions default_options(int bits, int activation_bits);

/// Throws InputError unless the widths and the other options go together.
void check_options(const QuantizationOptions& options);

/// A FP32 network as quantization begins with it: folded and calibrated. Widths and methods may then be tried
/// one after the other. `network` and `pixels` must outlive it.
struct CalibratedNetwork {
  const NetworkDescription& network;
  std::span<const std::uint8_t> pixels;
  FoldedParameters folded;
  std::vector<float> raw_first_weight;
  Calibration calibration;
};

/// Folds and calibrates on `pixels_nhwc` ([images][32][32][3]).
CalibratedNetwork calibrated(const NetworkDescription& network, const FloatParameters& parameters,
                             std::span<const std::uint8_t> pixels_nhwc);

QuantizedNetwork quantize(const CalibratedNetwork& calibrated, const QuantizationOptions& options);

/// Both in one: checks the options first.
QuantizedNetwork quantize(const NetworkDescription& network, const FloatParameters& parameters,
                          std::span<const std::uint8_t> pixels_nhwc, const QuantizationOptions& options);

/// How well one layer's output is represented on some images.
struct LayerQuality {
  std::string name;
  int weight_bits;
  int activation_bits;  ///< of the output
  double sqnr;          ///< decibels: 10 log10(power of the FP32 output / power of the error)
};

struct Quality {
  std::vector<LayerQuality> layers;  ///< convolutions in the order of execution, then the logits
  double agreement;                  ///< fraction of the images that get the FP32 network's class
  std::int64_t images;
};

/// Compares a quantized network with the FP32 network it came from, layer by layer.
Quality measure_quality(const FloatParameters& parameters, const QuantizedNetwork& quantized,
                        std::span<const std::uint8_t> pixels_nhwc);

}  // namespace nibble
