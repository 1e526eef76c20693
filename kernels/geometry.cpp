#include "kernels/geometry.h"

#include <emmintrin.h>

#include <algorithm>
#include <bit>
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

ConvolutionGeometry cut_into_runs(const ConvolutionShape& shape, const MapStrides& input, bool whole_rows,
                                  bool several_rows) {
  ConvolutionGeometry geometry;
  const std::vector<Band> across = whole_rows ? std::vector<Band>{{0, shape.output_width(), 0, shape.kernel}}
                                              : bands(shape, shape.output_width(), shape.input_width);
  for (const Band& rows : bands(shape, shape.output_height(), shape.input_height)) {
    for (const Band& columns : across) {
      std::vector<Tap> taps;
      for (int row = rows.first_tap; row < rows.last_tap; ++row) {
        for (int column = columns.first_tap; column < columns.last_tap; ++column) {
          taps.push_back({(row - shape.padding) * input.row + (column - shape.padding) * input.column,
                          row * shape.kernel + column});
        }
      }
      if (columns.count > 1 || rows.count == 1) {
        const int together = several_rows ? rows.count : 1;
        for (int i = 0; i < rows.count; i += together) {
          geometry.runs.push_back({rows.first + i, columns.first, 0, 1, columns.count,
                                   geometry.tap_lists.size(), whole_rows, together});
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

constexpr int kRegisterBytes = 16;  ///< of the baseline, SSE2
constexpr int kHalfRegisterBytes = 8;

inline __m128i load(const std::uint8_t* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
inline __m128i load_half(const std::uint8_t* from) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
}
inline void store(std::uint8_t* to, __m128i bytes) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}
inline void store_half(std::uint8_t* to, __m128i bytes) {
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes);
}

/// A row of any number of bytes; `value` repeats.
inline void fill_row(std::uint8_t* to, int row_bytes, __m128i value) {
  for (; row_bytes >= kRegisterBytes; row_bytes -= kRegisterBytes, to += kRegisterBytes) store(to, value);
  if (row_bytes == 0) return;
  if (row_bytes == kHalfRegisterBytes) return store_half(to, value);
  alignas(kRegisterBytes) std::uint8_t bytes[kRegisterBytes];
  store(bytes, value);
  std::copy(bytes, bytes + row_bytes, to);
}
/// The same row of all copies.
inline void fill_rows(std::uint8_t* to, std::ptrdiff_t copy_stride, int row_bytes, __m128i value) {
  for (int copy = 0; copy < 3; ++copy, to += copy_stride) fill_row(to, row_bytes, value);
}

/// Copies 1 and 2 of rows of whole registers, `all` bytes in all: a value of `Bytes` bytes further to the
/// right and to the left. border: the value beside the map, everywhere. Loads are what is not aligned: a
/// store over the end of a cache line costs more.
template <int Bytes>
inline void shift_whole_registers(const std::uint8_t* same, std::uint8_t* left, std::uint8_t* right, int all,
                                  int row_bytes, __m128i border) {
  const __m128i first = _mm_srli_si128(border, kRegisterBytes - Bytes);
  const __m128i last = _mm_slli_si128(border, kRegisterBytes - Bytes);
  for (int at = 0; at < all; at += kRegisterBytes) {
    const int end = at + row_bytes - kRegisterBytes;  // the row's last register
    store(left + at, _mm_or_si128(_mm_slli_si128(load(same + at), Bytes), first));
    for (; at < end; at += kRegisterBytes) {
      store(right + at, load(same + at + Bytes));
      store(left + at + kRegisterBytes, load(same + at + kRegisterBytes - Bytes));
    }
    store(right + at, _mm_or_si128(_mm_srli_si128(load(same + at), Bytes), last));
  }
}

/// The same for rows of 8 bytes, two in a register.
template <int Bytes>
inline void shift_half_registers(const std::uint8_t* same, std::uint8_t* left, std::uint8_t* right, int all,
                                 __m128i border) {
  const __m128i first = _mm_srli_epi64(border, 64 - 8 * Bytes);
  const __m128i last = _mm_slli_epi64(border, 64 - 8 * Bytes);
  const auto to_left = [&](__m128i row) { return _mm_or_si128(_mm_slli_epi64(row, 8 * Bytes), first); };
  const auto to_right = [&](__m128i row) { return _mm_or_si128(_mm_srli_epi64(row, 8 * Bytes), last); };
  int at = 0;
  for (; at + kRegisterBytes <= all; at += kRegisterBytes) {
    const __m128i two = load(same + at);
    store(left + at, to_left(two));
    store(right + at, to_right(two));
  }
  if (at == all) return;
  const __m128i row = load_half(same + at);
  store_half(left + at, to_left(row));
  store_half(right + at, to_right(row));
}

/// A value of `Bytes` bytes that is copied whole.
template <int Bytes>
struct Value {
  std::uint8_t bytes[Bytes];
};

template <int Bytes>
inline __m128i repeated(const Value<Bytes>& value) {
  if constexpr (Bytes == 1) return _mm_set1_epi8(static_cast<char>(value.bytes[0]));
  if constexpr (Bytes == 2) return _mm_set1_epi16(std::bit_cast<std::int16_t>(value));
  if constexpr (Bytes == 4) return _mm_set1_epi32(std::bit_cast<std::int32_t>(value));
}

template <int Bytes>
void copy_columns_of(ColumnCopies layout, std::uint8_t* planes, int groups, std::ptrdiff_t group_stride,
                     std::ptrdiff_t copy_stride, int first_row, int last_row, const std::uint8_t* border) {
  const int row_bytes = layout.width * Bytes;
  const int all = (last_row - first_row) * row_bytes;
  const bool is_first = first_row == 0;
  const bool is_last = last_row == layout.height;
  std::uint8_t* same = planes + std::ptrdiff_t{layout.position(first_row, 0)} * Bytes;
  for (int group = 0; group < groups; ++group, same += group_stride) {
    std::uint8_t* const left = same + copy_stride;
    std::uint8_t* const right = left + copy_stride;
    Value<Bytes> beside{};
    if (border != nullptr) std::memcpy(&beside, border + group * Bytes, Bytes);
    const __m128i everywhere = repeated(beside);
    if (row_bytes % kRegisterBytes == 0) {
      shift_whole_registers<Bytes>(same, left, right, all, row_bytes, everywhere);
    } else if (row_bytes == kHalfRegisterBytes) {
      shift_half_registers<Bytes>(same, left, right, all, everywhere);
    } else if (all > 0) {
      std::memcpy(left + Bytes, same, static_cast<std::size_t>(all - Bytes));
      std::memcpy(right, same + Bytes, static_cast<std::size_t>(all - Bytes));
      for (int at = 0; at < all; at += row_bytes) {
        std::memcpy(left + at, &beside, Bytes);
        std::memcpy(right + at + row_bytes - Bytes, &beside, Bytes);
      }
    }
    if (is_first) fill_rows(same - row_bytes, copy_stride, row_bytes, everywhere);
    if (is_last) fill_rows(same + all, copy_stride, row_bytes, everywhere);
  }
}

/// The even and the odd values of 32 bytes.
struct Halves {
  __m128i even;
  __m128i odd;
};
template <int Bytes>
inline Halves split(__m128i first, __m128i second) {
  if constexpr (Bytes == 1) {
    const __m128i low = _mm_set1_epi16(0xFF);
    return {_mm_packus_epi16(_mm_and_si128(first, low), _mm_and_si128(second, low)),
            _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8))};
  } else {
    static_assert(Bytes == 4);
    const __m128 a = _mm_castsi128_ps(first);
    const __m128 b = _mm_castsi128_ps(second);
    return {_mm_castps_si128(_mm_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0))),
            _mm_castps_si128(_mm_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)))};
  }
}

/// One row of the input into the same, left and right copies of its phase.
template <int Bytes>
void split_row(const std::uint8_t* in, std::uint8_t* same, std::uint8_t* left, std::uint8_t* right,
               int row_bytes) {
  if (row_bytes == kHalfRegisterBytes) {
    const Halves halves = split<Bytes>(load(in), _mm_setzero_si128());
    store_half(same, halves.even);
    store_half(left, _mm_slli_si128(halves.odd, Bytes));
    store_half(right, halves.odd);
    return;
  }
  __m128i before = _mm_setzero_si128();
  for (int at = 0; at < row_bytes; at += kRegisterBytes) {
    const Halves halves = split<Bytes>(load(in + 2 * at), load(in + 2 * at + kRegisterBytes));
    store(same + at, halves.even);
    store(left + at,
          _mm_or_si128(_mm_slli_si128(halves.odd, Bytes), _mm_srli_si128(before, kRegisterBytes - Bytes)));
    store(right + at, halves.odd);
    before = halves.odd;
  }
}

template <int Bytes>
void split_row_plainly(const Value<Bytes>* in, Value<Bytes>* same, Value<Bytes>* left, Value<Bytes>* right,
                       int width) {
  for (int column = 0; column < width; ++column) same[column] = in[2 * column];
  for (int column = 0; column < width; ++column) right[column] = in[2 * column + 1];
  left[0] = {};
  std::copy(right, right + width - 1, left + 1);
}

template <int Bytes>
void copy_phases_of(ColumnCopies input, const std::uint8_t* from, ColumnCopies output, std::uint8_t* to,
                    std::ptrdiff_t copy_stride, int first_row, int last_row) {
  const int row_bytes = output.width * Bytes;
  const bool plainly = Bytes == 2 || (row_bytes != kHalfRegisterBytes && row_bytes % kRegisterBytes != 0);
  for (int row = first_row; row < last_row; ++row) {
    const std::uint8_t* in = from + std::ptrdiff_t{input.position(row, 0)} * Bytes;
    std::uint8_t* same =
        to + 3 * (row % 2) * copy_stride + std::ptrdiff_t{output.position(row / 2, 0)} * Bytes;
    std::uint8_t* left = same + copy_stride;
    std::uint8_t* right = left + copy_stride;
    if (row < 2) fill_rows(same - row_bytes, copy_stride, row_bytes, _mm_setzero_si128());
    if constexpr (Bytes != 2) {
      if (!plainly) {
        split_row<Bytes>(in, same, left, right, row_bytes);
        continue;
      }
    }
    split_row_plainly(reinterpret_cast<const Value<Bytes>*>(in), reinterpret_cast<Value<Bytes>*>(same),
                      reinterpret_cast<Value<Bytes>*>(left), reinterpret_cast<Value<Bytes>*>(right),
                      output.width);
  }
}

}  // namespace

void copy_columns(const ColumnCopies& layout, std::uint8_t* planes, int groups, std::ptrdiff_t group_stride,
                  std::ptrdiff_t copy_stride, int bytes, int first_row, int last_row,
                  const std::uint8_t* border) {
  if (bytes == 1)
    copy_columns_of<1>(layout, planes, groups, group_stride, copy_stride, first_row, last_row, border);
  if (bytes == 2)
    copy_columns_of<2>(layout, planes, groups, group_stride, copy_stride, first_row, last_row, border);
  if (bytes == 4)
    copy_columns_of<4>(layout, planes, groups, group_stride, copy_stride, first_row, last_row, border);
}

void copy_phases(const ColumnCopies& input, const std::uint8_t* from, const ColumnCopies& output,
                 std::uint8_t* to, std::ptrdiff_t copy_stride, int bytes, int first_row, int last_row) {
  if (bytes == 1) copy_phases_of<1>(input, from, output, to, copy_stride, first_row, last_row);
  if (bytes == 2) copy_phases_of<2>(input, from, output, to, copy_stride, first_row, last_row);
  if (bytes == 4) copy_phases_of<4>(input, from, output, to, copy_stride, first_row, last_row);
}

}  // namespace nibble
