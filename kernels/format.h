#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace nibble {

/// How the activations of one position lie in memory. Lanes (images of a tile, or consecutive positions of
/// one image) are innermost but for the channels of one group, which share a lane's bytes, lowest bits first:
///
///   [group][lane][channel within the group]
///
///   planar8   channel 0: L0 L1 L2 ... | channel 1: L0 L1 ...            one byte an activation
///   quads8    L0: c0 c1 c2 c3 | L1: c0 c1 c2 c3 | ...                   for vpmaddubsw + vpmaddwd, vpdpbusd
///   index2    L0: c0 | c1 << 2 | L1: ...                                a byte is a vpshufb index
///   pairs16   L0: c0 c1 | L1: c0 c1 | ...                               for vpmaddwd
///
/// Channels of the last group that do not exist are zero.
struct ActivationFormat {
  int channels;  ///< in a group
  int bits;      ///< of a channel's field
  int bytes;     ///< of a lane of a group
  constexpr bool operator==(const ActivationFormat&) const = default;
};

inline constexpr ActivationFormat kPlanar8{1, 8, 1};
inline constexpr ActivationFormat kQuads8{4, 8, 4};
inline constexpr ActivationFormat kIndex2{2, 2, 1};  ///< two 2-bit activations
inline constexpr ActivationFormat kIndex3{3, 2, 1};  ///< three 2-bit activations, for vpermb
inline constexpr ActivationFormat kPlanar16{1, 16, 2};
inline constexpr ActivationFormat kPairs16{2, 16, 4};

inline constexpr ActivationFormat kActivationFormats[] = {kPlanar8, kQuads8,   kIndex2,
                                                          kIndex3,  kPlanar16, kPairs16};

constexpr int group_count(const ActivationFormat& format, int channels) {
  return (channels + format.channels - 1) / format.channels;
}

/// A map that a kernel reads or writes, seen from one block of lanes: group g of position p of row r lies at
/// data + r * row_stride + p * position_stride + g * group_stride, lanes * format.bytes bytes without gaps.
template <typename Byte>
struct MapView {
  Byte* data = nullptr;
  std::ptrdiff_t position_stride = 0;  ///< bytes
  std::ptrdiff_t group_stride = 0;     ///< bytes
  std::ptrdiff_t row_stride = 0;       ///< bytes; for calls of several rows

  /// What was written is read next.
  operator MapView<const Byte>() const requires(!std::is_const_v<Byte>) {
    return {data, position_stride, group_stride, row_stride};
  }

  Byte* at(std::ptrdiff_t position, std::ptrdiff_t group) const {
    return data + position * position_stride + group * group_stride;
  }
};

using InputView = MapView<const std::uint8_t>;
using OutputView = MapView<std::uint8_t>;

/// One activation of lane `lane`, zero-extended; the scalar way in and out of every format.
inline int load_activation(const InputView& view, const ActivationFormat& format, std::ptrdiff_t position,
                           int channel, int lane) {
  const std::uint8_t* bytes =
      view.at(position, channel / format.channels) + std::ptrdiff_t{lane} * format.bytes;
  const int first_bit = channel % format.channels * format.bits;
  unsigned value = bytes[first_bit / 8];
  if (format.bits == 16) value |= static_cast<unsigned>(bytes[first_bit / 8 + 1]) << 8;
  return static_cast<int>((value >> (first_bit % 8)) & ((1U << format.bits) - 1U));
}

/// Stores one activation; the first channel of a group clears the whole group, so store in ascending order.
inline void store_activation(const OutputView& view, const ActivationFormat& format, std::ptrdiff_t position,
                             int channel, int lane, int value) {
  std::uint8_t* bytes = view.at(position, channel / format.channels) + std::ptrdiff_t{lane} * format.bytes;
  const int first_bit = channel % format.channels * format.bits;
  if (first_bit == 0) std::memset(bytes, 0, static_cast<std::size_t>(format.bytes));
  const unsigned field = (static_cast<unsigned>(value) & ((1U << format.bits) - 1U)) << (first_bit % 8);
  bytes[first_bit / 8] = static_cast<std::uint8_t>(bytes[first_bit / 8] | (field & 0xFFU));
  if (format.bits == 16) bytes[first_bit / 8 + 1] = static_cast<std::uint8_t>(field >> 8);
}

}  // namespace nibble
