#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "graph/onednn/float_network.h"
#include "graph/onednn/int8_unfused_parameters.h"

namespace nibble {

/// The unfused 8-bit network on oneDNN, for comparison: convolution, batch normalization, ReLU and addition
/// are primitives of their own with s8 tensors between them. No bit equality with any other engine is asked.
/// Not thread-safe; call from the thread that made it.
class Int8UnfusedNetwork {
 public:
  /// `max_batch`: the largest `count` that run() will be given.
  Int8UnfusedNetwork(const UnfusedNetwork& unfused, int max_batch);
  Int8UnfusedNetwork(Int8UnfusedNetwork&&) noexcept;
  Int8UnfusedNetwork& operator=(Int8UnfusedNetwork&&) noexcept;
  ~Int8UnfusedNetwork();

  /// `pixels_nhwc`: [count][32][32][3]; `logits`: [count][classes]; 1 <= count <= max_batch.
  void run(std::span<const std::uint8_t> pixels_nhwc, int count, std::span<float> logits);

  /// run() `repetitions` times with a clock around each layer.
  std::vector<LayerTime> profile(std::span<const std::uint8_t> pixels_nhwc, int count, int repetitions = 5);

  /// The implementation of each convolution, for the footer of reports.
  std::vector<std::string> implementations() const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
