#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "graph/network/description.h"

namespace nibble {

/// What a convolution of a residual network does after its sums.
enum class ConvolutionRole {
  relu,       ///< bias and ReLU
  residual,   ///< bias, the residual sum in place, ReLU
  projection  ///< bias alone; signed
};

/// A layer that differs from the network's other layers in shape or role.
struct DistinctLayer {
  Convolution convolution;  ///< the first of its kind; its name is the benchmark's
  ConvolutionRole role;
  bool reads_pixels;  ///< the first convolution: raw u8 pixels within their border, no padding
};

/// In the order of execution.
std::vector<DistinctLayer> distinct_layers(const NetworkDescription& network);

/// The role of each convolution, in the order of NetworkDescription::convolutions.
std::vector<ConvolutionRole> roles(const NetworkDescription& network);

/// How oneDNN is asked for a convolution.
enum class BareKind {
  f32_nhwc,  ///< FP32, channels last
  f32_any,   ///< FP32 in the layout that oneDNN likes best; no reorders are counted
  int8       ///< u8 times s8 with fused post-operations, channels last (scales of weights and sum only)
};
const char* name_of(BareKind kind);

/// oneDNN's convolutions and nothing else: no reorders, no normalization of pixels, no pool, no linear layer.
/// Maps go from layer to layer in shared buffers, as in a network. Values are arbitrary.
class BareConvolutions {
 public:
  /// All convolutions of the network in the order of execution, `batch` images at a time. Throws RunError.
  BareConvolutions(const NetworkDescription& network, BareKind kind, int batch);
  /// One layer.
  BareConvolutions(const DistinctLayer& layer, BareKind kind, int batch);
  BareConvolutions(BareConvolutions&&) noexcept;
  ~BareConvolutions();

  void run();
  double multiply_accumulates() const;  ///< of run(), valid taps only
  std::string implementation() const;   ///< oneDNN's name of the first convolution's

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace nibble
