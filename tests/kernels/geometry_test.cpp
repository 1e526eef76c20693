#include "kernels/geometry.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace nibble {
namespace {

/// Values of a map that no other position has.
std::uint8_t value_of(int row, int column, int byte) {
  return static_cast<std::uint8_t>(1 + (row * 37 + column * 5 + byte * 101) % 255);
}

class ColumnCopiesOf : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Bytes, ColumnCopiesOf, testing::Values(1, 2, 4));

/// What a tap finds at an output position, for a map of height x width that was written in two shares.
TEST_P(ColumnCopiesOf, GiveEveryTapItsNeighbourOrZero) {
  const int bytes = GetParam();
  constexpr int kGroups = 2;
  std::vector<int> widths = {32, 48};
  for (int width = 1; width <= 20; ++width) widths.push_back(width);
  for (const int stride : {1, 2}) {
    for (int height = 1; height <= 20; ++height) {
      for (const int width : widths) {
        const int input_height = height * stride;
        const int input_width = width * stride;
        const ConvolutionShape shape{1, 1, 3, stride, 1, input_height, input_width};
        const ColumnCopies input{input_height, input_width, 32};
        const ColumnCopies output{height, width, 32};
        const std::ptrdiff_t input_plane = std::ptrdiff_t{input.positions()} * bytes;
        const std::ptrdiff_t plane = std::ptrdiff_t{output.positions()} * bytes;
        std::vector<std::uint8_t> map(static_cast<std::size_t>(3 * kGroups * input_plane), 0xEE);
        for (int group = 0; group < kGroups; ++group) {
          for (int row = 0; row < input_height; ++row) {
            for (int column = 0; column < input_width; ++column) {
              for (int byte = 0; byte < bytes; ++byte) {
                map[static_cast<std::size_t>(group * input_plane + input.position(row, column) * bytes +
                                             byte)] = value_of(row, column, byte + group);
              }
            }
          }
        }
        std::vector<std::uint8_t> phases(static_cast<std::size_t>(6 * kGroups * plane), 0xEE);
        if (stride == 1) {
          const int cut = input_height / 2;
          for (const auto& [first, last] : {std::pair{cut, input_height}, std::pair{0, cut}}) {
            if (first == last) continue;
            copy_columns(input, map.data(), kGroups, input_plane, kGroups * input_plane, bytes, first, last);
          }
        } else {
          for (int group = 0; group < kGroups; ++group) {
            const int cut = input_height / 3;
            for (const auto& [first, last] : {std::pair{cut, input_height}, std::pair{0, cut}}) {
              copy_phases(input, map.data() + group * input_plane, output, phases.data() + group * plane,
                          kGroups * plane, bytes, first, last);
            }
          }
        }
        const std::vector<std::uint8_t>& read = stride == 1 ? map : phases;
        for (const Tap& tap : column_taps(shape, output, bytes, kGroups * plane)) {
          for (int group = 0; group < kGroups; ++group) {
            for (int row = 0; row < height; ++row) {
              for (int column = 0; column < width; ++column) {
                const int r = row * stride + tap.index / 3 - 1;
                const int c = column * stride + tap.index % 3 - 1;
                const bool inside = r >= 0 && r < input_height && c >= 0 && c < input_width;
                for (int byte = 0; byte < bytes; ++byte) {
                  const std::ptrdiff_t at =
                      group * plane + output.position(row, column) * bytes + tap.offset + byte;
                  ASSERT_EQ(read[static_cast<std::size_t>(at)], inside ? value_of(r, c, byte + group) : 0)
                      << height << " x " << width << " stride " << stride << " tap " << tap.index << " row "
                      << row << " column " << column;
                }
              }
            }
          }
        }
      }
    }
  }
}

/// The first convolution's: the border is a value of its own in each group.
TEST_P(ColumnCopiesOf, PutTheBorderBesideTheMap) {
  const int bytes = GetParam();
  constexpr int kGroups = 2;
  constexpr int kSize = 32;
  const ColumnCopies layout{kSize, kSize, 32};
  const std::ptrdiff_t plane = std::ptrdiff_t{layout.positions()} * bytes;
  std::vector<std::uint8_t> planes(static_cast<std::size_t>(3 * kGroups * plane), 0xEE);
  std::vector<std::uint8_t> border(static_cast<std::size_t>(kGroups * bytes));
  const auto border_of = [](int group, int byte) { return static_cast<std::uint8_t>(10 + 4 * group + byte); };
  for (int group = 0; group < kGroups; ++group) {
    for (int byte = 0; byte < bytes; ++byte) {
      border[static_cast<std::size_t>(group * bytes + byte)] = border_of(group, byte);
      for (int row = 0; row < kSize; ++row) {
        for (int column = 0; column < kSize; ++column) {
          planes[static_cast<std::size_t>(group * plane + layout.position(row, column) * bytes + byte)] =
              value_of(row, column, byte + group);
        }
      }
    }
  }
  copy_columns(layout, planes.data(), kGroups, plane, kGroups * plane, bytes, 0, kSize, border.data());
  for (const Tap& tap : column_taps({1, 1, 3, 1, 1, kSize, kSize}, layout, bytes, kGroups * plane)) {
    for (int group = 0; group < kGroups; ++group) {
      for (int row = 0; row < kSize; ++row) {
        for (int column = 0; column < kSize; ++column) {
          const int r = row + tap.index / 3 - 1;
          const int c = column + tap.index % 3 - 1;
          const bool inside = r >= 0 && r < kSize && c >= 0 && c < kSize;
          for (int byte = 0; byte < bytes; ++byte) {
            const std::ptrdiff_t at =
                group * plane + layout.position(row, column) * bytes + tap.offset + byte;
            ASSERT_EQ(planes[static_cast<std::size_t>(at)],
                      inside ? value_of(r, c, byte + group) : border_of(group, byte))
                << "tap " << tap.index << " row " << row << " column " << column;
          }
        }
      }
    }
  }
}

/// Every output position lies in exactly one run, whose taps are all of its own that lie inside the map.
TEST(ConvolutionGeometry, CutsAMapIntoRunsWithOrWithoutSeveralRowsTogether) {
  for (const bool several_rows : {false, true}) {
    for (const int stride : {1, 2}) {
      for (int size = 1; size <= 9; ++size) {
        const ConvolutionShape shape{1, 1, 3, stride, 1, size, size + 2};
        const ConvolutionGeometry geometry = cut_into_runs(shape, {1000, 1}, false, several_rows);
        std::map<std::pair<int, int>, std::size_t> taps_at;
        for (const PositionRun& run : geometry.runs) {
          ASSERT_TRUE(several_rows || run.rows == 1);
          for (int row = 0; row < run.rows; ++row) {
            for (int i = 0; i < run.positions; ++i) {
              const std::pair position{run.row + row + i * run.row_step, run.column + i * run.column_step};
              ASSERT_TRUE(taps_at.emplace(position, geometry.tap_lists[run.taps].size()).second);
            }
          }
        }
        ASSERT_EQ(taps_at.size(), static_cast<std::size_t>(shape.output_height() * shape.output_width()));
        for (const auto& [position, taps] : taps_at) {
          std::size_t inside = 0;
          for (int tap = 0; tap < 9; ++tap) {
            const int row = position.first * stride + tap / 3 - 1;
            const int column = position.second * stride + tap % 3 - 1;
            inside += row >= 0 && row < shape.input_height && column >= 0 && column < shape.input_width;
          }
          ASSERT_EQ(taps, inside) << "row " << position.first << " column " << position.second;
        }
        // The inside of a 3x3 convolution's map, and what surrounds it: 9 tap lists at most.
        ASSERT_TRUE(!several_rows || geometry.runs.size() <= 9);
      }
    }
  }
}

}  // namespace
}  // namespace nibble
