#include "graph/network/integer_plan.h"

#include <algorithm>

#include "graph/network/convolution_shape.h"
#include "graph/network/factors.h"
#include "kernels/registry.h"
#include "kernels/thresholds.h"

namespace nibble {
namespace {

ConvolutionLayer layer_of(const QuantizedNetwork& network, int index, int activation_bits) {
  const auto i = static_cast<std::size_t>(index);
  const QuantizedLayer& quantized = network.parameters.convolutions[i];
  ConvolutionLayer layer{shape_of(network.network.convolutions[i]),
                         quantized.weight_bits,
                         activation_bits,
                         {},
                         quantized.weights};
  std::copy(quantized.levels.begin(), quantized.levels.end(), layer.levels.begin());
  return layer;
}

/// Kernels for two layers that read the same tensor, so in the same format; the first layer has the choice.
/// The scalar reference's rows read one format for all widths of weights, so there always is a pair.
std::pair<const ConvolutionKernel*, const ConvolutionKernel*> choose_pair(const ConvolutionLayer& first,
                                                                          const ConvolutionLayer& second,
                                                                          InstructionSet limit) {
  for (const ConvolutionKernel& a : convolution_kernels()) {
    if (!fits(a, first, limit)) continue;
    for (const ConvolutionKernel& b : convolution_kernels()) {
      if (b.input_format == a.input_format && fits(b, second, limit)) return {&a, &b};
    }
  }
  return {&choose_kernel(first, limit), &choose_kernel(second, limit)};
}

/// A kernel for each convolution, and the formats that follow from them.
struct PlannedKernels {
  std::vector<const ConvolutionKernel*> convolutions;  ///< in the order of NetworkDescription::convolutions
  std::vector<PlannedBlock> blocks;

  const ConvolutionKernel*& of(int convolution) {
    return convolutions[static_cast<std::size_t>(convolution)];
  }
  const ConvolutionKernel* of(int convolution) const {
    return convolutions[static_cast<std::size_t>(convolution)];
  }
};

PlannedKernels choose_best_kernels(const QuantizedNetwork& quantized, ActivationFormat features,
                                   InstructionSet limit) {
  const NetworkDescription& network = quantized.network;
  PlannedKernels chosen;
  chosen.convolutions.resize(network.convolutions.size());
  chosen.of(0) = &choose_kernel(layer_of(quantized, 0, 8), limit);
  for (std::size_t b = 0; b < network.blocks.size(); ++b) {
    const Block& block = network.blocks[b];
    const QuantizedBlock& widths = quantized.parameters.blocks[b];
    const ConvolutionLayer first = layer_of(quantized, block.conv1, widths.input_bits);
    if (block.shortcut == Shortcut::projection) {
      std::tie(chosen.of(block.conv1), chosen.of(block.projection)) =
          choose_pair(first, layer_of(quantized, block.projection, widths.input_bits), limit);
    } else {
      chosen.of(block.conv1) = &choose_kernel(first, limit);
    }
    chosen.of(block.conv2) = &choose_kernel(layer_of(quantized, block.conv2, widths.middle_bits), limit);
    PlannedBlock planned{};
    planned.input = chosen.of(block.conv1)->input_format;
    planned.middle = chosen.of(block.conv2)->input_format;
    planned.derives_input = widths.input_bits < 8;
    planned.stream = planned.derives_input ? chosen.of(block.conv2)->stream_format : planned.input;
    chosen.blocks.push_back(planned);
  }
  for (std::size_t b = 0; b < chosen.blocks.size(); ++b) {
    PlannedBlock& block = chosen.blocks[b];
    block.output = b + 1 < chosen.blocks.size() ? chosen.blocks[b + 1].stream : features;
    block.shortcut = network.blocks[b].shortcut == Shortcut::projection ? block.output : block.stream;
  }
  return chosen;
}

/// Whether each kernel writes, and each second convolution adds, the formats that its neighbours read.
bool agree(const PlannedKernels& chosen, const NetworkDescription& network) {
  const auto writes_stream = [&](const ConvolutionKernel& kernel, const ActivationFormat& stream,
                                 std::size_t next_block) {
    return kernel.writes(stream) &&
           (next_block == chosen.blocks.size() || !chosen.blocks[next_block].derives_input ||
            kernel.writes(chosen.blocks[next_block].input));
  };
  if (!chosen.blocks.empty() && !writes_stream(*chosen.of(0), chosen.blocks[0].stream, 0)) return false;
  for (std::size_t b = 0; b < chosen.blocks.size(); ++b) {
    const Block& block = network.blocks[b];
    const PlannedBlock& formats = chosen.blocks[b];
    const ConvolutionKernel& second = *chosen.of(block.conv2);
    if (!chosen.of(block.conv1)->writes(formats.middle) || !second.writes(formats.shortcut) ||
        !writes_stream(second, formats.output, b + 1)) {
      return false;
    }
    if (block.shortcut == Shortcut::projection && !chosen.of(block.projection)->writes(formats.shortcut))
      return false;
  }
  return true;
}

/// Up to AVX2, and among the scalar reference's rows, all kernels write what the others read.
PlannedKernels choose_kernels(const QuantizedNetwork& quantized, ActivationFormat features,
                              InstructionSet limit) {
  while (true) {
    PlannedKernels chosen = choose_best_kernels(quantized, features, limit);
    if (limit == InstructionSet::reference || agree(chosen, quantized.network)) return chosen;
    limit = static_cast<InstructionSet>(static_cast<int>(limit) - 1);
  }
}

PlannedConvolution plan_convolution(const std::string& name, const ConvolutionLayer& layer,
                                    const ConvolutionKernel& kernel, const LayerFactors& factors,
                                    ActivationFormat format, QuantizedRange range) {
  PlannedConvolution planned{name,
                             layer.shape,
                             &kernel,
                             kernel.pack(layer),
                             {},
                             pad_channel_values(factors.scale),
                             pad_channel_values(factors.offset),
                             {},
                             {}};
  planned.stage.scale = planned.scale.data();
  planned.stage.offset = planned.offset.data();
  planned.stage.range = range;
  planned.stage.format = format;
  planned.stage.padded_channels = static_cast<int>(planned.scale.size());
  return planned;
}

void add_sum_thresholds(PlannedConvolution& planned, const ConvolutionLayer& layer) {
  planned.sum_thresholds =
      make_sum_thresholds(layer, planned.scale, planned.offset, planned.stage.padded_channels);
  if (!planned.sum_thresholds.empty()) planned.stage.thresholds = planned.sum_thresholds.data();
}

void add_residual(OutputStage& stage, ActivationFormat format, bool is_signed, float ratio) {
  stage.residual_format = format;
  stage.residual_signed = is_signed;
  stage.residual_ratio = ratio;
}

void add_derived_input(PlannedConvolution& planned, ActivationFormat format, int bits, float ratio) {
  planned.byte_thresholds = make_byte_thresholds(ratio, bits);
  planned.stage.derived_bits = bits;
  planned.stage.derived_format = format;
  planned.stage.derived_ratio = ratio;
  planned.stage.derived_thresholds = planned.byte_thresholds.data();
}

}  // namespace

std::size_t IntegerPlan::bytes() const {
  std::size_t total = linear_weights.size() * sizeof(std::int16_t) + 2 * linear_scale.size() * sizeof(float);
  for (const PlannedConvolution& planned : convolutions) {
    total += planned.packed.bytes() + 2 * planned.scale.size() * sizeof(float) +
             planned.sum_thresholds.size() * sizeof(std::int16_t) + planned.byte_thresholds.size();
  }
  return total;
}

IntegerPlan make_plan(const QuantizedNetwork& quantized, InstructionSet limit) {
  const NetworkDescription& network = quantized.network;
  const QuantizedParameters& parameters = quantized.parameters;
  const NetworkFactors factors = make_factors(quantized);
  const int residual_bits = parameters.residual_bits();

  IntegerPlan plan{};
  plan.network = network;
  plan.weight_bits = parameters.weight_bits;
  plan.activation_bits = parameters.activation_bits;
  plan.wide = residual_bits == 16;
  plan.features = plan.wide ? kPlanar16 : kPlanar8;
  plan.linear_weights = parameters.linear.weights;
  plan.linear_scale = factors.linear.scale;
  plan.linear_offset = factors.linear.offset;

  // Kernels first: what each tensor looks like depends on who reads it. A proof that fails can leave a layer
  // to an older kernel, which does not know its neighbours' formats: then all are chosen again among older
  // ones.
  const PlannedKernels chosen = choose_kernels(quantized, plan.features, limit);
  const std::vector<const ConvolutionKernel*>& kernels = chosen.convolutions;
  plan.blocks = chosen.blocks;
  for (const ConvolutionKernel* kernel : kernels) plan.lanes = std::max(plan.lanes, kernel->lanes);

  // Then the layers, in the order of NetworkDescription::convolutions.
  const auto add = [&](int index, int activation_bits, ActivationFormat format, QuantizedRange range) {
    const auto i = static_cast<std::size_t>(index);
    plan.convolutions.push_back(plan_convolution(network.convolutions[i].name,
                                                 layer_of(quantized, index, activation_bits), *kernels[i],
                                                 factors.convolutions[i], format, range));
  };
  const auto derive_input_of = [&](std::size_t next_block, PlannedConvolution& writer) {
    if (next_block < plan.blocks.size() && plan.blocks[next_block].derives_input) {
      add_derived_input(writer, plan.blocks[next_block].input, parameters.blocks[next_block].input_bits,
                        factors.blocks[next_block].input_ratio);
    }
  };
  add(0, 8, plan.blocks.empty() ? plan.features : plan.blocks[0].stream, activation_range(residual_bits));
  derive_input_of(0, plan.convolutions[0]);
  for (std::size_t b = 0; b < network.blocks.size(); ++b) {
    const Block& block = network.blocks[b];
    const QuantizedBlock& widths = parameters.blocks[b];
    const PlannedBlock& formats = plan.blocks[b];
    add(block.conv1, widths.input_bits, formats.middle, activation_range(widths.middle_bits));
    if (widths.middle_bits == 2) {
      add_sum_thresholds(plan.convolutions.back(), layer_of(quantized, block.conv1, widths.input_bits));
    }
    add(block.conv2, widths.middle_bits, formats.output, activation_range(residual_bits));
    const bool projects = block.shortcut == Shortcut::projection;
    add_residual(plan.convolutions.back().stage,
                 block.shortcut == Shortcut::identity ? formats.stream : formats.shortcut, projects,
                 factors.blocks[b].residual_ratio);
    derive_input_of(b + 1, plan.convolutions.back());
    if (projects) add(block.projection, widths.input_bits, formats.shortcut, shortcut_range(residual_bits));
  }
  return plan;
}

}  // namespace nibble
