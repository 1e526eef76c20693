#include "graph/network/integer_plan.h"

#include <algorithm>

#include "graph/network/convolution_shape.h"
#include "graph/network/factors.h"
#include "kernels/registry.h"
#include "kernels/thresholds.h"

namespace nibble {
namespace {

ConvolutionLayer layer_of(const Convolution& convolution, const QuantizedLayer& quantized,
                          int activation_bits) {
  ConvolutionLayer layer{
      shape_of(convolution), quantized.weight_bits, activation_bits, {}, quantized.weights};
  std::copy(quantized.levels.begin(), quantized.levels.end(), layer.levels.begin());
  return layer;
}

bool fits(const ConvolutionKernel& kernel, const ConvolutionLayer& layer, InstructionSet limit) {
  return kernel.instruction_set <= limit && kernel.weight_bits == layer.weight_bits &&
         kernel.activation_bits == layer.activation_bits && kernel.supports(layer);
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

  const auto layer = [&](int index, int activation_bits) {
    const auto i = static_cast<std::size_t>(index);
    return layer_of(network.convolutions[i], parameters.convolutions[i], activation_bits);
  };

  // Kernels first: what each tensor looks like depends on who reads it.
  std::vector<const ConvolutionKernel*> kernels(network.convolutions.size());
  const auto kernel_of = [&](int index) -> const ConvolutionKernel*& {
    return kernels[static_cast<std::size_t>(index)];
  };
  kernel_of(0) = &choose_kernel(layer(0, 8), limit);
  for (std::size_t b = 0; b < network.blocks.size(); ++b) {
    const Block& block = network.blocks[b];
    const QuantizedBlock& widths = parameters.blocks[b];
    if (block.shortcut == Shortcut::projection) {
      std::tie(kernel_of(block.conv1), kernel_of(block.projection)) = choose_pair(
          layer(block.conv1, widths.input_bits), layer(block.projection, widths.input_bits), limit);
    } else {
      kernel_of(block.conv1) = &choose_kernel(layer(block.conv1, widths.input_bits), limit);
    }
    kernel_of(block.conv2) = &choose_kernel(layer(block.conv2, widths.middle_bits), limit);
    PlannedBlock planned{};
    planned.input = kernel_of(block.conv1)->input_format;
    planned.middle = kernel_of(block.conv2)->input_format;
    planned.derives_input = widths.input_bits < 8;
    planned.stream = planned.derives_input ? kernel_of(block.conv2)->stream_format : planned.input;
    plan.blocks.push_back(planned);
  }
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    plan.blocks[b].output = b + 1 < plan.blocks.size() ? plan.blocks[b + 1].stream : plan.features;
    plan.blocks[b].shortcut =
        network.blocks[b].shortcut == Shortcut::projection ? plan.blocks[b].output : plan.blocks[b].stream;
  }
  for (const ConvolutionKernel* kernel : kernels) plan.lanes = std::max(plan.lanes, kernel->lanes);

  // Then the layers, in the order of NetworkDescription::convolutions.
  const auto add = [&](int index, int activation_bits, ActivationFormat format, QuantizedRange range) {
    const auto i = static_cast<std::size_t>(index);
    plan.convolutions.push_back(plan_convolution(network.convolutions[i].name, layer(index, activation_bits),
                                                 *kernels[i], factors.convolutions[i], format, range));
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
      add_sum_thresholds(plan.convolutions.back(), layer(block.conv1, widths.input_bits));
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
