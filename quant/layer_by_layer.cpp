#include "quant/layer_by_layer.h"

#include <cmath>
#include <utility>

#include "kernels/requantize.h"

namespace nibble {
namespace {

/// Of the integer network's sums, without bias, in units of s_in * s_w.
ChannelMoments moments_of(Simulation& simulation, int convolution, const QuantizedLayer& layer,
                          const Integers& inputs) {
  ChannelMoments moments(layer.weight_scale.size());
  simulation.accumulate(convolution, layer.weights, inputs,
                        [&](int, int count, std::span<const float> sums) { moments.add(sums, count); });
  return moments;
}

/// Gives the layer's sums the FP32 network's mean, and variance if asked, on the calibration images.
void correct(Correction correction, const ChannelMoments& wanted, const ChannelMoments& found,
             float input_scale, QuantizedLayer& layer) {
  for (std::size_t channel = 0; channel < layer.weight_scale.size(); ++channel) {
    if (is_zero_channel(layer, channel)) continue;
    double factor = double{input_scale} * double{layer.weight_scale[channel]};
    if (correction == Correction::statistics && found.variance(channel) > 0 && wanted.variance(channel) > 0) {
      const double wanted_factor = std::sqrt(wanted.variance(channel) / found.variance(channel));
      layer.weight_scale[channel] = static_cast<float>(wanted_factor / double{input_scale});
      factor = wanted_factor;
    }
    layer.bias[channel] = static_cast<float>(wanted.mean(channel) - factor * found.mean(channel));
  }
}

/// Quantizes one convolution after the other, each seeing what the integer network before it really gives.
class LayerQuantizer {
 public:
  LayerQuantizer(const QuantizationTask& task, const ImproveRounding& improve)
      : task_(task), improve_(improve), simulation_(task.network), result_(task.frame) {
    result_.convolutions.resize(task.network.convolutions.size());
  }

  QuantizedParameters run() {
    const NetworkDescription& network = task_.network;
    const int stream_limit = activation_limit(result_.residual_bits());
    const QuantizedRange shortcut_limits = shortcut_range(result_.residual_bits());
    float stream_scale = result_.first_output_scale;
    Integers stream = layer(0, bordered_pixels(network, task_.pixels), {1.0F, stream_scale, 0, stream_limit});
    for (std::size_t i = 0; i < network.blocks.size(); ++i) {
      const Block& shape = network.blocks[i];
      const QuantizedBlock& block = result_.blocks[i];
      Integers input = simulation_.block_input(block, stream, stream_scale);
      const Integers middle =
          layer(shape.conv1, input,
                {block.input_scale, block.middle_scale, 0, activation_limit(block.middle_bits)});
      Integers shortcut;
      float shortcut_scale = stream_scale;
      if (shape.shortcut == Shortcut::projection) {
        shortcut_scale = block.shortcut_scale;
        shortcut =
            layer(shape.projection, input,
                  {block.input_scale, shortcut_scale, shortcut_limits.lowest, shortcut_limits.highest});
      } else if (shape.shortcut == Shortcut::pad_channels) {
        shortcut = simulation_.pad_channels(static_cast<int>(i), stream);
      } else {
        shortcut = std::move(stream);
      }
      input = {};
      stream = layer(shape.conv2, middle,
                     {block.middle_scale, block.output_scale, 0, stream_limit,
                      scale_ratio(shortcut_scale, block.output_scale)},
                     shortcut);
      stream_scale = block.output_scale;
    }
    linear(stream, stream_scale);
    return std::move(result_);
  }

 private:
  Integers layer(int convolution, const Integers& inputs, const Simulation::Requantization& requantization,
                 const Integers& residual = {}) {
    const auto index = static_cast<std::size_t>(convolution);
    const FoldedConvolution& source = task_.folded.convolutions[index];
    QuantizedLayer& layer = result_.convolutions[index];
    const std::span<const float> weights =
        convolution == 0 ? task_.raw_first_weight : std::span<const float>(source.weight);
    layer = quantize_weights(weights, source.bias, weight_rule(task_, index), task_.options.scale_choice);
    if (improve_ && convolution != 0) improve_(convolution, inputs, layer);
    if (convolution == 0) fold_pixel_mean(source.bias, layer);
    if (task_.options.correction != Correction::none) {
      correct(task_.options.correction, task_.calibration.sums[index],
              moments_of(simulation_, convolution, layer, inputs), requantization.input_scale, layer);
    }
    return simulation_.convolve(convolution, layer, inputs, requantization, residual);
  }

  void linear(const Integers& stream, float stream_scale) {
    result_.linear =
        quantize_weights(task_.folded.linear_weight, task_.folded.linear_bias,
                         weight_rule(task_, task_.network.convolutions.size()), task_.options.scale_choice);
    if (task_.options.correction == Correction::none) return;
    const std::size_t classes = task_.folded.linear_bias.size();
    ChannelMoments found(classes);
    const std::vector<float> logits = simulation_.classify(result_.linear, stream, stream_scale);
    found.add(logits, static_cast<int>(logits.size() / classes));
    for (std::size_t c = 0; c < classes; ++c) {
      const double error = found.mean(c) - task_.calibration.logits.mean(c);
      result_.linear.bias[c] = static_cast<float>(double{result_.linear.bias[c]} - error);
    }
  }

  const QuantizationTask& task_;
  const ImproveRounding& improve_;
  Simulation simulation_;
  QuantizedParameters result_;
};

}  // namespace

QuantizedParameters quantize_layer_by_layer(const QuantizationTask& task, const ImproveRounding& improve) {
  return LayerQuantizer(task, improve).run();
}

}  // namespace nibble
