#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "graph/network/integer_plan.h"

namespace nibble {

/// first .. last - 1.
struct Range {
  int first = 0;
  int last = 0;
  int count() const { return last - first; }
  bool empty() const { return first >= last; }
};

Range common(const Range& a, const Range& b);

/// What a thread computes of a layer: all outputs of these rows and channels.
struct Share {
  Range rows;
  Range channels;
  bool empty() const { return rows.empty() || channels.empty(); }
};

/// A part of a message that goes into a map: some rows of some channel groups.
struct Piece {
  int from;            ///< the thread that sent it
  std::size_t offset;  ///< bytes from the message's beginning to the first row of the first group
  int stride;          ///< to the next group's
  Range rows;
  Range groups;
  /// Whether the reader has other channels of the group already, its own or an earlier thread's: then bytes
  /// are added by or, else copied.
  bool joins;
};

/// How a map gets from the threads that wrote it to those that read it.
struct Transfer {
  std::vector<Share> written;  ///< [thread]
  std::vector<Range> needed;   ///< [thread]: rows, of all channels
  /// [thread]: rows that it sends to threads before it and to threads behind it, of the channels that it
  /// wrote.
  std::vector<std::array<Range, 2>> sent;
  std::vector<std::vector<Piece>> received;  ///< [thread], in the order in which it takes them
  bool any = false;                          ///< whether anybody sends anything
  int row_bytes = 0;                         ///< of a channel group
  ActivationFormat format{};

  /// Those that the thread wrote, of the first and the last perhaps only some channels.
  Range groups(std::size_t thread) const;
  /// Where a row of a group lies in a message: a part has all rows of a group, then those of the next one.
  std::size_t place(std::size_t thread, std::size_t part, int group, int row) const;
  std::size_t part_bytes(std::size_t thread, std::size_t part) const;
};

/// written, needed: [thread]. Maps of `width` columns.
Transfer make_transfer(const std::vector<Share>& written, std::vector<Range> needed,
                       const ActivationFormat& format, int width);

/// Which thread computes what of an image. Layers whose maps have one size are cut in one way, so that a
/// block's residual never leaves its thread. Bands of rows where there are enough of them, since neighbours
/// then need only a row of each other; else bands of channels, or both.
struct ImageDivision {
  struct BlockTransfers {
    Transfer input;   ///< x, for conv1 and the projection
    Transfer middle;  ///< y1, for conv2
    Transfer stream;  ///< for a shortcut that pads channels
  };
  int threads;
  std::vector<std::vector<Share>> shares;  ///< [convolution][thread]
  std::vector<Range> pixels;               ///< [thread]: rows of the image that the first convolution reads
  std::vector<BlockTransfers> blocks;
  std::size_t message_bytes = 0;  ///< the longest message of a thread

  ImageDivision(const IntegerPlan& plan, int threads);
};

}  // namespace nibble
