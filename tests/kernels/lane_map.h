#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/convolution_kernel.h"
#include "kernels/geometry.h"
#include "tests/kernels/guarded_memory.h"

namespace nibble {

/// What the lanes of a kernel's registers are.
enum class Lanes {
  images,        ///< one position of each image
  planes,        ///< positions of one image, as PlaneLayout has them
  column_copies  ///< positions of one image, as ColumnCopies has them
};
inline constexpr int kLaneKinds = 3;

struct MapSize {
  int channels;
  int height;
  int width;
};

/// A map in memory, guarded at one end. Stored position by position, after the layouts' definitions and not
/// by the functions that networks use.
class LaneMap {
 public:
  /// lanes: of a kernel; tile: image lanes of a position. stride: of the convolution that reads the map; 0:
  /// none does.
  LaneMap(Lanes kind, const ActivationFormat& format, const MapSize& size, int lanes, int tile, int stride,
          GuardedMemory::Guard guard);

  const ActivationFormat& format() const { return format_; }
  const MapSize& size() const { return size_; }
  const GuardedMemory& memory() const { return memory_; }

  /// values: [image][row][column][channel].
  void store(std::span<const std::int16_t> values, int images);
  int load(int image, int row, int column, int channel) const;

  /// Image lanes.
  MapStrides strides() const;
  /// The run's positions from image `image` on, in a map that has `scale` times the run's rows and columns.
  OutputView run(const PositionRun& run, int image, int scale) const;

  /// Position lanes: so many blocks of lanes are a map.
  int blocks() const { return layout_.blocks; }
  OutputView block(int number) const;
  /// The taps of a convolution that reads this map.
  std::vector<Tap> taps(const ConvolutionShape& shape) const;
  /// Zeroes whatever is no position of the map: a kernel writes whole blocks.
  void clear_pads();

 private:
  /// The parts of the memory, one behind the other: of image lanes the positions, of position lanes the
  /// planes of each phase and copy. A part has all channel groups.
  struct Layout {
    int parts;
    int lanes_of_part;  ///< images, or positions with pads and margins
    int height;         ///< of a plane
    int width;
    int origin;  ///< where a plane's row 0 begins
    int pitch;   ///< from row to row
    int blocks;
  };
  static Layout layout_of(Lanes kind, const MapSize& size, int lanes, int tile, int stride);

  int groups() const { return group_count(format_, size_.channels); }
  std::ptrdiff_t group_size() const { return std::ptrdiff_t{layout_.lanes_of_part} * format_.bytes; }
  std::ptrdiff_t part_size() const { return groups() * group_size(); }
  /// One lane of a part.
  OutputView at(int part, int lane) const;
  OutputView at_position(int part, int row, int column) const;

  Lanes kind_;
  ActivationFormat format_;
  MapSize size_;
  int lanes_;
  int stride_;
  Layout layout_;
  GuardedMemory memory_;
};

}  // namespace nibble
