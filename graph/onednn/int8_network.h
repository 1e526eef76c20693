#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "graph/network/quantized_parameters.h"
#include "graph/onednn/float_network.h"

namespace nibble {

/// What happens on a CPU without VNNI to a convolution in which some pair of products may leave 16 bits.
enum class UnprovedLayers {
  exact,      ///< our own kernel runs it: the logits are those of every other engine
  saturating  ///< oneDNN runs it: fast and wrong, for comparison
};

/// Whether oneDNN's effective instruction set (the CPU's, or ONEDNN_MAX_CPU_ISA) sums products of u8 and s8
/// in 32 bits at once, so that nothing can saturate.
bool onednn_has_vnni();

/// Whether oneDNN computes every convolution of this network exactly here: with VNNI, or when every pair is
/// proved (see `quant --pair-safe`).
bool onednn_is_exact(const QuantizedNetwork& quantized);

/// An 8-bit network on oneDNN: convolution, bias, residual and ReLU in one primitive, u8 in and u8 out.
/// Weights are reordered once, nothing is allocated in run(). Not thread-safe; call from the thread that made
/// it.
class Int8Network {
 public:
  /// `max_batch`: the largest `count` that run() will be given. Throws InputError unless all widths are 8
  /// bits.
  Int8Network(const QuantizedNetwork& quantized, int max_batch,
              UnprovedLayers unproved = UnprovedLayers::exact);
  Int8Network(Int8Network&&) noexcept;
  Int8Network& operator=(Int8Network&&) noexcept;
  ~Int8Network();

  /// `pixels_nhwc`: [count][32][32][3]; `logits`: [count][classes]; 1 <= count <= max_batch.
  void run(std::span<const std::uint8_t> pixels_nhwc, int count, std::span<float> logits);

  /// run() `repetitions` times with a clock around each layer.
  std::vector<LayerTime> profile(std::span<const std::uint8_t> pixels_nhwc, int count, int repetitions = 5);

  /// "onednn", or "onednn+nibble" where our own kernels run some layers.
  std::string engine() const;

  /// The implementation of each convolution, for the footer of reports.
  std::vector<std::string> implementations() const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
