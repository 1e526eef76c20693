#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/cpu.h"
#include "kernels/format.h"
#include "kernels/packed.h"
#include "kernels/requantize.h"
#include "kernels/shape.h"

namespace nibble {

// The interface of a convolution kernel. A kernel computes, for some positions that share their valid taps,
// all output channels of one block of lanes:
//
//   sum[o][p][lane] = sum over taps t, input channels i of  w[o][t.index][i] * x[p][t][i][lane]
//   q = requantize(sum, ...), written in the format that the next reader wants
//
// Lanes are either the images of a tile, or consecutive positions of one image's flattened padded plane: the
// kernel does not know which, strides and tap offsets say it all. Padding is a tap that is not in the list.
// A new kernel is a new file: its packing, its loop, its rows, which kernels.h declares and registry.cpp
// lists.

/// Memory whose beginning is aligned to a cache line; what packing fills.
template <typename T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{64};
  CacheLineAllocator() = default;
  template <typename U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kAlignment)); }
  void deallocate(T* pointer, std::size_t) { ::operator delete(pointer, kAlignment); }
  bool operator==(const CacheLineAllocator&) const { return true; }
};
template <typename T>
using AlignedVector = std::vector<T, CacheLineAllocator<T>>;

/// A layer as packing and its proofs see it. Only the range of the activations matters, not their format.
struct ConvolutionLayer {
  ConvolutionShape shape;
  int weight_bits;
  int activation_bits;                    ///< largest activation: activation_limit(activation_bits)
  Levels levels{};                        ///< at 2 bits
  std::span<const std::int16_t> weights;  ///< canonical: [output channel][row][column][input channel]
};

/// Weights in a kernel's own order. What `weights` and `program` hold is drawn in the kernel's file.
struct PackedConvolution {
  ConvolutionShape shape;
  int activation_bits = 0;
  AlignedVector<std::uint8_t> weights;
  std::vector<std::int32_t> program;  ///< proven run lengths and the like

  std::size_t bytes() const { return weights.size() + program.size() * sizeof(std::int32_t); }
};

/// Output channels are padded to a multiple of this in scale, offset and thresholds (padding: zeros), so that
/// a kernel may read whole registers.
inline constexpr int kChannelPadding = 16;

/// One value for each output channel, with zeros up to a multiple of kChannelPadding.
inline AlignedVector<float> pad_channel_values(std::span<const float> values) {
  AlignedVector<float> result((values.size() + kChannelPadding - 1) / kChannelPadding * kChannelPadding);
  std::copy(values.begin(), values.end(), result.begin());
  return result;
}

/// What becomes of a layer's sums; the same for all calls of a layer.
struct OutputStage {
  const float* scale = nullptr;   ///< S[output channel]
  const float* offset = nullptr;  ///< B[output channel]
  QuantizedRange range{};
  ActivationFormat format{};  ///< of the output: u8 or s8 (its low byte), 2-bit fields, or 16 bits

  /// The block's residual, added before the ReLU; without one residual_format.bytes is 0.
  ActivationFormat residual_format{};
  bool residual_signed = false;  ///< a projection's s8 or s16
  float residual_ratio = 0.0F;

  /// x of the next block, derived from the stream that this layer writes; derived_bits = 0: none.
  int derived_bits = 0;  ///< 4 or 2
  ActivationFormat derived_format{};
  float derived_ratio = 0.0F;  ///< s_stream / s_x
  /// [(1 << derived_bits) - 1]: x >= k exactly when r > derived_thresholds[k - 1] (kernels/thresholds.h).
  const std::uint8_t* derived_thresholds = nullptr;

  /// Only where the range is 0..3, there is no residual and all reachable sums fit 16 bits, else nullptr:
  /// [3][output channels, padded]: q >= k exactly when sum > thresholds[k - 1][c] (kernels/thresholds.h).
  const std::int16_t* thresholds = nullptr;
  int padded_channels = 0;  ///< length of a row of `thresholds`

  bool has_residual() const { return residual_format.bytes != 0; }
};

/// A tap of the convolution that meets the map.
struct Tap {
  std::ptrdiff_t offset;  ///< bytes from an output position's input address to the tap's
  int index;              ///< row * kernel + column: which weights
};

/// One call: `positions` outputs of each of `rows` rows with the same taps, one block of
/// ConvolutionKernel::lanes lanes.
struct ConvolutionCall {
  InputView input;  ///< in the kernel's input_format; position_stride includes the convolution's stride
  std::span<const Tap> taps;  ///< of ascending index
  int positions;
  int first_channel;  ///< output channels first_channel .. last_channel - 1; first_channel is a multiple of
  int last_channel;   ///< ConvolutionKernel::channel_block, last_channel too or it is the last one
  OutputView output;
  InputView residual;  ///< when the stage has one; may be the same memory as `output`
  OutputView derived;  ///< when the stage derives
  /// The positions are a whole row of the map: the taps to the left of the first one and to the right of the
  /// last would meet padding, and count nothing there. Only where the kernel prefers_whole_rows().
  bool whole_row = false;
  int rows = 1;  ///< of `positions` each; more than one only where the kernel takes_rows
};

/// A row of the registry.
struct ConvolutionKernel {
  std::string_view name;  ///< "int2_avx2": what kernel_bench and messages call it
  InstructionSet instruction_set;
  int weight_bits;  ///< of the layers that it is for
  int activation_bits;
  int lanes;
  int channel_block;  ///< output channels that it computes together
  ActivationFormat input_format;

  /// Whether every partial sum of this very layer is proved to stay in its registers. Widths were compared
  /// before.
  bool (*supports)(const ConvolutionLayer& layer);
  PackedConvolution (*pack)(const ConvolutionLayer& layer);
  /// Writes whole groups: channels of the last one from last_channel on become zero, so calls for one map go
  /// in ascending order. Where first_channel lies inside a group, the group's other channels are kept, and
  /// the caller has made the call's own zero. Reads and writes nothing outside the views.
  void (*run)(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call);
  /// Of a residual that it adds fastest, where the residual is not the input of a convolution too.
  ActivationFormat stream_format = kPlanar8;
  /// Whether it computes whole rows faster than their inside and their ends apart; nullptr: never.
  bool (*takes_whole_rows)(const PackedConvolution& packed) = nullptr;
  /// Whether line filters (kernels/line_filter.h) may spare it up to half of a convolution's multiplications.
  bool filters_lines = false;

  bool takes_rows = false;  ///< several in a call, which spares it the beginning and the end of a call

  /// Whether its outputs, residuals and derived inputs may have the format. (The AVX2 kernels write
  /// blocks of four channels at once and know no groups of three.)
  bool writes(const ActivationFormat& format) const {
    return instruction_set != InstructionSet::avx2 || format != kIndex3;
  }

  /// What cut_into_runs() wants to know of a layer.
  bool prefers_whole_rows(const PackedConvolution& packed) const {
    return takes_whole_rows != nullptr && takes_whole_rows(packed);
  }
};

}  // namespace nibble
