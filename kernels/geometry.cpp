#include "kernels/geometry.h"

#include <algorithm>
#include <cstring>

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

std::vector<Tap> plane_taps(const ConvolutionShape& shape, const PlaneLayout& output, int bytes,
                            std::ptrdiff_t phase_stride) {
  std::vector<Tap> taps;
  for (int row = 0; row < shape.kernel; ++row) {
    for (int column = 0; column < shape.kernel; ++column) {
      const int down = row - shape.padding;
      const int right = column - shape.padding;
      std::ptrdiff_t offset = std::ptrdiff_t{down} * output.pitch() + right;
      std::ptrdiff_t phase = 0;
      if (shape.stride == 2) {  // down = 2 * (down >> 1) + phase, also for down = -1
        offset = std::ptrdiff_t{down >> 1} * output.pitch() + (right >> 1);
        phase = 2 * (down & 1) + (right & 1);
      }
      taps.push_back({offset * bytes + phase * phase_stride, row * shape.kernel + column});
    }
  }
  return taps;
}

void clear_pads(const PlaneLayout& layout, std::uint8_t* planes, int groups, std::ptrdiff_t group_stride,
                int bytes) {
  const auto size = static_cast<std::size_t>(bytes);
  for (int group = 0; group < groups; ++group) {
    std::uint8_t* plane = planes + group * group_stride;
    for (int row = 0; row + 1 < layout.height; ++row) {
      std::memset(plane + std::ptrdiff_t{layout.position(row, layout.width)} * bytes, 0, size);
    }
    const int end = layout.position(layout.height - 1, layout.width);
    std::memset(plane + std::ptrdiff_t{end} * bytes, 0,
                static_cast<std::size_t>(layout.positions() - end) * size);
  }
}

}  // namespace nibble
