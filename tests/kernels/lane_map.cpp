#include "tests/kernels/lane_map.h"

#include <cstring>

namespace nibble {
namespace {

constexpr int kPhases = 4;            ///< of a plane that a convolution of stride 2 reads
constexpr int kCopies = 3;            ///< of a plane and phase of rows
constexpr int kShift[] = {0, -1, 1};  ///< columns from a copy's position to what it holds

}  // namespace

LaneMap::Layout LaneMap::layout_of(Lanes kind, const MapSize& size, int lanes, int tile, int stride) {
  const int divisor = stride == 2 ? 2 : 1;
  const int height = size.height / divisor;
  const int width = size.width / divisor;
  switch (kind) {
    case Lanes::images:
      break;
    case Lanes::planes: {
      const PlaneLayout plane{height, width, lanes};
      return {stride == 2 ? kPhases : 1, plane.positions(), height,        width,
              plane.position(0, 0),      plane.pitch(),     plane.blocks()};
    }
    case Lanes::column_copies: {
      const ColumnCopies plane{height, width, lanes};
      return {stride == 0 ? 1 : kCopies * divisor,
              plane.positions(),
              height,
              width,
              plane.position(0, 0),
              width,
              plane.blocks()};
    }
  }
  return {size.height * size.width, tile, 1, 1, 0, 0, 0};
}

LaneMap::LaneMap(Lanes kind, const ActivationFormat& format, const MapSize& size, int lanes, int tile,
                 int stride, GuardedMemory::Guard guard)
    : kind_(kind),
      format_(format),
      size_(size),
      lanes_(lanes),
      stride_(stride),
      layout_(layout_of(kind, size, lanes, tile, stride)),
      memory_(static_cast<std::size_t>(layout_.parts * part_size()), guard) {}

OutputView LaneMap::at(int part, int lane) const {
  return {memory_.data() + part * part_size() + std::ptrdiff_t{lane} * format_.bytes, 0, group_size()};
}

OutputView LaneMap::at_position(int part, int row, int column) const {
  return at(part, layout_.origin + row * layout_.pitch + column);
}

void LaneMap::store(std::span<const std::int16_t> values, int images) {
  const auto store_position = [&](const OutputView& to, int image, int row, int column) {
    const std::size_t position = (static_cast<std::size_t>(image) * static_cast<std::size_t>(size_.height) +
                                  static_cast<std::size_t>(row)) *
                                     static_cast<std::size_t>(size_.width) +
                                 static_cast<std::size_t>(column);
    for (int channel = 0; channel < size_.channels; ++channel) {
      store_activation(
          to, format_, 0, channel, 0,
          values[position * static_cast<std::size_t>(size_.channels) + static_cast<std::size_t>(channel)]);
    }
  };
  if (kind_ == Lanes::images) {
    for (int image = 0; image < images; ++image) {
      for (int row = 0; row < size_.height; ++row) {
        for (int column = 0; column < size_.width; ++column) {
          store_position(at(row * size_.width + column, image), image, row, column);
        }
      }
    }
    return;
  }
  const int step = stride_ == 2 ? 2 : 1;
  for (int part = 0; part < layout_.parts; ++part) {
    const bool copied = kind_ == Lanes::column_copies;
    const int down = copied ? part / kCopies : part / 2;
    const int right = copied ? kShift[part % kCopies] : part % 2;
    for (int row = 0; row < layout_.height; ++row) {
      for (int column = 0; column < layout_.width; ++column) {
        const int source = step * column + right;
        if (source < 0 || source >= size_.width) continue;
        store_position(at_position(part, row, column), 0, step * row + down, source);
      }
    }
  }
}

int LaneMap::load(int image, int row, int column, int channel) const {
  const OutputView view =
      kind_ == Lanes::images ? at(row * size_.width + column, image) : at_position(0, row, column);
  return load_activation(view, format_, 0, channel, 0);
}

MapStrides LaneMap::strides() const {
  return {size_.width * part_size(), part_size()};
}

OutputView LaneMap::run(const PositionRun& run, int image, int scale) const {
  OutputView view = at(scale * (run.row * size_.width + run.column), image);
  view.position_stride = scale * (run.row_step * strides().row + run.column_step * strides().column);
  view.row_stride = scale * strides().row;
  return view;
}

OutputView LaneMap::block(int number) const {
  OutputView view = at(0, layout_.origin + number * lanes_);
  view.position_stride = std::ptrdiff_t{lanes_} * format_.bytes;
  return view;
}

std::vector<Tap> LaneMap::taps(const ConvolutionShape& shape) const {
  if (kind_ == Lanes::planes) {
    return plane_taps(shape, {layout_.height, layout_.width, lanes_}, format_.bytes, part_size());
  }
  return column_taps(shape, {layout_.height, layout_.width, lanes_}, format_.bytes, part_size());
}

void LaneMap::clear_pads() {
  if (kind_ == Lanes::images) return;
  for (int lane = 0; lane < layout_.lanes_of_part; ++lane) {
    const int behind = lane - layout_.origin;
    if (behind >= 0 && behind / layout_.pitch < layout_.height && behind % layout_.pitch < layout_.width)
      continue;
    for (int group = 0; group < groups(); ++group) {
      std::memset(at(0, lane).at(0, group), 0, static_cast<std::size_t>(format_.bytes));
    }
  }
}

}  // namespace nibble
