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
  std::size_t taps;        ///< index into ConvolutionGeometry::tap_lists
  bool whole_row = false;  ///< ConvolutionCall::whole_row
  int rows = 1;            ///< so many rows of such positions
};

/// The whole map of a convolution cut into runs: inside, the rows; at the borders, rows and columns whose
/// lists leave out the taps that would meet padding.
///
///   A B B B C
///   D E E E F      9 tap lists for a 3x3 kernel.
///   D E E E F      B, E, H: one run for each row;
///   D E E E F      D, F: one run down the column.
///   G H H H I
///
/// Where the kernel takes several rows in a call, E is one run too. Where it takes whole rows, there is one
/// run for each, of three tap lists: those of B, E and H.
struct ConvolutionGeometry {
  std::vector<std::vector<Tap>>
      tap_lists;  ///< offsets are from input position (row * stride, column * stride)
  std::vector<PositionRun> runs;
};

/// For maps whose lanes are images. padding must not exceed kernel / 2.
ConvolutionGeometry cut_into_runs(const ConvolutionShape& shape, const MapStrides& input,
                                  bool whole_rows = false, bool several_rows = false);

/// Where one image's map lies when lanes are its own positions: each channel group is a plane
///
///   margin | row 0, pad | row 1, pad | ... | last row, pad | rest of the last block of lanes | margin
///
/// with one pad position behind each row, which is the left neighbour of the next row too. Pads and margins
/// are zero when the plane is read, so every tap is a load at a fixed distance and borders need no care. A
/// kernel writes whole blocks, so the pads of its output are not zero.
struct PlaneLayout {
  int height;
  int width;
  int lanes;

  int pitch() const { return width + 1; }
  int margin() const { return pitch() + 1; }
  /// Blocks of lanes that hold all positions, and what a kernel computes.
  int blocks() const { return (height * pitch() + lanes - 1) / lanes; }
  int origin() const { return margin(); }  ///< where row 0 begins
  int positions() const { return 2 * margin() + blocks() * lanes; }
  int position(int row, int column) const { return origin() + row * pitch() + column; }
};

/// The taps of a kernel that computes `output` planes, in bytes from an output position's own place.
/// Stride 1: the input planes have the output's layout. Stride 2: each input plane is cut into four phases of
/// the output's layout, phase (r, c) being rows r, r + 2, ... and columns c, c + 2, ... of the map, and phase
/// (r, c) lies (2 r + c) * phase_stride bytes behind phase (0, 0). padding = kernel / 2; at stride 2 height
/// and width of the input are even.
std::vector<Tap> plane_taps(const ConvolutionShape& shape, const PlaneLayout& output, int bytes,
                            std::ptrdiff_t phase_stride);

/// Where one image's map lies for a network that runs in position lanes: without pads, so that 8x8, 16x16 and
/// 32x32 positions fill whole registers. A tap to the left or right would meet the neighbouring row, so each
/// channel group is there three times, in planes `copy_stride` bytes apart:
///
///   copy 0 (same column):        margin | a b c | d e f | g h i | margin
///   copy 1 (column to the left): margin | 0 a b | 0 d e | 0 g h | margin
///   copy 2 (to the right):       margin | b c 0 | e f 0 | h i 0 | margin
///
/// A tap is a load at a fixed distance. A row of zeros before and behind the map is what taps above and below
/// meet. For stride 2 the copies are of the output's size and there twice: of the input's even rows, columns
/// 2 j, 2 j - 1, 2 j + 1, then of its odd rows.
struct ColumnCopies {
  int height;
  int width;
  int lanes;

  int count() const { return height * width; }
  int blocks() const { return (count() + lanes - 1) / lanes; }
  int margin() const { return (width + 63) / 64 * 64; }  ///< of positions; keeps rows aligned
  int positions() const { return 2 * margin() + blocks() * lanes; }
  int position(int row, int column) const { return margin() + row * width + column; }
};

/// The taps of a kernel that computes `output`, in bytes from an output position's place in copy 0. Kernels
/// of 3x3 with padding 1, and 1x1.
std::vector<Tap> column_taps(const ConvolutionShape& shape, const ColumnCopies& output, int bytes,
                             std::ptrdiff_t copy_stride);

/// After rows first_row .. last_row - 1 of copy 0 of `groups` planes were written: makes copies 1 and 2 of
/// them and the border beside them, which is zero, or `border`: a value of `bytes` bytes for each group.
void copy_columns(const ColumnCopies& layout, std::uint8_t* planes, int groups, std::ptrdiff_t group_stride,
                  std::ptrdiff_t copy_stride, int bytes, int first_row, int last_row,
                  const std::uint8_t* border = nullptr);

/// Rows first_row .. last_row - 1 of the input in the six planes that a stride-2 kernel reads of one channel
/// group, and the zeros above row 0. from: copy 0 of the input's plane, with even height and width; to: copy
/// 0 of the even rows.
void copy_phases(const ColumnCopies& input, const std::uint8_t* from, const ColumnCopies& output,
                 std::uint8_t* to, std::ptrdiff_t copy_stride, int bytes, int first_row, int last_row);

}  // namespace nibble
