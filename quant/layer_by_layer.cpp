#include "quant/layer_by_layer.h"

#include <cmath>
#include <utility>

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
    const Simulation::Convolve convolve =
        [&](int convolution, const Integers& inputs, const Simulation::Requantization& requantization,
            const Integers& residual) { return layer(convolution, inputs, requantization, residual); };
    Integers stream = simulation_.first_stream(result_, task_.pixels, convolve);
    for (std::size_t block = 0; block < result_.blocks.size(); ++block) {
      stream = simulation_.run_block(result_, block, std::move(stream), convolve);
    }
    linear(stream, result_.blocks.back().output_scale);
    return std::move(result_);
  }

 private:
  Integers layer(int convolution, const Integers& inputs, const Simulation::Requantization& requantization,
                 const Integers& residual) {
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
    correct_logit_means(task_.calibration, simulation_.classify(result_.linear, stream, stream_scale),
                        result_.linear);
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
