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
                int bytes, int first_block, int last_block) {
  const int first = first_block * layout.lanes;
  const int last = last_block * layout.lanes;
  const int rows_end = layout.height * layout.pitch();
  for (int group = 0; group < groups; ++group) {
    std::uint8_t* plane = planes + group * group_stride;
    const auto clear = [&](int from, int to) {  // positions relative to row 0
      if (from >= to) return;
      std::memset(plane + std::ptrdiff_t{layout.origin() + from} * bytes, 0,
                  static_cast<std::size_t>((to - from) * bytes));
    };
    if (first_block == 0) clear(-layout.margin(), 0);
    // The first pad at or behind `first`: pads are at width, width + pitch, width + 2 * pitch, ...
    const int skipped = std::max(0, first - layout.width + layout.pitch() - 1) / layout.pitch();
    const int end = std::min(last, rows_end);
    for (int pad = layout.width + skipped * layout.pitch(); pad < end; pad += layout.pitch())
      clear(pad, pad + 1);
    clear(std::max(first, rows_end), last_block == layout.blocks() ? last + layout.margin() : last);
  }
}

std::vector<Tap> column_taps(const ConvolutionShape& shape, const ColumnCopies& output, int bytes,
                             std::ptrdiff_t copy_stride) {
  std::vector<Tap> taps;
  for (int row = 0; row < shape.kernel; ++row) {
    for (int column = 0; column < shape.kernel; ++column) {
      const int down = row - shape.padding;
      const int right = column - shape.padding;
      const int rows = shape.stride == 2 ? down >> 1 : down;  // down = 2 * rows + phase, also for -1
      const int phase = shape.stride == 2 ? down & 1 : 0;
      const int copy = 3 * phase + (right == 0 ? 0 : right < 0 ? 1 : 2);
      taps.push_back(
          {std::ptrdiff_t{rows} * output.width * bytes + copy * copy_stride, row * shape.kernel + column});
    }
  }
  return taps;
}

namespace {

/// A value of `Bytes` bytes that is copied whole.
template <int Bytes>
struct Value {
  std::uint8_t bytes[Bytes];
};

template <int Bytes>
void copy_columns_of(const ColumnCopies& layout, std::uint8_t* plane, std::ptrdiff_t copy_stride,
                     int first_row, int last_row, const std::uint8_t* border) {
  auto* same = reinterpret_cast<Value<Bytes>*>(plane) + layout.margin();
  auto* left = reinterpret_cast<Value<Bytes>*>(plane + copy_stride) + layout.margin();
  auto* right = reinterpret_cast<Value<Bytes>*>(plane + 2 * copy_stride) + layout.margin();
  Value<Bytes> beside{};
  if (border != nullptr) std::memcpy(&beside, border, Bytes);
  const int width = layout.width;
  const int first = first_row * width;
  const int last = last_row * width;
  if (first < last) {
    const auto size = static_cast<std::size_t>(last - first - 1) * Bytes;
    std::memcpy(left + first + 1, same + first, size);
    std::memcpy(right + first, same + first + 1, size);
  }
  for (int p = first; p < last; p += width) {
    left[p] = beside;
    right[p + width - 1] = beside;
  }
  for (Value<Bytes>* copy : {same, left, right}) {
    if (first_row == 0) std::fill(copy - width, copy, beside);
    if (last_row == layout.height) std::fill(copy + last, copy + last + width, beside);
  }
}

template <int Bytes>
void copy_phases_of(const ColumnCopies& input, const std::uint8_t* from, const ColumnCopies& output,
                    std::uint8_t* to, std::ptrdiff_t copy_stride, int first_row, int last_row) {
  const auto row_bytes = static_cast<std::size_t>(output.width) * Bytes;
  for (int row = first_row; row < last_row; ++row) {
    const auto copy = [&](int number) {
      return reinterpret_cast<Value<Bytes>*>(to + (3 * (row % 2) + number) * copy_stride) + output.margin();
    };
    Value<Bytes>* const same = copy(0);
    Value<Bytes>* const left = copy(1);
    Value<Bytes>* const right = copy(2);
    if (row < 2) {
      for (Value<Bytes>* plane : {same, left, right}) std::memset(plane - output.width, 0, row_bytes);
    }
    const auto* in = reinterpret_cast<const Value<Bytes>*>(from) + input.position(row, 0);
    const int begin = row / 2 * output.width;
    for (int column = 0; column < output.width; ++column) same[begin + column] = in[2 * column];
    for (int column = 0; column < output.width; ++column) right[begin + column] = in[2 * column + 1];
    left[begin] = {};
    std::memcpy(left + begin + 1, right + begin, row_bytes - Bytes);
  }
}

}  // namespace

void copy_columns(const ColumnCopies& layout, std::uint8_t* planes, int groups, std::ptrdiff_t group_stride,
                  std::ptrdiff_t copy_stride, int bytes, int first_row, int last_row,
                  const std::uint8_t* border) {
  for (int group = 0; group < groups; ++group) {
    std::uint8_t* plane = planes + group * group_stride;
    if (bytes == 1) copy_columns_of<1>(layout, plane, copy_stride, first_row, last_row, border);
    if (bytes == 2) copy_columns_of<2>(layout, plane, copy_stride, first_row, last_row, border);
    if (bytes == 4) copy_columns_of<4>(layout, plane, copy_stride, first_row, last_row, border);
    if (border != nullptr) border += bytes;
  }
}

void copy_phases(const ColumnCopies& input, const std::uint8_t* from, const ColumnCopies& output,
                 std::uint8_t* to, std::ptrdiff_t copy_stride, int bytes, int first_row, int last_row) {
  if (bytes == 1) copy_phases_of<1>(input, from, output, to, copy_stride, first_row, last_row);
  if (bytes == 2) copy_phases_of<2>(input, from, output, to, copy_stride, first_row, last_row);
  if (bytes == 4) copy_phases_of<4>(input, from, output, to, copy_stride, first_row, last_row);
}

}  // namespace nibble
