#pragma once

// What the 2-bit VBMI kernel makes of a call's activations before it looks anything up: the lines of indices
// that rows of taps share, and the sums of activations that tables of u need. Internal linkage.

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "kernels/look_up_tables.h"
#include "kernels/output_avx512.h"
#include "kernels/steps.h"

namespace nibble {
namespace {

constexpr int kPositions = kTilePositions;  ///< of a register block, at most
constexpr int kGroup = kIndex3.channels;    ///< input channels of a step
constexpr int kTableBytes = LookUpTables<kIndex3>::kEntries;
constexpr int kLargestSum =
    32766;  ///< minus its minimum; one more than it and less than zero fit 16 bits too

/// The steps of a call, and the lines of indices that rows of taps share (StepOrder in look_up_tables.h).
/// With one or two channels left over and the taps a, b, c of a row, lines are at each position
///
///   a0 | b0 << 2 | c0 << 4      or      a0 | a1 << 2 | b0 << 4   and   b1 | c0 << 2 | c1 << 4
///
/// A tap that would meet padding has the activation zero. Lines have the input's position stride, so that
/// they are offsets from a position like all others. They are made for a row of the map where rows move on as
/// taps do, and then only the last of them anew; else for a block of positions.
class SharedTapSteps : public RunList<std::ptrdiff_t> {
 public:
  SharedTapSteps(const ConvolutionCall& call, const StepOrder& order, int run_length)
      : RunList(run_length), input_(call.input), shared_(order.shared()) {
    const std::span<const Tap> taps = call.taps;
    for (std::size_t t = 0; t < taps.size();) {
      const int row = taps[t].index / order.kernel();
      bool adds_shared = shared_ != 0;
      if (adds_shared) begin_line(row, taps[t].offset + order.groups() * input_.group_stride);
      for (; t < taps.size() && taps[t].index / order.kernel() == row; ++t) {
        const int column = taps[t].index % order.kernel();
        if (adds_shared && column > 0) {
          add_shared(order.shared_step(row));
          adds_shared = false;
        }
        go_to(order.tap_step(row, column));
        for (int g = 0; g < order.groups(); ++g) add(taps[t].offset + g * input_.group_stride);
        if (shared_ != 0) meet(column, taps[t].offset + order.groups() * input_.group_stride);
      }
      if (adds_shared) add_shared(order.shared_step(row));
    }
    cut();
    place_lines(call);
  }

  /// Rows of taps that share steps.
  std::span<const int> sharing_rows() const { return {rows_, static_cast<std::size_t>(line_count_)}; }

  /// A block of so many positions has memory.
  int most_positions() const { return most_positions_; }

  /// Fills the lines of a row, where rows share them. The rows of a call come one after the other.
  void prepare_row(int row, int positions) {
    if (!moves_) return;
    const std::uint8_t* const position = input_.data + row * input_.row_stride;
    for (int l = 0; l < line_count_; ++l) {
      std::uint8_t* const to = line((row + l) % line_count_);
      // All lines but the last one were in the row before.
      if (row == 0 || l == line_count_ - 1) fill(lines_[l], position, positions, to);
      point_to(lines_[l], position, to);
    }
  }

  /// Fills the lines of a block, where rows do not.
  void prepare_block(const std::uint8_t* position, int positions) {
    if (moves_) return;
    for (int l = 0; l < line_count_; ++l) {
      fill(lines_[l], position, positions, line(l));
      point_to(lines_[l], position, line(l));
    }
  }

 private:
  static constexpr int kMostLines = kGroup * (kGroup - 1);
  /// From the first position to the last one that has memory: six that are rows of 32 positions x 16
  /// channels.
  static constexpr std::ptrdiff_t kMostBytes = (kPositions - 1) * 32 * 6 * kLanes;

  /// Of one row of taps.
  struct Line {
    std::ptrdiff_t
        offsets[kGroup];      ///< of what is left over, from a position; the first tap's where no tap is
    __mmask64 meets[kGroup];  ///< none where no tap is
    std::ptrdiff_t* steps[kGroup - 1];

    bool is_below(const Line& other, std::ptrdiff_t row_stride) const {
      bool is = true;
      for (int c = 0; c < kGroup; ++c) {
        is &= meets[c] == other.meets[c] && offsets[c] == other.offsets[c] + row_stride;
      }
      return is;
    }
  };

  void begin_line(int row, std::ptrdiff_t left_over) {
    rows_[line_count_] = row;
    lines_[line_count_++] = {{left_over, left_over, left_over}, {}, {}};
  }
  void meet(int column, std::ptrdiff_t left_over) {
    lines_[line_count_ - 1].offsets[column] = left_over;
    lines_[line_count_ - 1].meets[column] = ~__mmask64{};
  }
  void add_shared(int step) {
    go_to(step);
    for (int s = 0; s < shared_; ++s) lines_[line_count_ - 1].steps[s] = add(0);
  }

  /// Lines lie between the positions where there is room, else one behind the other, a block long.
  void place_lines(const ConvolutionCall& call) {
    const std::ptrdiff_t stride =
        std::max<std::ptrdiff_t>(input_.position_stride, kLanes);  // 0 of one position
    const bool between = stride >= line_count_ * shared_ * kLanes;
    static_assert(kMostLines * kPositions * kMostLines * kLanes <= kMostBytes);  // of those that are not
    pitch_ = between ? kLanes : kPositions * stride;
    if (line_count_ != 0) {
      most_positions_ = static_cast<int>(std::min<std::ptrdiff_t>(kPositions, 1 + kMostBytes / stride));
    }
    moves_ = line_count_ != 0 && between && call.rows > 1 && (call.positions - 1) * stride <= kMostBytes;
    for (int l = 1; l < line_count_ && moves_; ++l) {
      moves_ = lines_[l].is_below(lines_[l - 1], input_.row_stride);
    }
  }

  std::uint8_t* line(int number) { return memory_ + number * shared_ * pitch_; }

  void point_to(const Line& of_taps, const std::uint8_t* position, const std::uint8_t* line) const {
    for (int s = 0; s < shared_; ++s) {
      *of_taps.steps[s] =
          reinterpret_cast<std::intptr_t>(line + s * pitch_) - reinterpret_cast<std::intptr_t>(position);
    }
  }

  /// What is left over of three taps, tap by tap, three values an index.
  void fill(const Line& of_taps, const std::uint8_t* position, int positions, std::uint8_t* to) const {
    const __m512i first_channel = _mm512_set1_epi8(3);
    const std::ptrdiff_t stride = input_.position_stride;
    for (int p = 0; p < positions; ++p, position += stride, to += stride) {
      const auto tap = [&](int c) {
        return _mm512_maskz_mov_epi8(of_taps.meets[c], load(position + of_taps.offsets[c]));
      };
      if (shared_ == 1) {
        const __m512i two = _mm512_or_si512(tap(0), _mm512_slli_epi16(tap(1), 2));
        store(to, _mm512_or_si512(two, _mm512_slli_epi16(tap(2), 4)));
      } else {
        const __m512i middle = tap(1);
        store(to, _mm512_or_si512(tap(0), _mm512_slli_epi16(_mm512_and_si512(middle, first_channel), 4)));
        store(to + pitch_, _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(middle, 2), first_channel),
                                           _mm512_slli_epi16(tap(2), 2)));
      }
    }
  }

  InputView input_;
  int shared_;
  int most_positions_ = kPositions;
  std::ptrdiff_t pitch_;  ///< of lines in memory
  bool moves_;            ///< line l is what line l + 1 was in the row before
  int line_count_ = 0;
  int rows_[kGroup];
  Line lines_[kGroup];
  alignas(kLanes) std::uint8_t memory_[kMostBytes + kMostLines * kLanes];
};

/// Sums modulo 2^16 of 64 lanes: of each 16 the first eight in `low`, the others in `high`, where unpacking
/// puts them.
struct Sums {
  __m512i low;
  __m512i high;
};

inline Sums operator+(const Sums& a, const Sums& b) {
  return {_mm512_add_epi16(a.low, b.low), _mm512_add_epi16(a.high, b.high)};
}

/// kMostActivations minus the sum of all activations that meet each position of a row, for tables of u. With
/// N weights of an output channel, twice the entries add up to at most 3 (sum of |w| + N), so all together is
/// between 0 and kLargestSum + 2 kMostActivations, which fits 16 bits. Where taps are rows of three that
/// slide by one from position to position, a line is what one row's first tap meets: three positions share
/// its sums, and the rows below. Otherwise all taps are one line.
class ActivationSums {
 public:
  static constexpr int kMostActivations = kMaximumSteps * kGroup * activation_limit(2);
  static_assert(kLargestSum + 2 * kMostActivations <= 65535);

  /// Whether taps are rows of three, each the one before a row further.
  static bool taps_slide(const ConvolutionCall& call) {
    const std::span<const Tap> taps = call.taps;
    bool slide = !taps.empty() && taps.size() % kSliding == 0;
    for (std::size_t t = 1; t < taps.size() && slide; ++t) {
      slide = t % kSliding == 0 ? taps[t].offset == taps[t - kSliding].offset + call.input.row_stride
                                : taps[t].offset == taps[t - 1].offset + call.input.position_stride;
    }
    return slide;
  }

  /// Whether it has memory for a call.
  static bool fits(const ConvolutionCall& call) {
    return call.positions <= kMostPositions && call.taps.size() <= kSliding * kMostLines;
  }

  /// groups: all of a tap, also one that is not full. used: else nothing is asked of it.
  ActivationSums(const ConvolutionCall& call, int groups, bool used)
      : input_(call.input), positions_(call.positions) {
    if (!used) return;
    const bool slide = taps_slide(call);
    overlap_ = slide ? kSliding - 1 : 0;
    lines_ = slide ? static_cast<int>(call.taps.size()) / kSliding : 1;
    int steps = 0;
    for (std::size_t t = 0; t < call.taps.size(); t += static_cast<std::size_t>(overlap_) + 1) {
      for (int g = 0; g < groups; ++g) {
        offsets_[steps++] = static_cast<std::int32_t>(call.taps[t].offset + g * call.input.group_stride);
      }
    }
    line_steps_ = steps / lines_;
  }

  /// The rows of a call come one after the other.
  void move_to(int row) {
    // Of the lines before the last one only the first row has to add up; later rows have them already.
    Sums* before[kMostLines - 1];
    for (int l = 0; l < lines_ - 1; ++l) {
      before[l] = sums_[(row + l) % lines_];
      if (row == 0) add_up(0, l, [&](int column, const Sums& sum) { before[l][column] = sum; });
    }
    Sums* const newest = sums_[(row + lines_ - 1) % lines_];
    const __m512i most = _mm512_set1_epi16(static_cast<std::int16_t>(kMostActivations));
    const __m512i zero = _mm512_setzero_si512();
    Sums last[kSliding - 1] = {{zero, zero}, {zero, zero}};  // of all lines, in the columns before
    add_up(
        row, lines_ - 1, [&](int column, const Sums& of_line) __attribute__((always_inline)) {
          newest[column] = of_line;
          Sums sum = of_line;
          for (int l = 0; l < lines_ - 1; ++l) sum = sum + before[l][column];
          Sums all = sum;
          if (overlap_ != 0) {
            all = sum + last[0] + last[1];
            last[0] = last[1];
            last[1] = sum;
            if (column < overlap_) return;
          }
          minus_[column - overlap_] = {_mm512_sub_epi16(most, all.low), _mm512_sub_epi16(most, all.high)};
        });
  }

  const Sums& minus(int position) const { return minus_[position]; }

 private:
  static constexpr int kSliding = 3;  // taps
  static constexpr int kMostPositions = 64;
  static constexpr int kMostLines = 3;

  /// What the steps of line `l` add up to in each column.
  template <typename Take>
  __attribute__((always_inline)) void add_up(int row, int l, const Take& take) const {
    alignas(64) static constexpr auto kTable = [] {
      std::array<std::uint8_t, kTableBytes> table{};
      for (std::size_t i = 0; i < table.size(); ++i) {
        table[i] = static_cast<std::uint8_t>((i & 3) + (i >> 2 & 3) + (i >> 4));
      }
      return table;
    }();
    constexpr int kRun = 255 / (kGroup * activation_limit(2));
    const __m512i table = loaded_once(load(kTable.data()));
    const __m512i zero = _mm512_setzero_si512();
    const std::int32_t* const offsets = offsets_ + l * line_steps_;
    const std::uint8_t* position = input_.data + row * input_.row_stride;
    for (int column = 0; column < positions_ + overlap_; ++column, position += input_.position_stride) {
      Sums sum{zero, zero};
      for (int first = 0; first < line_steps_; first += kRun) {
        const int end = std::min(first + kRun, line_steps_);
        __m512i bytes = zero;
        for (int step = first; step < end; ++step) {
          bytes = _mm512_adds_epu8(bytes, _mm512_permutexvar_epi8(load(position + offsets[step]), table));
        }
        sum = sum + Sums{_mm512_unpacklo_epi8(bytes, zero), _mm512_unpackhi_epi8(bytes, zero)};
      }
      take(column, sum);
    }
  }

  InputView input_;
  int positions_;
  int overlap_ = 0;  ///< columns of a position that the next one has too
  int lines_ = 1;
  int line_steps_ = 0;
  std::int32_t offsets_[kMaximumSteps];
  Sums sums_[kMostLines][kMostPositions + kSliding - 1];
  Sums minus_[kMostPositions];
};

}  // namespace
}  // namespace nibble
