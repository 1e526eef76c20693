#pragma once

// Tables of the 2-bit kernels: a group of activations, two bits each, is the index; the entry is their
// products with one group of weights, summed, minus the least such sum. Four levels give 4^group tables,
// which serve all weights of a layer.
//
//   index:  a0 | a1 << 2 | ...          table's number:  code of w0 | code of w1 << 2 | ...
//   entry:  w0 * a0 + w1 * a1 + ... - minimum, 0 .. range
//
// Entries are unsigned, so a run of them stays in 8 bits while the tables' ranges add up to at most 255.
//
// Levels that are all odd leave half of that unused: with w = 2 u - 1,
//
//   sum of w * a = 2 * sum of u * a - sum of a        -3, -1, 1, 3:  u = -1, 0, 1, 2
//
// tables of u have half the ranges and runs twice the length, for one sum of activations that all output
// channels share.
//
// Only files that are compiled for one instruction set include this; everything has internal linkage.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "kernels/convolution_kernel.h"
#include "kernels/steps.h"

namespace nibble {
namespace {

inline bool all_odd(const Levels& levels) {
  return std::all_of(levels.begin(), levels.end(), [](int level) { return level % 2 != 0; });
}

/// u for each level.
inline Levels halved(const Levels& levels) {
  Levels result{};
  std::transform(levels.begin(), levels.end(), result.begin(),
                 [](int level) { return static_cast<std::int16_t>((level + 1) / 2); });
  return result;
}

/// `format`: of the activations, index2 or index3.
template <ActivationFormat format>
struct LookUpTables {
  static constexpr std::size_t kGroup = format.channels;
  static constexpr std::size_t kEntries = std::size_t{1} << (2 * kGroup);
  static constexpr std::size_t kTables = kEntries;  ///< as many levels as activations

  struct Table {
    std::array<std::uint8_t, kEntries> entries;
    int minimum;
    int range;  ///< of the entries
  };

  explicit LookUpTables(const Levels& levels) {
    constexpr int kLimit = activation_limit(2);
    for (std::size_t number = 0; number < kTables; ++number) {
      Table& table = tables[number];
      table.minimum = 0;
      table.range = 0;
      for (std::size_t i = 0; i < kGroup; ++i) {
        const int weight = levels[number >> (2 * i) & 3U];
        table.minimum += kLimit * std::min(weight, 0);
        table.range += kLimit * std::abs(weight);
      }
      for (std::size_t index = 0; index < kEntries; ++index) {
        int sum = -table.minimum;
        for (std::size_t i = 0; i < kGroup; ++i) {
          sum += levels[number >> (2 * i) & 3U] * static_cast<int>(index >> (2 * i) & 3U);
        }
        table.entries[index] = static_cast<std::uint8_t>(sum);
      }
    }
  }

  std::array<Table, kTables> tables;
};

/// Which weights a layer's steps have, and in which order. A step is a group of channels of one tap. Where
/// channels are left over, three taps can share what would be a group of its own for each of them:
///
///   16 channels in groups of three, 48 steps instead of 54, each row of taps:
///
///     tap 0, channels 0 .. 14 | channel 15 of taps 0, 1, 2 | tap 1, channels 0 .. 14 | tap 2, ...
///     5 steps                 | 1 step                     | 5 steps                 | 5 steps
///
/// The shared steps lie where they continue a row that lacks its first or its last tap.
class StepOrder {
 public:
  StepOrder(const ConvolutionShape& shape, const ActivationFormat& format, bool shares_left_over)
      : kernel_(shape.kernel), group_(format.channels) {
    // As many taps in a row as channels in a group: n channels left over are n whole steps of a row.
    const bool shares = shares_left_over && kernel_ == group_;
    shared_ = shares ? shape.input_channels % group_ : 0;
    groups_ = shared_ != 0 ? shape.input_channels / group_ : group_count(format, shape.input_channels);
  }

  int kernel() const { return kernel_; }
  int groups() const { return groups_; }  ///< of each tap alone
  int shared() const { return shared_; }  ///< steps of a row's taps together; as many channels are left over
  int count() const { return kernel_ * row_steps(); }

  /// First step of a tap's own groups.
  int tap_step(int row, int column) const {
    return row * row_steps() + column * groups_ + (column == 0 ? 0 : shared_);
  }
  /// First step that the taps of a row share.
  int shared_step(int row) const { return row * row_steps() + groups_; }

  struct Place {
    int tap;
    int channel;
  };
  /// Of a step's weight i.
  Place place(int step, int i) const {
    const int row = step / row_steps();
    int of_row = step % row_steps();
    if (is_shared(step)) {
      const int value = (of_row - groups_) * group_ + i;
      return {row * kernel_ + value / shared_, groups_ * group_ + value % shared_};
    }
    if (of_row >= groups_) of_row -= shared_;
    return {row * kernel_ + of_row / groups_, of_row % groups_ * group_ + i};
  }

  /// Minima are summed up for each tap's own steps, then for those that each row of taps shares.
  int minima_rows() const { return kernel_ * kernel_ + (shared_ != 0 ? kernel_ : 0); }
  int shared_minima_row(int row) const { return kernel_ * kernel_ + row; }
  int minima_row_of(int step) const {
    return is_shared(step) ? shared_minima_row(step / row_steps()) : place(step, 0).tap;
  }

 private:
  int row_steps() const { return kernel_ * groups_ + shared_; }
  bool is_shared(int step) const {
    const int of_row = step % row_steps();
    return of_row >= groups_ && of_row < groups_ + shared_;
  }

  int kernel_;
  int group_;
  int groups_;
  int shared_;
};

/// The number of the table of one step of one output channel. Weights of channels that do not exist are any
/// level, one of the smaller ones: their activations are zero, or their sums are not looked at.
template <ActivationFormat format>
std::size_t table_number(const ConvolutionLayer& layer, const StepOrder& order, int output_channel,
                         int step) {
  std::size_t number = 0;
  for (int i = 0; i < format.channels; ++i) {
    const auto [tap, channel] = order.place(step, i);
    std::size_t code = 1;
    if (channel < layer.shape.input_channels && output_channel < layer.shape.output_channels) {
      const std::int16_t weight = weight_of(layer, output_channel, tap, channel);
      code = static_cast<std::size_t>(std::find(layer.levels.begin(), layer.levels.end(), weight) -
                                      layer.levels.begin());
    }
    number |= code << (2 * i);
  }
  return number;
}

/// The largest number of steps that no output channel can overflow 8 bits with, wherever a run begins; 0 when
/// a channel's whole sum could pass `largest_sum` or a single entry 8 bits. halves: tables of u.
template <ActivationFormat format>
int proven_run_length(const ConvolutionLayer& layer, const StepOrder& order, bool halves, int largest_sum) {
  const int steps = order.count();
  if (steps > kMaximumSteps || layer.levels[3] > 255 / activation_limit(2)) return 0;
  const LookUpTables<format> of(layer.levels);
  const LookUpTables<format> used(halves ? halved(layer.levels) : layer.levels);
  int proven = steps;
  std::vector<int> ranges(static_cast<std::size_t>(steps));
  for (int o = 0; o < layer.shape.output_channels; ++o) {
    int total = 0;
    for (int step = 0; step < steps; ++step) {
      const std::size_t number = table_number<format>(layer, order, o, step);
      ranges[static_cast<std::size_t>(step)] = used.tables[number].range;
      total += of.tables[number].range;
    }
    if (total > largest_sum) return 0;
    proven = std::min(proven, longest_run(ranges, 255));
  }
  return proven;
}

/// What packing proved and summed up, as it lies in PackedConvolution::program:
///
///   run length, run length of tables of u or 0 where there are none,
///   [minima row][output channel, padded] sums of the tables' minima, the same of the tables of u, doubled
struct TableProgram {
  static constexpr std::size_t kHeader = 2;

  int run_length;
  int halved_run_length;
  const std::int32_t* minima;
  const std::int32_t* halved_minima;

  TableProgram(const PackedConvolution& packed, const StepOrder& order, int padded_channels)
      : run_length(packed.program[0]),
        halved_run_length(packed.program[1]),
        minima(packed.program.data() + kHeader),
        halved_minima(minima + order.minima_rows() * padded_channels) {}
};

/// Output channels up to `padded_channels` in blocks of `block_channels`; a table's place is `unit` times its
/// number. halved_run_length: 0 for no tables of u.
///
///   weights:  [tables][entries], [tables][entries] of u,
///             then [block of output channels][step][block_channels] places
///   program:  TableProgram
template <ActivationFormat format>
PackedConvolution pack_tables(const ConvolutionLayer& layer, const StepOrder& order, int padded_channels,
                              int block_channels, std::size_t unit, int run_length,
                              int halved_run_length = 0) {
  std::vector<LookUpTables<format>> sets{LookUpTables<format>(layer.levels)};
  if (halved_run_length != 0) sets.emplace_back(halved(layer.levels));
  PackedConvolution packed{layer.shape, layer.activation_bits, {}, {}};
  for (const LookUpTables<format>& set : sets) {
    for (const auto& table : set.tables) {
      packed.weights.insert(packed.weights.end(), table.entries.begin(), table.entries.end());
    }
  }
  const auto minima = static_cast<std::size_t>(order.minima_rows() * padded_channels);
  packed.program = {run_length, halved_run_length};
  packed.program.resize(TableProgram::kHeader + sets.size() * minima);
  for (int block = 0; block < padded_channels; block += block_channels) {
    for (int step = 0; step < order.count(); ++step) {
      const int row = order.minima_row_of(step);
      for (int o = block; o < block + block_channels; ++o) {
        const std::size_t number = table_number<format>(layer, order, o, step);
        packed.weights.push_back(static_cast<std::uint8_t>(number * unit));
        std::int32_t* minimum =
            &packed.program[TableProgram::kHeader + static_cast<std::size_t>(row * padded_channels + o)];
        *minimum += sets[0].tables[number].minimum;
        if (sets.size() > 1) minimum[minima] += 2 * sets[1].tables[number].minimum;
      }
    }
  }
  return packed;
}

}  // namespace
}  // namespace nibble
