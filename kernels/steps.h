#pragma once

// The walk of a kernel with narrow partial sums over taps and channel groups: one list of steps, cut into
// runs that are proved not to overflow; and what packing and calls of all kernels need. Internal linkage,
// since kernel files are compiled for different instruction sets.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/convolution_kernel.h"

namespace nibble {
namespace {

/// A step is one channel group of one tap. All kernels with steps refuse layers with more.
inline constexpr int kMaximumSteps = 1024;
inline constexpr int kMaximumRuns = 96;

/// Steps whose partial sums stay in narrow lanes; their weights are contiguous.
template <typename Offset>
struct RunOf {
  const Offset* first;  ///< bytes from the output position's input address to each step's activations
  const Offset* last;
  std::ptrdiff_t weights;  ///< number of the first step in the order of the weights
};
using Run = RunOf<std::int32_t>;

/// Steps that are added one after the other, cut into runs. Those that follow each other in the weights too
/// are one stretch, so interior positions have ceil(steps / length) runs.
template <typename Offset>
class RunList {
 public:
  explicit RunList(int run_length) : run_length_(run_length) {}

  /// What is added next is step `weights` of the weights.
  void go_to(std::ptrdiff_t weights) {
    if (weights != weights_ + (next_ - begin_)) {
      cut();
      weights_ = weights;
    }
  }

  Offset* add(std::ptrdiff_t offset) {
    *next_ = static_cast<Offset>(offset);
    return next_++;
  }

  /// Ends the last stretch. Its runs are as equal as possible: fewer lengths are fewer mispredicted loop
  /// ends.
  void cut() {
    const std::ptrdiff_t steps = next_ - begin_;
    const std::ptrdiff_t runs = (steps + run_length_ - 1) / run_length_;
    // Run r ends at (r + 1) * steps / runs; without a division for each.
    const std::ptrdiff_t whole = runs == 0 ? 0 : steps / runs;
    const std::ptrdiff_t rest = steps - whole * runs;
    std::ptrdiff_t from = 0;
    std::ptrdiff_t remainder = 0;
    for (std::ptrdiff_t r = 0; r < runs; ++r) {
      std::ptrdiff_t to = from + whole;
      remainder += rest;
      if (remainder >= runs) {
        remainder -= runs;
        ++to;
      }
      runs_[count_++] = {begin_ + from, begin_ + to, weights_ + from};
      from = to;
    }
    begin_ = next_;
  }

  int count() const { return count_; }
  const RunOf<Offset>* begin() const { return runs_; }
  const RunOf<Offset>* end() const { return runs_ + count_; }

 private:
  Offset offsets_[kMaximumSteps];
  RunOf<Offset> runs_[kMaximumSteps];
  int count_ = 0;
  std::ptrdiff_t run_length_;
  Offset* begin_ = offsets_;  ///< of the stretch that is not cut yet
  Offset* next_ = offsets_;
  std::ptrdiff_t weights_ = 0;
};

/// The steps of one call, weights in the order [tap][group].
class Steps : public RunList<std::int32_t> {
 public:
  Steps(const ConvolutionCall& call, int groups, int run_length) : RunList(run_length) {
    for (const Tap& tap : call.taps) {
      go_to(std::ptrdiff_t{tap.index} * groups);
      for (int g = 0; g < groups; ++g) add(tap.offset + g * call.input.group_stride);
    }
    cut();
  }

  /// One run of `count` steps whose activations lie `bytes` apart.
  Steps(int count, std::ptrdiff_t bytes) : RunList(count) {
    for (int i = 0; i < count; ++i) add(i * bytes);
    cut();
  }
};

/// Zero for channels that do not exist.
inline std::int16_t weight_of(const ConvolutionLayer& layer, int output_channel, int tap, int channel) {
  if (output_channel >= layer.shape.output_channels || channel >= layer.shape.input_channels) return 0;
  return layer.weights[static_cast<std::size_t>(output_channel) * layer.shape.filter_size() +
                       static_cast<std::size_t>(tap * layer.shape.input_channels + channel)];
}

/// `positions` of a call from `first` on, with the same taps.
inline ConvolutionCall part_of(const ConvolutionCall& call, int first, int positions) {
  ConvolutionCall part = call;
  part.positions = positions;
  part.input.data += first * call.input.position_stride;
  part.output.data += first * call.output.position_stride;
  part.residual.data += first * call.residual.position_stride;
  part.derived.data += first * call.derived.position_stride;
  return part;
}

/// One row of a call.
inline ConvolutionCall row_of(const ConvolutionCall& call, int row) {
  ConvolutionCall part = call;
  part.rows = 1;
  part.input.data += row * call.input.row_stride;
  part.output.data += row * call.output.row_stride;
  part.residual.data += row * call.residual.row_stride;
  part.derived.data += row * call.derived.row_stride;
  return part;
}

/// Whether any tap list of this layer fits into Steps: at worst every kernel row is a stretch of its own.
/// Offsets stay within a layer's input: in tiles up to 256 bytes for each position and group (64 lanes of 4
/// bytes), as planes of a single image six copies of up to 4 bytes, and margins. 768 bytes are more than
/// either but for maps of a few positions, whose offsets are small anyway.
inline bool steps_fit(const ConvolutionShape& shape, int groups, int run_length,
                      int most_runs = kMaximumRuns) {
  const int row = shape.kernel * groups;
  const double largest_offset = 768.0 * shape.input_height * shape.input_width * groups;
  return run_length > 0 && largest_offset <= std::numeric_limits<std::int32_t>::max() &&
         shape.kernel * row <= kMaximumSteps &&
         shape.kernel * ((row + run_length - 1) / run_length) + 1 <= most_runs;
}

/// The largest number of consecutive steps whose ranges add up to at most `limit`, wherever they begin.
inline int longest_run(const std::vector<int>& ranges, int limit) {
  std::size_t longest = ranges.size();
  std::size_t begin = 0;
  int sum = 0;
  for (std::size_t end = 0; end < ranges.size(); ++end) {
    sum += ranges[end];
    while (sum > limit) {
      // begin .. end is too much, so no run may have this length.
      longest = std::min(longest, end - begin);
      sum -= ranges[begin++];
    }
  }
  return static_cast<int>(longest);
}

/// Whether every requantized value of the call, of sums up to `largest_sum` in magnitude, is below 2^31
/// before rounding, so that the conversion to integers needs no clamp before it: saturating packs do the
/// rest.
inline bool stays_convertible(const OutputStage& stage, const ConvolutionCall& call, float largest_sum) {
  const float limit = 1073741824.0F - 255.0F * std::abs(stage.residual_ratio);
  int beyond = 0;  // a count, not a maximum: compilers turn it into vectors
  for (int c = call.first_channel; c < call.last_channel; ++c) {
    beyond += std::abs(stage.scale[c]) * largest_sum + std::abs(stage.offset[c]) < limit ? 0 : 1;
  }
  return beyond == 0;
}

}  // namespace
}  // namespace nibble
