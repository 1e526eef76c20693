#include "graph/network/image_division.h"

#include <algorithm>
#include <numeric>

namespace nibble {
namespace {

constexpr std::size_t kLineBytes = 64;

Range part_of(int count, int part, int parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

/// Cuts a map of `size` rows and columns so that the largest share is smallest: into blocks of channels,
/// blocks of rows, or both.
std::vector<Share> cut(int size, int channels, int channel_block, int lanes, int threads) {
  // Whole rows in whole blocks of lanes, where that comes out even.
  const int block = std::lcm(size, lanes);
  const bool even = size * size % block == 0;
  const int row_blocks = even ? size * size / block : 1;
  const int block_rows = even ? block / size : size;
  const int channel_blocks = (channels + channel_block - 1) / channel_block;
  int channel_parts = 1;
  int best_cost = 0;
  for (int parts = 1; parts <= threads; ++parts) {
    if (threads % parts != 0) continue;
    const int rest = threads / parts;
    const int cost = ((channel_blocks + parts - 1) / parts) * ((row_blocks + rest - 1) / rest);
    if (best_cost == 0 || cost < best_cost) {
      channel_parts = parts;
      best_cost = cost;
    }
  }
  std::vector<Share> shares;
  for (int thread = 0; thread < threads; ++thread) {
    const Range rows = part_of(row_blocks, thread / channel_parts, threads / channel_parts);
    const Range of_channels = part_of(channel_blocks, thread % channel_parts, channel_parts);
    shares.push_back(
        {{rows.first * block_rows, rows.last * block_rows},
         {of_channels.first * channel_block, std::min(of_channels.last * channel_block, channels)}});
  }
  return shares;
}

/// Rows of the input that a convolution of 3 x 3 reads for a share.
Range read_rows(const Share& share, int stride, int input_size) {
  if (share.empty()) return {};
  return {std::max(share.rows.first * stride - 1, 0),
          std::min((share.rows.last - 1) * stride + 2, input_size)};
}

std::vector<Piece> pieces_for(const Transfer& transfer, std::size_t to) {
  std::vector<Piece> pieces;
  const Share& own = transfer.written[to];
  for (std::size_t from = 0; from < transfer.written.size(); ++from) {
    const Share& share = transfer.written[from];
    if (from == to || share.empty()) continue;
    const std::size_t part = to < from ? 0 : 1;
    const Range& sent = transfer.sent[from][part];
    const Range rows = common(sent, transfer.needed[to]);
    if (rows.empty()) continue;
    const Range groups = transfer.groups(from);
    const auto add = [&](const Range& some, bool joins) {
      if (some.empty()) return;
      pieces.push_back({static_cast<int>(from), transfer.place(from, part, some.first, rows.first),
                        sent.count() * transfer.row_bytes, rows, some, joins});
    };
    // Shares of the same rows are one behind the other in channels.
    const bool joins_first = share.channels.first % transfer.format.channels != 0;
    const bool joins_last =
        !own.empty() && own.rows.first == share.rows.first && transfer.groups(to).first == groups.last - 1;
    const Range whole{groups.first + (joins_first ? 1 : 0), groups.last - (joins_last ? 1 : 0)};
    add({groups.first, whole.first}, true);
    add(whole, false);
    add({whole.last, groups.last}, true);
  }
  return pieces;
}

}  // namespace

Transfer make_transfer(const std::vector<Share>& written, std::vector<Range> needed,
                       const ActivationFormat& format, int width) {
  Transfer transfer{written, std::move(needed), {}, {}, false, width * format.bytes, format};
  const std::size_t threads = written.size();
  for (std::size_t from = 0; from < threads; ++from) {
    std::array<Range, 2> sent;
    for (std::size_t to = 0; to < threads; ++to) {
      if (to == from || written[from].empty()) continue;
      const Range rows = common(transfer.needed[to], written[from].rows);
      if (rows.empty()) continue;
      Range& all = sent[to < from ? 0 : 1];
      all = all.empty() ? rows : Range{std::min(all.first, rows.first), std::max(all.last, rows.last)};
      transfer.any = true;
    }
    transfer.sent.push_back(sent);
  }
  for (std::size_t to = 0; to < threads; ++to) transfer.received.push_back(pieces_for(transfer, to));
  return transfer;
}

Range common(const Range& a, const Range& b) {
  return {std::max(a.first, b.first), std::min(a.last, b.last)};
}

Range Transfer::groups(std::size_t thread) const {
  const Range& channels = written[thread].channels;
  return {channels.first / format.channels, group_count(format, channels.last)};
}

std::size_t Transfer::place(std::size_t thread, std::size_t part, int group, int row) const {
  const Range& rows = sent[thread][part];
  const int row_number = (group - groups(thread).first) * rows.count() + row - rows.first;
  return (part == 0 ? 0 : part_bytes(thread, 0)) + static_cast<std::size_t>(row_number * row_bytes);
}

std::size_t Transfer::part_bytes(std::size_t thread, std::size_t part) const {
  const Range& rows = sent[thread][part];
  if (rows.empty()) return 0;
  const auto bytes = static_cast<std::size_t>(groups(thread).count() * rows.count() * row_bytes);
  return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes;
}

ImageDivision::ImageDivision(const IntegerPlan& plan, int team) : threads(team) {
  const auto shares_of = [&](std::size_t index) {
    const ConvolutionShape& shape = plan.convolutions[index].shape;
    int channel_block = 1;
    for (const PlannedConvolution& planned : plan.convolutions) {
      if (planned.shape.output_width() != shape.output_width()) continue;
      channel_block = std::lcm(channel_block, planned.kernel->channel_block);
    }
    return cut(shape.output_width(), shape.output_channels, channel_block, plan.lanes, threads);
  };
  for (std::size_t i = 0; i < plan.convolutions.size(); ++i) shares.push_back(shares_of(i));
  const auto rows_read = [&](std::size_t index) {
    const ConvolutionShape& shape = plan.convolutions[index].shape;
    std::vector<Range> rows;
    for (const Share& share : shares[index])
      rows.push_back(read_rows(share, shape.stride, shape.input_height));
    return rows;
  };
  pixels = rows_read(0);
  std::size_t writer = 0;
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const PlannedBlock& formats = plan.blocks[b];
    const auto conv1 = static_cast<std::size_t>(plan.network.blocks[b].conv1);
    const auto conv2 = static_cast<std::size_t>(plan.network.blocks[b].conv2);
    const ConvolutionShape& shape = plan.convolutions[conv1].shape;
    BlockTransfers transfers;
    transfers.input = make_transfer(shares[writer], rows_read(conv1), formats.input, shape.input_width);
    transfers.middle = make_transfer(shares[conv1], rows_read(conv2), formats.middle, shape.output_width());
    if (plan.network.blocks[b].shortcut == Shortcut::pad_channels) {
      transfers.stream = make_transfer(shares[writer], rows_read(conv1), formats.stream, shape.input_width);
    }
    for (const Transfer* transfer : {&transfers.input, &transfers.middle, &transfers.stream}) {
      for (std::size_t thread = 0; thread < transfer->sent.size(); ++thread) {
        message_bytes =
            std::max(message_bytes, transfer->part_bytes(thread, 0) + transfer->part_bytes(thread, 1));
      }
    }
    blocks.push_back(std::move(transfers));
    writer = conv2;
  }
  // Sums of the features.
  message_bytes =
      std::max(message_bytes, static_cast<std::size_t>(plan.network.feature_channels) * sizeof(std::int32_t));
}

}  // namespace nibble
