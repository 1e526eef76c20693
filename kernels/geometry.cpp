#include "kernels/geometry.h"

#include <algorithm>

namespace nibble {
namespace {

/// Consecutive output rows (or columns) first .. first + count - 1 for which the taps first_tap .. last_tap -
/// 1 lie inside the map.
struct Band {
  int first;
  int count;
  int first_tap;
  int last_tap;
};

std::vector<Band> bands(const ConvolutionShape& shape, int outputs, int inputs) {
  std::vector<Band> found;
  for (int output = 0; output < outputs; ++output) {
    const int start = output * shape.stride - shape.padding;
    const int first_tap = std::max(0, -start);
    const int last_tap = std::min(shape.kernel, inputs - start);
    if (!found.empty() && found.back().first_tap == first_tap && found.back().last_tap == last_tap) {
      ++found.back().count;
    } else {
      found.push_back({output, 1, first_tap, last_tap});
    }
  }
  return found;
}

}  // namespace

ConvolutionGeometry cut_into_runs(const ConvolutionShape& shape, const MapStrides& input) {
  ConvolutionGeometry geometry;
  for (const Band& rows : bands(shape, shape.output_height(), shape.input_height)) {
    for (const Band& columns : bands(shape, shape.output_width(), shape.input_width)) {
      std::vector<Tap> taps;
      for (int row = rows.first_tap; row < rows.last_tap; ++row) {
        for (int column = columns.first_tap; column < columns.last_tap; ++column) {
          taps.push_back({(row - shape.padding) * input.row + (column - shape.padding) * input.column,
                          row * shape.kernel + column});
        }
      }
      if (columns.count > 1 || rows.count == 1) {
        for (int i = 0; i < rows.count; ++i) {
          geometry.runs.push_back(
              {rows.first + i, columns.first, 0, 1, columns.count, geometry.tap_lists.size()});
        }
      } else {
        geometry.runs.push_back({rows.first, columns.first, 1, 0, rows.count, geometry.tap_lists.size()});
      }
      geometry.tap_lists.push_back(std::move(taps));
    }
  }
  return geometry;
}

}  // namespace nibble
