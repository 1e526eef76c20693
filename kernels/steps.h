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
struct Run {
  const std::int32_t* first;  ///< bytes from the output position's input address to each step's activations
  const std::int32_t* last;
  std::ptrdiff_t weights;  ///< canonical number of the first step: tap * groups + group
};

/// The steps of one call. Taps that follow each other in the list and in the weights are joined before they
/// are cut, so interior positions have ceil(steps / length) runs.
class Steps {
 public:
  Steps(const ConvolutionCall& call, int groups, int run_length) {
    std::int32_t* next = offsets_;
    const Tap* const last_tap = call.taps.data() + call.taps.size();
    for (const Tap* tap = call.taps.data(); tap != last_tap;) {
      const std::int32_t* begin = next;
      std::ptrdiff_t weights = std::ptrdiff_t{tap->index} * groups;
      int index = tap->index;
      do {
        for (int g = 0; g < groups; ++g) {
          *next++ = static_cast<std::int32_t>(tap->offset + g * call.input.group_stride);
        }
        ++tap;
        ++index;
      } while (tap != last_tap && tap->index == index);
      // Runs of a stretch are as equal as possible: fewer lengths are fewer mispredicted loop ends.
      const std::ptrdiff_t steps = next - begin;
      const std::ptrdiff_t runs = (steps + run_length - 1) / run_length;
      // Run r ends at (r + 1) * steps / runs; without a division for each.
      const std::ptrdiff_t whole = steps / runs;
      const std::ptrdiff_t rest = steps % runs;
      std::ptrdiff_t from = 0;
      std::ptrdiff_t remainder = 0;
      for (std::ptrdiff_t r = 0; r < runs; ++r) {
        std::ptrdiff_t to = from + whole;
        remainder += rest;
        if (remainder >= runs) {
          remainder -= runs;
          ++to;
        }
        runs_[count_++] = {begin + from, begin + to, weights + from};
        from = to;
      }
    }
  }

  /// One run of `count` steps whose activations lie `bytes` apart.
  Steps(int count, std::ptrdiff_t bytes) : count_(1) {
    for (int i = 0; i < count; ++i) offsets_[i] = static_cast<std::int32_t>(i * bytes);
    runs_[0] = {offsets_, offsets_ + count, 0};
  }

  int count() const { return count_; }
  const Run* begin() const { return runs_; }
  const Run* end() const { return runs_ + count_; }

 private:
  std::int32_t offsets_[kMaximumSteps];
  Run runs_[kMaximumSteps];
  int count_ = 0;
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
