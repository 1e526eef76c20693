#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/convolution_kernel.h"

namespace nibble {

/// A run: `length` steps whose products are added in narrow lanes before the sum is widened once. A step is
/// one channel group of one tap; which groups of a tap share a run is free, since sums do not depend on the
/// order.
struct RunLength {
  int length;
  double cost;  ///< of a run, in whatever unit: the packing with the smallest total is chosen
};

/// The narrow lanes that a kernel adds in.
struct NarrowLane {
  int group_channels;   ///< input channels of a step
  int lane_channels;    ///< input channels whose products one narrow lane adds: 2 for vpmaddubsw and vpmaddwd
  std::int64_t lowest;  ///< values that a lane must not leave
  std::int64_t highest;
};

/// Which taps may share a run.
enum class TapRuns {
  apart,   ///< none, so a missing tap (padding) is a range of runs that is left out
  joined,  ///< all: longer runs, for positions that miss no tap; block * taps below is then block, and the
           ///< group of a step is tap * groups + group
};

/// The steps of all blocks of output channels, cut into runs of one length. Every subset of a run's products
/// is proved too.
///
///   runs of (block, tap):  first_run[block * taps + tap] .. first_run[block * taps + tap + 1] - 1
///   group of a step:       groups[run * length + step]
///   weights of a step:     weights[(run * length + step) * block_channels + o][group_channels]
///
/// Steps that only fill a run up have group 0 and zero weights. A step whose lanes alone could overflow is
/// split into steps of one input channel a lane.
struct RunProgram {
  // Not inline: kernel files must not define functions that others could be linked to.
  RunProgram();
  RunProgram(RunProgram&& other) noexcept;
  RunProgram& operator=(RunProgram&& other) noexcept;
  ~RunProgram();

  int length = 0;
  std::vector<std::int32_t> first_run;
  std::vector<std::int32_t> groups;
  std::vector<std::int16_t> weights;
};

/// Output channels are padded to a multiple of 4 by channels without runs.
RunProgram pack_runs(const ConvolutionLayer& layer, int block_channels, const NarrowLane& lane,
                     std::span<const RunLength> lengths, TapRuns taps = TapRuns::apart);

}  // namespace nibble
