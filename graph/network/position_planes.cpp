#include "graph/network/position_planes.h"

#include <algorithm>
#include <cstring>

#include "kernels/features.h"
#include "kernels/requantize.h"

namespace nibble {
namespace {

constexpr int kCopies = 3;  ///< of every plane: ColumnCopies

ColumnCopies layout_of(const IntegerPlan& plan, int size) {
  return {size, size, plan.lanes};
}

std::ptrdiff_t plane_bytes(const ColumnCopies& layout, const ActivationFormat& format) {
  return std::ptrdiff_t{layout.positions()} * format.bytes;
}

template <std::size_t Bytes>
void copy_pieces_of(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to,
                    std::ptrdiff_t to_stride, int count) {
  for (int i = 0; i < count; ++i) std::memcpy(to + i * to_stride, from + i * from_stride, Bytes);
}

/// Copies `count` pieces of a few bytes; the common sizes without a call for each.
void copy_pieces(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to,
                 std::ptrdiff_t to_stride, std::size_t bytes, int count) {
  switch (bytes) {
    case 8:
      return copy_pieces_of<8>(from, from_stride, to, to_stride, count);
    case 16:
      return copy_pieces_of<16>(from, from_stride, to, to_stride, count);
    case 32:
      return copy_pieces_of<32>(from, from_stride, to, to_stride, count);
    case 64:
      return copy_pieces_of<64>(from, from_stride, to, to_stride, count);
    case 128:
      return copy_pieces_of<128>(from, from_stride, to, to_stride, count);
    default:
      for (int i = 0; i < count; ++i) std::memcpy(to + i * to_stride, from + i * from_stride, bytes);
  }
}

/// to |= from.
void join_bytes(const std::uint8_t* from, std::uint8_t* to, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) to[i] |= from[i];
}

}  // namespace

PositionPlanes::PositionPlanes(const IntegerPlan& plan, int threads)
    : alone_(plan, 1), together_(plan, threads) {
  for (std::size_t i = 0; i < plan.convolutions.size(); ++i) {
    const ConvolutionShape& shape = plan.convolutions[i].shape;
    const ActivationFormat& format = plan.convolutions[i].kernel->input_format;
    const ColumnCopies layout = layout_of(plan, shape.output_width());
    const std::ptrdiff_t bytes = plane_bytes(layout, format);
    const std::ptrdiff_t copy_bytes = group_count(format, shape.input_channels) * bytes;
    layers_.push_back({layout, column_taps(shape, layout, format.bytes, copy_bytes), bytes, copy_bytes});
  }
  const ActivationFormat& format = plan.convolutions[0].kernel->input_format;
  border_.resize(static_cast<std::size_t>(group_count(format, 3) * format.bytes));
  for (int c = 0; c < 3; ++c) {
    store_activation({border_.data(), 0, format.bytes}, format, 0, c, 0, kBorderPixel[c]);
  }
  tensors_ = plan_tensors(plan, kCopies * static_cast<std::size_t>(layers_[0].input_copy_bytes),
                          static_cast<std::size_t>(plan.network.feature_channels) * sizeof(std::int32_t),
                          true, [&](int size, int channels, const ActivationFormat& map_format) {
                            return static_cast<std::size_t>(kCopies * group_count(map_format, channels) *
                                                            plane_bytes(layout_of(plan, size), map_format));
                          });
}

void PositionPlanes::load_image(const Pass& pass, const std::uint8_t* pixels) const {
  const int size = pass.plan.network.image_size;
  const Layer& layer = layers_[0];
  const ActivationFormat& format = pass.plan.convolutions[0].kernel->input_format;
  const Range& rows = pass.division.pixels[pass.index()];
  if (rows.empty()) return;
  std::uint8_t* planes = data(pass, tensors_.pixels);
  load_pixels(pixels + std::ptrdiff_t{rows.first} * size * 3, 1, rows.count(), size, format,
              {planes + std::ptrdiff_t{layer.layout.position(rows.first, 0)} * format.bytes, format.bytes,
               layer.input_plane_bytes},
              std::ptrdiff_t{size} * format.bytes);
  copy_columns(layer.layout, planes, group_count(format, 3), layer.input_plane_bytes, layer.input_copy_bytes,
               format.bytes, rows.first, rows.last, border_.data());
}

void PositionPlanes::send(const Pass& pass, const Transfer& transfer, const ColumnCopies& layout,
                          std::size_t tensor) const {
  if (!transfer.any) return;
  const std::ptrdiff_t plane = plane_bytes(layout, transfer.format);
  const Range groups = transfer.groups(pass.index());
  const std::uint8_t* const first_row = data(pass, tensor) + groups.first * plane +
                                        std::ptrdiff_t{layout.position(0, 0)} * transfer.format.bytes;
  std::uint8_t* const message = pass.team->outgoing(pass.thread);
  for (std::size_t part = 0; part < 2; ++part) {
    const Range& rows = transfer.sent[pass.index()][part];
    if (rows.empty()) continue;
    const int bytes = rows.count() * transfer.row_bytes;
    copy_pieces(first_row + std::ptrdiff_t{rows.first} * transfer.row_bytes, plane,
                message + transfer.place(pass.index(), part, groups.first, rows.first), bytes,
                static_cast<std::size_t>(bytes), groups.count());
  }
  pass.team->publish(pass.thread);
}

void PositionPlanes::receive(const Pass& pass, const Transfer& transfer, const ColumnCopies& layout,
                             std::size_t tensor) const {
  if (!transfer.any) return;
  const std::ptrdiff_t plane = plane_bytes(layout, transfer.format);
  std::uint8_t* const first_row =
      data(pass, tensor) + std::ptrdiff_t{layout.position(0, 0)} * transfer.format.bytes;
  pass.team->wait(pass.thread);
  for (const Piece& piece : transfer.received[pass.index()]) {
    const std::uint8_t* from = pass.team->incoming(pass.thread, piece.from) + piece.offset;
    std::uint8_t* to =
        first_row + piece.groups.first * plane + std::ptrdiff_t{piece.rows.first} * transfer.row_bytes;
    const auto bytes = static_cast<std::size_t>(piece.rows.count() * transfer.row_bytes);
    if (!piece.joins) {
      copy_pieces(from, piece.stride, to, plane, bytes, piece.groups.count());
      continue;
    }
    for (int group = piece.groups.first; group < piece.groups.last; ++group) {
      join_bytes(from, to, bytes);
      from += piece.stride;
      to += plane;
    }
  }
}

/// The rows that this thread reads of a convolution's input, with all copies.
void PositionPlanes::prepare_input(const Pass& pass, const Transfer& transfer, std::size_t index,
                                   std::size_t tensor, std::size_t phases) const {
  const ConvolutionShape& shape = pass.plan.convolutions[index].shape;
  const ActivationFormat& format = transfer.format;
  const Layer& layer = layers_[index];
  const ColumnCopies layout = layout_of(pass.plan, shape.input_width);
  receive(pass, transfer, layout, tensor);
  const Range& rows = transfer.needed[pass.index()];
  if (rows.empty()) return;
  const int groups = group_count(format, shape.input_channels);
  if (shape.stride == 1) {
    copy_columns(layout, data(pass, tensor), groups, layer.input_plane_bytes, layer.input_copy_bytes,
                 format.bytes, rows.first, rows.last);
    return;
  }
  for (int group = 0; group < groups; ++group) {
    copy_phases(layout, data(pass, tensor) + group * plane_bytes(layout, format), layer.layout,
                data(pass, phases) + group * layer.input_plane_bytes, layer.input_copy_bytes, format.bytes,
                rows.first, rows.last);
  }
}

/// Some rows of this thread's share.
void PositionPlanes::run_rows(const Pass& pass, std::size_t index, const LayerTensors& tensors,
                              const Range& rows) const {
  const Range& channels = pass.division.shares[index][pass.index()].channels;
  const PlannedConvolution& planned = pass.plan.convolutions[index];
  const ConvolutionKernel& kernel = *planned.kernel;
  const OutputStage& stage = planned.stage;
  const Layer& layer = layers_[index];
  const int first = layer.layout.position(rows.first, 0);
  const int positions = rows.count() * layer.layout.width;

  const auto view = [&](std::size_t tensor, const ActivationFormat& format, std::ptrdiff_t plane) {
    return OutputView{data(pass, tensor) + std::ptrdiff_t{first} * format.bytes,
                      std::ptrdiff_t{kernel.lanes} * format.bytes, plane};
  };
  const auto output_view = [&](std::size_t tensor, const ActivationFormat& format) {
    return view(tensor, format, plane_bytes(layer.layout, format));
  };
  // Another thread computes the first channels of a group, and receive() adds them. An output in its
  // residual's place is never cut so: residuals have 1, 2 or 4 channels a group, which blocks are multiples
  // of.
  const auto clear_cut_group = [&](std::size_t tensor, const ActivationFormat& format) {
    if (channels.first % format.channels == 0) return;
    const int group = channels.first / format.channels;
    std::memset(output_view(tensor, format).at(0, group), 0,
                static_cast<std::size_t>(positions * format.bytes));
  };
  clear_cut_group(tensors.output, stage.format);
  if (stage.derived_bits != 0) clear_cut_group(tensors.derived, stage.derived_format);
  kernel.run(planned.packed, stage,
             {view(tensors.input, kernel.input_format, layer.input_plane_bytes), layer.taps,
              (positions + kernel.lanes - 1) / kernel.lanes, channels.first, channels.last,
              output_view(tensors.output, stage.format), output_view(tensors.residual, stage.residual_format),
              output_view(tensors.derived, stage.derived_format)});
}

/// This thread's share. What others wait for comes first, so that it is on its way while the rest is
/// computed.
void PositionPlanes::run_layer(const Pass& pass, std::size_t index, const LayerTensors& tensors,
                               const Destination& destination) const {
  constexpr int kEdge = 2;  // blocks of lanes: fewer would be slow
  const Share& share = pass.division.shares[index][pass.index()];
  const ColumnCopies& layout = layers_[index].layout;
  const auto send_result = [&] {
    if (destination.transfer != nullptr) send(pass, *destination.transfer, layout, destination.tensor);
  };
  if (share.empty()) return send_result();
  Range inner = share.rows;
  if (destination.transfer != nullptr && destination.transfer->any) {
    const int edge_positions = kEdge * pass.plan.convolutions[index].kernel->lanes;
    const int edge = edge_positions / layout.width;
    const auto& [before, behind] = destination.transfer->sent[pass.index()];
    if (!before.empty()) inner.first += edge;
    if (!behind.empty()) inner.last -= edge;
    if (edge_positions % layout.width != 0 || before.count() > edge || behind.count() > edge ||
        inner.count() < edge) {
      inner = share.rows;
    }
  }
  if (inner.count() == share.rows.count()) {
    run_rows(pass, index, tensors, inner);
    return send_result();
  }
  if (inner.first > share.rows.first) run_rows(pass, index, tensors, {share.rows.first, inner.first});
  if (inner.last < share.rows.last) run_rows(pass, index, tensors, {inner.last, share.rows.last});
  send_result();
  run_rows(pass, index, tensors, inner);
}

void PositionPlanes::pad_shortcut(const Pass& pass, std::size_t block) const {
  const TensorPlan::BlockTensors& tensors = tensors_.blocks[block];
  const ActivationFormat& format = pass.plan.blocks[block].shortcut;
  const auto index = static_cast<std::size_t>(pass.plan.network.blocks[block].conv1);
  const ConvolutionShape& shape = pass.plan.convolutions[index].shape;
  const ColumnCopies from = layout_of(pass.plan, shape.input_width);
  const ColumnCopies& to = layers_[index].layout;
  const Share& share = pass.division.shares[index][pass.index()];
  send(pass, pass.division.blocks[block].stream, from, tensors.stream);
  receive(pass, pass.division.blocks[block].stream, from, tensors.stream);
  for (int row = share.rows.first; row < share.rows.last; ++row) {
    for (int column = 0; column < to.width; ++column) {
      const std::uint8_t* source =
          data(pass, tensors.stream) + std::ptrdiff_t{from.position(2 * row, 2 * column)} * format.bytes;
      std::uint8_t* target =
          data(pass, tensors.shortcut) + std::ptrdiff_t{to.position(row, column)} * format.bytes;
      pad_channels({source, 0, plane_bytes(from, format)}, {target, 0, plane_bytes(to, format)}, format,
                   shape.input_channels, shape.output_channels, 1);
    }
  }
}

/// Each thread sums its share of the features up; thread 0 adds the sums and computes the logits.
template <typename Value, typename Accumulator>
void PositionPlanes::classify(const Pass& pass, float* logits) const {
  const IntegerPlan& plan = pass.plan;
  const int channels = plan.network.feature_channels;
  const ColumnCopies layout = layout_of(plan, plan.network.feature_size);
  const std::vector<Share>& shares =
      pass.division
          .shares[plan.blocks.empty() ? 0 : static_cast<std::size_t>(plan.network.blocks.back().conv2)];
  auto* const sums = reinterpret_cast<std::int32_t*>(data(pass, tensors_.sums));
  const bool alone = pass.team == nullptr;
  const Share& own = shares[pass.index()];
  if (!own.empty()) {
    auto* const of_share = alone ? sums : reinterpret_cast<std::int32_t*>(pass.team->outgoing(pass.thread));
    pool_position_lanes(reinterpret_cast<const Value*>(data(pass, tensors_.features)) +
                            std::ptrdiff_t{own.channels.first} * layout.positions() +
                            layout.position(own.rows.first, 0),
                        own.rows.count() * layout.width, layout.positions(), own.channels.count(),
                        of_share + own.channels.first);
  }
  if (!alone) {
    pass.team->publish(pass.thread);
    pass.team->wait(pass.thread);
    if (pass.thread != 0) return;
    std::fill_n(sums, channels, 0);
    for (int from = 0; from < pass.team->threads(); ++from) {
      const Share& share = shares[static_cast<std::size_t>(from)];
      if (share.empty()) continue;
      const auto* of_share = reinterpret_cast<const std::int32_t*>(pass.team->incoming(0, from));
      for (int c = share.channels.first; c < share.channels.last; ++c) sums[c] += of_share[c];
    }
  }
  linear<Accumulator>(sums, channels, 1, 1, plan.linear_weights, plan.linear_scale, plan.linear_offset,
                      logits);
}

void PositionPlanes::run(const Pass& pass, const std::uint8_t* pixels, float* logits) const {
  const IntegerPlan& plan = pass.plan;
  load_image(pass, pixels);
  const auto input_of = [&](std::size_t block, std::size_t tensor) -> Destination {
    if (block >= plan.blocks.size()) return {nullptr, tensor};
    return {&pass.division.blocks[block].input, tensor};
  };
  const std::size_t first_stream = plan.blocks.empty() ? tensors_.features : tensors_.blocks[0].stream;
  const std::size_t first_input = plan.blocks.empty() ? tensors_.features : tensors_.blocks[0].input;
  run_layer(pass, 0, {tensors_.pixels, first_stream, first_stream, first_input}, input_of(0, first_input));
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const Block& block = plan.network.blocks[b];
    const TensorPlan::BlockTensors& t = tensors_.blocks[b];
    const ImageDivision::BlockTransfers& transfers = pass.division.blocks[b];
    const auto conv1 = static_cast<std::size_t>(block.conv1);
    const auto conv2 = static_cast<std::size_t>(block.conv2);
    prepare_input(pass, transfers.input, conv1, t.input, t.phases);
    if (block.shortcut == Shortcut::pad_channels) pad_shortcut(pass, b);
    run_layer(pass, conv1, {t.phases, t.middle, t.middle, t.middle}, {&transfers.middle, t.middle});
    if (block.shortcut == Shortcut::projection) {
      run_layer(pass, static_cast<std::size_t>(block.projection),
                {t.phases, t.shortcut, t.shortcut, t.shortcut}, {nullptr, t.shortcut});
    }
    prepare_input(pass, transfers.middle, conv2, t.middle, t.middle);
    run_layer(pass, conv2, {t.middle, t.output, t.shortcut, t.next_input}, input_of(b + 1, t.next_input));
  }
  if (plan.wide) {
    classify<std::uint16_t, std::int64_t>(pass, logits);
  } else {
    classify<std::uint8_t, std::int32_t>(pass, logits);
  }
}

}  // namespace nibble
