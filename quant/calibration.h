#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "graph/data/cifar10.h"
#include "graph/network/description.h"
#include "graph/network/fold.h"
#include "graph/network/quantized_parameters.h"
#include "quant/observer.h"
#include "quant/value_histogram.h"

namespace nibble {

/// Mean and variance of each channel over images, rows and columns. Each image is summed in double by itself
/// and the images in their order, so that the number of threads does not matter.
class ChannelMoments {
 public:
  explicit ChannelMoments(std::size_t channels = 0) : sums_(channels), squares_(channels) {}

  /// `values`: [images][...][channels]
  void add(std::span<const float> values, int images);

  double mean(std::size_t channel) const;
  double variance(std::size_t channel) const;

 private:
  std::vector<double> sums_;
  std::vector<double> squares_;
  std::int64_t count_ = 0;
};

/// What the FP32 network does on the calibration images.
struct Calibration {
  std::vector<ValueHistogram> outputs;  ///< of each convolution: y1, residual stream, projection's output
  std::vector<ChannelMoments> sums;     ///< of each convolution with its bias, before residual and ReLU
  ChannelMoments logits;
};

Calibration calibrate(const NetworkDescription& network, const FoldedParameters& parameters,
                      std::span<const std::uint8_t> pixels_nhwc);

/// Fills `frame`, whose widths are set, with blocks of bits_of(block) activation bits and the scales that
/// `observer` chooses.
void choose_activation_scales(const NetworkDescription& network, const Calibration& calibration,
                              const Observer& observer, const std::function<int(std::size_t block)>& bits_of,
                              QuantizedParameters& frame);

/// Moves the linear layer's biases so that the means of `logits`, [images][classes] with the biases as they
/// are, become the FP32 network's.
void correct_logit_means(const Calibration& calibration, std::span<const float> logits,
                         QuantizedLayer& linear);

/// `count` different indices below `available`, in the order of a shuffle that depends on `seed` alone.
/// Throws InputError when there are not so many images.
std::vector<std::uint32_t> calibration_indices(int available, int count, std::uint64_t seed);

/// SHA-256 (lower-case hex) of the indices as little-endian 32-bit numbers.
std::string index_list_sha256(std::span<const std::uint32_t> indices);

struct CalibrationImages {
  std::vector<std::uint8_t> pixels;
  /// "calibration_seed", "calibration_count" and "calibration_sha256" of the indices, for a checkpoint's
  /// metadata.
  std::map<std::string, std::string> provenance;
};

/// The training images of calibration_indices(). Throws InputError as that does.
CalibrationImages choose_calibration_images(const Dataset& training, int count, std::uint64_t seed);

}  // namespace nibble
