#include "graph/network/image_division.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "graph/network/instruction_set.h"
#include "tests/graph/network/random_network.h"

namespace nibble {
namespace {

bool holds(const Range& range, int value) {
  return range.first <= value && value < range.last;
}

/// How often each output [row][channel] is computed.
std::vector<int> writers(const std::vector<Share>& shares, int rows, int channels) {
  std::vector<int> count(static_cast<std::size_t>(rows * channels));
  for (const Share& share : shares) {
    for (int row = share.rows.first; row < share.rows.last; ++row) {
      for (int c = share.channels.first; c < share.channels.last; ++c) {
        ++count[static_cast<std::size_t>(row * channels + c)];
      }
    }
  }
  return count;
}

/// The channels of a group that a thread writes, one bit each.
unsigned written_bits(const Transfer& transfer, std::size_t thread, int group) {
  unsigned bits = 0;
  for (int i = 0; i < transfer.format.channels; ++i) {
    if (holds(transfer.written[thread].channels, transfer.format.channels * group + i)) bits |= 1U << i;
  }
  return bits;
}

/// One row of a group in a message, a number instead of each byte: who wrote it and what.
unsigned row_of(std::size_t thread, int group, int row) {
  return static_cast<unsigned>((static_cast<int>(thread) * 1000 + group) * 1000 + row + 1);
}

/// The messages as the threads send them; no place is used twice.
std::vector<std::vector<unsigned>> messages_of(const Transfer& transfer) {
  std::vector<std::vector<unsigned>> messages;
  for (std::size_t thread = 0; thread < transfer.written.size(); ++thread) {
    std::vector<unsigned> message(transfer.part_bytes(thread, 0) + transfer.part_bytes(thread, 1));
    for (std::size_t part = 0; part < 2; ++part) {
      const Range& rows = transfer.sent[thread][part];
      const Range groups = transfer.groups(thread);
      for (int group = groups.first; group < groups.last && !rows.empty(); ++group) {
        for (int row = rows.first; row < rows.last; ++row) {
          for (int byte = 0; byte < transfer.row_bytes; ++byte) {
            unsigned& at =
                message.at(transfer.place(thread, part, group, row) + static_cast<std::size_t>(byte));
            EXPECT_EQ(at, 0U);
            at = row_of(thread, group, row);
          }
        }
      }
    }
    messages.push_back(std::move(message));
  }
  return messages;
}

/// Every channel of every row that a thread reads is its own or in one message to it, and ends where it
/// should: what the memory held before is neither left in a group nor added to it.
void expect_complete(const Transfer& transfer, int channels) {
  constexpr unsigned kGarbage = 0xFF00;
  const std::vector<std::vector<unsigned>> messages = messages_of(transfer);
  for (std::size_t to = 0; to < transfer.needed.size(); ++to) {
    for (int row = transfer.needed[to].first; row < transfer.needed[to].last; ++row) {
      for (int group = 0; group < group_count(transfer.format, channels); ++group) {
        const Share& own = transfer.written[to];
        unsigned memory = kGarbage;
        int copies = 0;
        if (!own.empty() && holds(own.rows, row) && holds(transfer.groups(to), group)) {
          memory = written_bits(transfer, to, group);
          copies = 1;
        }
        for (const Piece& piece : transfer.received[to]) {
          if (!holds(piece.rows, row) || !holds(piece.groups, group)) continue;
          const auto from = static_cast<std::size_t>(piece.from);
          const std::size_t at =
              piece.offset + static_cast<std::size_t>((group - piece.groups.first) * piece.stride +
                                                      (row - piece.rows.first) * transfer.row_bytes);
          ASSERT_EQ(messages[from].at(at), row_of(from, group, row));
          const unsigned bits = written_bits(transfer, from, group);
          ASSERT_EQ(piece.joins ? memory & bits : 0U, 0U);
          memory = piece.joins ? memory | bits : bits;
          copies += piece.joins ? 0 : 1;
        }
        const int first = transfer.format.channels * group;
        const int count = std::min(transfer.format.channels, channels - first);
        ASSERT_EQ(memory, (1U << count) - 1) << "thread " << to << ", row " << row << ", group " << group;
        ASSERT_EQ(copies, 1) << "thread " << to << ", row " << row << ", group " << group;
      }
    }
  }
}

/// Shares of `row_parts` bands of rows, each cut into `channel_parts` of whole fours of channels.
std::vector<Share> shares_of(int rows, int channels, int row_parts, int channel_parts) {
  std::vector<Share> shares;
  const int blocks = (channels + 3) / 4;
  for (int r = 0; r < row_parts; ++r) {
    for (int c = 0; c < channel_parts; ++c) {
      shares.push_back(
          {{rows * r / row_parts, rows * (r + 1) / row_parts},
           {blocks * c / channel_parts * 4, std::min(blocks * (c + 1) / channel_parts * 4, channels)}});
    }
  }
  return shares;
}

TEST(ImageDivision, JoinsGroupsThatThreadsCutBetweenChannels) {
  constexpr int kRows = 8;
  for (const ActivationFormat& format : {kIndex3, kIndex2, kQuads8, kPlanar8}) {
    for (const int channels : {4, 7, 16, 31, 32, 64}) {
      for (const int row_parts : {1, 2, 3}) {
        for (int channel_parts = 1; channel_parts <= 8; ++channel_parts) {
          SCOPED_TRACE(std::to_string(format.channels) + " channels a group, " + std::to_string(channels) +
                       " channels in " + std::to_string(channel_parts) + " parts, rows in " +
                       std::to_string(row_parts));
          const std::vector<Share> written = shares_of(kRows, channels, row_parts, channel_parts);
          std::vector<Range> needed;
          for (const Share& share : written) {
            needed.push_back(share.empty() ? Range{}
                                           : Range{std::max(share.rows.first - 1, 0),
                                                   std::min(share.rows.last + 1, kRows)});
          }
          expect_complete(make_transfer(written, needed, format, 8), channels);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(ImageDivision, GivesEveryOutputToOneThreadAndEveryInputToItsReaders) {
  for (const char* variant : {"resnet_344 B", "he A", "he B"}) {
    const std::string name(variant);
    const NetworkDescription description = describe_network(
        name.substr(0, name.size() - 2), name[0] == 'h' ? 20 : 24, name.substr(name.size() - 1));
    for (const int bits : {16, 8, 2}) {
      const IntegerPlan plan =
          make_plan(random_network(description, bits, bits, 7), effective_instruction_set());
      for (int threads = 1; threads <= 8; ++threads) {
        SCOPED_TRACE(name + ", " + std::to_string(bits) + " bits, " + std::to_string(threads) + " threads");
        const ImageDivision division(plan, threads);
        for (std::size_t i = 0; i < plan.convolutions.size(); ++i) {
          const ConvolutionShape& shape = plan.convolutions[i].shape;
          const std::vector<int> count =
              writers(division.shares[i], shape.output_height(), shape.output_channels);
          EXPECT_EQ(count, std::vector<int>(count.size(), 1)) << plan.convolutions[i].name;
        }
        for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
          const ConvolutionShape& conv1 =
              plan.convolutions[static_cast<std::size_t>(description.blocks[b].conv1)].shape;
          expect_complete(division.blocks[b].input, conv1.input_channels);
          expect_complete(division.blocks[b].middle, conv1.output_channels);
          expect_complete(division.blocks[b].stream, conv1.input_channels);
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
