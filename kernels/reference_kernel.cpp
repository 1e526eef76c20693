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

template <typename Accumulator>
void run_reference(const PackedConvolution& packed, const OutputStage& stage, const ConvolutionCall& call) {
  const int channels = packed.shape.input_channels;
  const ActivationFormat input_format = packed.activation_bits == 16 ? kPlanar16 : kPlanar8;
  const auto* weights = reinterpret_cast<const std::int16_t*>(packed.weights.data());
  const int padded_last = call.last_channel == packed.shape.output_channels
                              ? group_count(stage.format, call.last_channel) * stage.format.channels
                              : call.last_channel;
  for (int p = 0; p < call.positions; ++p) {
    for (int o = call.first_channel; o < call.last_channel; ++o) {
      Accumulator sum = 0;
      for (const Tap& tap : call.taps) {
        const InputView view{call.input.data + tap.offset, call.input.position_stride,
                             call.input.group_stride};
        const std::int16_t* filter = weights + o * static_cast<std::ptrdiff_t>(packed.shape.filter_size()) +
                                     std::ptrdiff_t{tap.index} * channels;
        for (int i = 0; i < channels; ++i) {
          sum += static_cast<Accumulator>(filter[i] * load_activation(view, input_format, p, i, 0));
        }
      }
      int q = 0;
      if (stage.has_residual()) {
        int residual = load_activation(call.residual, stage.residual_format, p, o, 0);
        if (stage.residual_signed) residual = sign_extended(residual, stage.residual_format.bits);
        q = requantize(sum, stage.scale[o], stage.offset[o], residual, stage.residual_ratio, stage.range);
      } else {
        q = requantize(sum, stage.scale[o], stage.offset[o], stage.range);
      }
      store_activation(call.output, stage.format, p, o, 0, q);
      if (stage.derived_bits != 0) {
        store_activation(call.derived, stage.derived_format, p, o, 0,
                         derive_input(q, stage.derived_ratio, stage.derived_bits));
      }
    }
    for (int o = call.last_channel; o < padded_last; ++o)
      store_activation(call.output, stage.format, p, o, 0, 0);
    if (stage.derived_bits != 0 && call.last_channel == packed.shape.output_channels) {
      const int derived_last =
          group_count(stage.derived_format, call.last_channel) * stage.derived_format.channels;
      for (int o = call.last_channel; o < derived_last; ++o) {
        store_activation(call.derived, stage.derived_format, p, o, 0, 0);
      }
    }
  }
}

constexpr ConvolutionKernel narrow_row(std::string_view name, int weight_bits, int activation_bits) {
  return {name,           InstructionSet::reference,  weight_bits, activation_bits, 1, 1, kPlanar8, supports,
          pack_canonical, run_reference<std::int32_t>};
}

constexpr std::array kRows = {
    ConvolutionKernel{"int16_reference", InstructionSet::reference, 16, 16, 1, 1, kPlanar16, supports,
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
