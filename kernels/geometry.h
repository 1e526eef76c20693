#pragma once

#include <cstddef>
#include <vector>

#include "kernels/convolution_kernel.h"
#include "kernels/shape.h"

namespace nibble {

/// Where the positions of a map lie: position (row, column) at row * row_stride + column * column_stride
/// bytes.
struct MapStrides {
  std::ptrdiff_t row;
  std::ptrdiff_t column;
};

/// Output positions (row, column), (row + row_step, column + column_step), ... that share their valid taps.
struct PositionRun {
  int row;
  int column;
  int row_step;  ///< one of the steps is 1, the other 0
  int column_step;
  int positions;
  std::size_t taps;  ///< index into ConvolutionGeometry::tap_lists
};

/// The whole map of a convolution cut into runs: inside, the rows; at the borders, rows and columns whose
/// lists leave out the taps that would meet padding.
///
///   A B B B C
///   D E E E F      9 tap lists for a 3x3 kernel; B, E, H: one run for each row; D, F: one run down the
///   column D E E E F G H H H I
struct ConvolutionGeometry {
  std::vector<std::vector<Tap>>
      tap_lists;  ///< offsets are from input position (row * stride, column * stride)
  std::vector<PositionRun> runs;
};

/// For maps whose lanes are images. padding must not exceed kernel / 2.
ConvolutionGeometry cut_into_runs(const ConvolutionShape& shape, const MapStrides& input);

}  // namespace nibble
