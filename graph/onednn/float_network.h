#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/float_parameters.h"
#include "graph/network/layer_time.h"
#include "graph/onednn/precision.h"

namespace nibble {

struct NetworkImplementation;  // one for each precision

/// A float network that classifies: batch normalization folded into weights and biases, ReLU and the residual
/// sum inside the convolutions. Weights are reordered once, nothing is allocated in run(). Not thread-safe;
/// call from the thread that made it.
class FloatNetwork {
 public:
  /// `max_batch`: the largest `count` that run() will be given; memory does not grow with it beyond a few
  /// images a thread, as batches are cut into pieces that stay in the caches. Throws InputError when the CPU
  /// lacks `precision`, RunError when oneDNN has no implementation or memory.
  FloatNetwork(const NetworkDescription& network, const FloatParameters& parameters, int max_batch,
               Precision precision = Precision::fp32);
  FloatNetwork(FloatNetwork&&) noexcept;
  FloatNetwork& operator=(FloatNetwork&&) noexcept;
  ~FloatNetwork();

  /// `pixels_nhwc`: [count][32][32][3]; `logits`: [count][classes]; 1 <= count <= max_batch.
  void run(std::span<const std::uint8_t> pixels_nhwc, int count, std::span<float> logits);

  /// run() `repetitions` times with a clock around each layer.
  std::vector<LayerTime> profile(std::span<const std::uint8_t> pixels_nhwc, int count, int repetitions = 5);

  /// oneDNN's name of the implementation of each convolution, for the footer of reports.
  std::vector<std::string> implementations() const;

 private:
  std::unique_ptr<NetworkImplementation> implementation_;
};

}  // namespace nibble
