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

/// Every channel of every row that a thread reads is its own or in one message to it, and ends where it
/// should: what the memory held before is neither left in a group nor added to it.
void expect_complete(const Transfer& transfer, int channels) {
  constexpr unsigned kGarbage = 0xFF00;
  for (std::size_t to = 0; to < transfer.needed.size(); ++to) {
    for (int row = transfer.needed[to].first; row < transfer.needed[to].last; ++row) {
      for (int group = 0; group < group_count(transfer.format, channels); ++group) {
        const Share& own = transfer.written[to];
        unsigned memory = kGarbage;
        if (!own.empty() && holds(own.rows, row) && holds(transfer.groups(to), group)) {
          memory = written_bits(transfer, to, group);
        }
        for (const Piece& piece : transfer.received[to]) {
          if (!holds(piece.rows, row) || !holds(piece.groups, group)) continue;
          const auto from = static_cast<std::size_t>(piece.from);
          ASSERT_TRUE(holds(transfer.sent[from][to < from ? 0 : 1], row));
          const unsigned bits = written_bits(transfer, from, group);
          ASSERT_EQ(piece.joins ? memory & bits : 0U, 0U);
          memory = piece.joins ? memory | bits : bits;
        }
        unsigned expected = 0;
        for (int i = 0; i < std::min(transfer.format.channels, channels - transfer.format.channels * group);
             ++i) {
          expected |= 1U << i;
        }
        ASSERT_EQ(memory, expected) << "thread " << to << ", row " << row << ", group " << group;
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
