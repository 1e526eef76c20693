// The scalar reference behind the kernels' interface: one lane, every width, every format, no proof needed.

#include <algorithm>
#include <array>

#include "kernels/kernels.h"

namespace nibble {
namespace {

bool supports(const ConvolutionLayer&) {
  return true;
}

/// weights: int16_t [output channel][tap][input channel], as on disk.
PackedConvolution pack_canonical(const ConvolutionLayer& layer) {
  PackedConvolution packed{layer.shape, layer.activation_bits, {}, {}};
  packed.weights.resize(layer.weights.size_bytes());
  std::copy_n(reinterpret_cast<const std::uint8_t*>(layer.weights.data()), layer.weights.size_bytes(),
              packed.weights.data());
  return packed;
}

int sign_extended(int value, int bits) {
  const int sign = 1 << (bits - 1);
  return (value ^ sign) - sign;
}

constexpr int kBlock = 12;  // a multiple of every format's group

template <typename Accumulator>
Accumulator sum_of_products(const PackedConvolution& packed, const ConvolutionCall& call, int position,
                            int o) {
  const ActivationFormat input_format = packed.activation_bits == 16 ? kPlanar16 : kPlanar8;
  const int channels = packed.shape.input_channels;
  const auto* weights = reinterpret_cast<const std::int16_t*>(packed.weights.data()) +
                        o * static_cast<std::ptrdiff_t>(packed.shape.filter_size());
  Accumulator sum = 0;
  for (const Tap& tap : call.taps) {
    const InputView view{call.input.data + tap.offset, call.input.position_stride, call.input.group_stride};
    for (int i = 0; i < channels; ++i) {
      sum += static_cast<Accumulator>(weights[tap.index * channels + i] *
                                      load_activation(view, input_format, position, i, 0));
    }
  }
  return sum;
}

template <typename Accumulator>
int quantized_output(const OutputStage& stage, const ConvolutionCall& call, int position, int o,
                     Accumulator sum) {
  if (!stage.has_residual()) return requantize(sum, stage.scale[o], stage.offset[o], stage.range);
  int residual = load_activation(call.residual, stage.residual_format, position, o, 0);
  if (stage.residual_signed) residual = sign_extended(residual, stage.residual_format.bits);
  return requantize(sum, stage.scale[o], stage.offset[o], residual, stage.residual_ratio, stage.range);
}

template <typename Accumulator>
void run_reference(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  for (int position = 0; position < call.positions; ++position) {
    for (int first = call.first_channel; first < call.last_channel; first += kBlock) {
      // The residual may be overwritten by the output, so a block is read before any of it is stored.
      const int last = std::min(first + kBlock, call.last_channel);
      std::array<int, kBlock> q{};
      for (int o = first; o < last; ++o) {
        const auto sum = sum_of_products<Accumulator>(packed, call, position, o);
        q[static_cast<std::size_t>(o - first)] = quantized_output(stage, call, position, o, sum);
      }
      for (int o = first; o < last; ++o) {
        const int value = q[static_cast<std::size_t>(o - first)];
        store_activation(call.output, stage.format, position, o, 0, value);
        if (stage.derived_bits != 0) {
          store_activation(call.derived, stage.derived_format, position, o, 0,
                           derive_input(value, stage.derived_ratio, stage.derived_bits));
        }
      }
    }
  }
}

constexpr ConvolutionKernel narrow_row(std::string_view name, int weight_bits, int activation_bits) {
  return {
      name,           InstructionSet::reference,  weight_bits, activation_bits, 1, kBlock, kPlanar8, supports,
      pack_canonical, run_reference<std::int32_t>};
}

constexpr std::array kRows = {
    ConvolutionKernel{"int16_reference", InstructionSet::reference, 16, 16, 1, kBlock, kPlanar16, supports,
                      pack_canonical, run_reference<std::int64_t>},
    ConvolutionKernel{"int16a8_reference", InstructionSet::reference, 16, 8, 1, kBlock, kPlanar8, supports,
                      pack_canonical, run_reference<std::int64_t>},
    narrow_row("int8_reference", 8, 8),
    narrow_row("int8a4_reference", 8, 4),
    narrow_row("int8a2_reference", 8, 2),
    narrow_row("int4a8_reference", 4, 8),
    narrow_row("int4_reference", 4, 4),
    narrow_row("int4a2_reference", 4, 2),
    narrow_row("int2a8_reference", 2, 8),
    narrow_row("int2a4_reference", 2, 4),
    narrow_row("int2_reference", 2, 2),
};

}  // namespace

std::span<const ConvolutionKernel> reference_kernels() {
  return kRows;
}

}  // namespace nibble
