#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "graph/onednn/float_network.h"

namespace nibble {

/// The networks whose logits a student learns. Several are heard as one by the mean of their logits, which is
/// the normalized geometric mean of their probabilities (Hinton et al. 2015, section 1).
class Teachers {
 public:
  /// FP32 checkpoints of networks of any variant. Throws InputError when one cannot be read.
  Teachers(const std::vector<std::string>& files, int max_batch, Precision precision);

  /// `pixels_nhwc`: [count][32][32][3]; `logits`: [count][classes], the mean.
  void run(std::span<const std::uint8_t> pixels_nhwc, int count, std::span<float> logits);

 private:
  std::vector<FloatNetwork> networks_;
  std::vector<float> logits_;  // of one network
};

}  // namespace nibble
