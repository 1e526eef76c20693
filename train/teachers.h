#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "graph/network/tensor_file.h"
#include "graph/onednn/float_network.h"

namespace nibble {

/// Training images that were not used for a checkpoint, the last ones; 0 where it does not say.
int held_out_by(const TensorFile& file);

/// The networks whose logits a student learns. Several are heard as one by the mean of their logits, which is
/// the normalized geometric mean of their probabilities (Hinton et al. 2015, section 1).
class Teachers {
 public:
  /// FP32 checkpoints of networks of any variant. Throws InputError when one cannot be read.
  Teachers(const std::vector<std::string>& files, int max_batch, Precision precision);

  /// `pixels_nhwc`: [count][32][32][3]; `logits`: [count][classes], the mean.
  void run(std::span<const std::uint8_t> pixels_nhwc, int count, std::span<float> logits);

  const std::string& sha256() const { return sha256_; }  ///< of the files, with a space between two
  int held_out() const { return held_out_; }             ///< training images that none of them has seen

 private:
  std::vector<FloatNetwork> networks_;
  std::vector<float> logits_;  // of one network
  std::string sha256_;
  int held_out_ = std::numeric_limits<int>::max();
};

}  // namespace nibble
