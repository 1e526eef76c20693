#include "graph/onednn/training_layer.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "graph/network/float_parameters.h"

namespace nibble {
namespace {

using dnnl::memory;

constexpr double kMomentum = 0.1;

std::size_t index(int value) {
  return static_cast<std::size_t>(value);
}

/// Images in a tile: 64 KB for each of these networks' maps, several of which share the core's cache.
template <typename T>
int tile_images(const Convolution& convolution) {
  constexpr int values = 64 * 1024 / sizeof(T);
  const int image = convolution.output_channels * convolution.output_height() * convolution.output_width();
  return std::clamp(values / image, 1, 16);
}

/// Our weight gradient is quicker than oneDNN's with AVX2 in FP32 and in BF16; oneDNN's with AVX-512 in FP32.
template <typename T>
bool own_gradient_is_quicker(const Convolution& shape) {
  if (shape.kernel != 3 || shape.padding != 1 || shape.output_channels % 16 != 0 ||
      shape.output_width() < 2) {
    return false;
  }
  if (std::is_same_v<T, Bfloat16>) return shape.input_channels % 16 == 0;
  return shape.input_channels % kFp32WeightGradientBlock.inputs == 0 && onednn_has(dnnl::cpu_isa::avx2) &&
         !onednn_has(dnnl::cpu_isa::avx512_core);
}

/// vdpbf16ps has a small part of the throughput of AMX. Asking oneDNN makes it ask the kernel for AMX.
const Bf16WeightGradient& quickest_bf16_gradient() {
  return onednn_has(dnnl::cpu_isa::avx512_core_amx) ? kAmxWeightGradient : kAvx512WeightGradient;
}

}  // namespace

Normalization::Normalization(int count) : channels(count) {
  for (auto* values : {&running_mean, &running_variance, &center, &mean, &scale, &shift, &a, &b, &c}) {
    values->assign(index(count), 0.0F);
  }
  unit.assign(index(count), 1.0F);
  deviation_.assign(index(count), 0.0);
}

void Normalization::take_statistics(std::size_t channel, double sum, double square, double pixels,
                                    float gamma_value, float beta_value) {
  const double shifted = sum / pixels;
  // Nothing cancels here, as `center` is near the mean.
  const double variance = std::max(0.0, square / pixels - shifted * shifted);
  const double batch_mean = shifted + double{center[channel]};
  const double one = double{unit[channel]};
  const double output_one = double{output_unit};
  const double deviation = std::sqrt(variance + kBatchNormalizationEpsilon / (one * one));
  const double unbiased = pixels > 1 ? variance * pixels / (pixels - 1) : variance;
  const auto move = [](float& running, double batch) {
    running = static_cast<float>((1 - kMomentum) * double{running} + kMomentum * batch);
  };
  move(running_mean[channel], batch_mean * one);
  move(running_variance[channel], unbiased * one * one);
  deviation_[channel] = deviation;
  mean[channel] = static_cast<float>(batch_mean);
  scale[channel] = static_cast<float>(double{gamma_value} / deviation / output_one);
  shift[channel] =
      static_cast<float>((double{beta_value} - batch_mean * double{gamma_value} / deviation) / output_one);
}

double Normalization::take_gradient(std::size_t channel, double sum, double product, double pixels,
                                    float gamma_value) {
  const double deviation = deviation_[channel];
  const double slope = double{gamma_value} / deviation / double{output_unit};
  const double along_y = -slope * product / (pixels * deviation * deviation);
  a[channel] = static_cast<float>(slope);
  b[channel] = static_cast<float>(along_y);
  c[channel] = static_cast<float>(-slope * sum / pixels - along_y * double{mean[channel]});
  return product / deviation / double{output_unit};
}

template <typename T, typename Sum>
TrainingLayer<T, Sum>::TrainingLayer(const Convolution& convolution, bool exact)
    : shape(convolution),
      tile(tile_images<T>(convolution)),
      normalization(convolution.output_channels),
      exact_(exact),
      bf16_gradient_(quickest_bf16_gradient()) {}

template <typename T, typename Sum>
bool TrainingLayer<T, Sum>::has_winograd() const {
  const auto fits = [](int channels) { return channels == 16 || channels == 32 || channels == 64; };
  return std::is_same_v<T, float> && !exact_ && onednn_has(dnnl::cpu_isa::avx512_core_bf16) &&
         shape.kernel == 3 && shape.padding == 1 && shape.stride == 1 && fits(shape.input_channels) &&
         fits(shape.output_channels) && shape.input_height % 2 == 0 && shape.input_width % 2 == 0;
}

template <typename T, typename Sum>
std::size_t TrainingLayer<T, Sum>::output_pixels() const {
  return index(shape.output_height() * shape.output_width());
}

template <typename T, typename Sum>
std::size_t TrainingLayer<T, Sum>::output_image() const {
  return output_pixels() * index(shape.output_channels);
}

template <typename T, typename Sum>
std::size_t TrainingLayer<T, Sum>::input_image() const {
  return index(shape.input_height * shape.input_width * shape.input_channels);
}

template <typename T, typename Sum>
void TrainingLayer<T, Sum>::make_primitives(std::vector<TrainingWorker<T>>& workers) {
  using namespace dnnl;
  const engine& cpu = cpu_engine();
  const OnednnConvolution geometry(shape, tile, onednn_type<T>());
  const int threads = static_cast<int>(workers.size());
  const primitive_attr attributes = user_scratchpad();
  const auto need_scratchpad = [&](std::size_t bytes) {
    for (TrainingWorker<T>& worker : workers) {
      if (worker.scratchpad.size() < bytes) worker.scratchpad.reset(bytes);
    }
  };
  /// The primitive and its arguments, the scratchpad last.
  const auto make = [&](const auto& description, const dnnl::primitive& primitive,
                        SharedPrimitive::Arguments arguments) {
    const memory::desc scratchpad = description.scratchpad_desc();
    need_scratchpad(scratchpad.get_size());
    arguments.emplace_back(DNNL_ARG_SCRATCHPAD, scratchpad);
    return SharedPrimitive(primitive, arguments, threads);
  };
  const auto make_reorder = [&](const memory::desc& from, const memory::desc& to) {
    const reorder::primitive_desc description(cpu, from, cpu, to, attributes);
    return make(description, reorder(description), {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}});
  };

  const auto forward_to = [&](const memory::desc& destination) {
    return quickest([&] {
      return convolution_forward::primitive_desc(
          cpu, prop_kind::forward_training, algorithm::convolution_direct, geometry.source, geometry.weight,
          destination, geometry.strides, geometry.padding_before, geometry.padding_after, attributes);
    });
  };
  const memory::desc sums = OnednnConvolution(shape, tile, onednn_type<Sum>()).destination;
  const auto forward = forward_to(sums);
  if (has_winograd()) {
    const auto prepare = [&](std::optional<WinogradShape>& winograd, AlignedBuffer<float>& values, int inputs,
                             int outputs) {
      winograd = WinogradShape{inputs, outputs, shape.input_height, shape.input_width};
      values.reset(winograd->weight_count());
      need_scratchpad(winograd->scratch_count() * sizeof(float));
    };
    prepare(winograd_, winograd_weight_, shape.input_channels, shape.output_channels);
    prepare(winograd_gradient_, winograd_gradient_weight_, shape.output_channels, shape.input_channels);
  } else {
    forward_ = make(
        forward, convolution_forward(forward),
        {{DNNL_ARG_SRC, geometry.source}, {DNNL_ARG_WEIGHTS, forward.weights_desc()}, {DNNL_ARG_DST, sums}});
    to_forward_ = make_reorder(geometry.master_weight, forward.weights_desc());
    forward_weight_.reset(forward.weights_desc().get_size());
  }

  // The gradients go with a forward pass of their own type.
  const auto hint = std::is_same_v<T, Sum> ? forward : forward_to(geometry.destination);
  if (weight != 0 && !winograd_gradient_) {  // the pixels need no gradient
    const auto data = quickest([&] {
      return convolution_backward_data::primitive_desc(
          cpu, algorithm::convolution_direct, geometry.source, geometry.weight, geometry.destination,
          geometry.strides, geometry.padding_before, geometry.padding_after, hint, attributes);
    });
    data_gradient_ = make(data, convolution_backward_data(data),
                          {{DNNL_ARG_DIFF_DST, geometry.destination},
                           {DNNL_ARG_WEIGHTS, data.weights_desc()},
                           {DNNL_ARG_DIFF_SRC, geometry.source}});
    to_data_gradient_ = make_reorder(geometry.master_weight, data.weights_desc());
    data_gradient_weight_.reset(data.weights_desc().get_size());
  }

  if (own_gradient_is_quicker<T>(shape)) {
    own_gradient_ = WeightGradientShape{shape.input_channels, shape.output_channels, shape.stride,
                                        shape.input_height,   shape.input_width,     shape.output_height(),
                                        shape.output_width()};
    gradient_count = own_gradient_->count();
    if (std::is_same_v<T, Bfloat16>) need_scratchpad(bf16_gradient_.scratch(*own_gradient_));
  } else {
    const memory::desc any(geometry.weight_dims, memory::data_type::f32, memory::format_tag::any);
    const convolution_backward_weights::primitive_desc weights(
        cpu, algorithm::convolution_direct, geometry.source, any, geometry.destination, geometry.strides,
        geometry.padding_before, geometry.padding_after, forward, attributes);
    weight_gradient_ = make(weights, convolution_backward_weights(weights),
                            {{DNNL_ARG_SRC, geometry.source},
                             {DNNL_ARG_DIFF_DST, geometry.destination},
                             {DNNL_ARG_DIFF_WEIGHTS, weights.diff_weights_desc()}});
    from_gradient_ = make_reorder(weights.diff_weights_desc(), geometry.master_weight);
    gradient_count = weights.diff_weights_desc().get_size() / sizeof(float);
  }
  gradient.reset(gradient_count);
}

template <typename T, typename Sum>
void TrainingLayer<T, Sum>::set_weight(int thread, const TrainingWorker<T>& worker, const float* master) {
  if (winograd_) {
    winograd_weight(*winograd_, master, winograd_weight_.data());
    winograd_gradient_weight(*winograd_gradient_, master, winograd_gradient_weight_.data());
    return;
  }
  to_forward_.run(thread, worker.stream, {master, forward_weight_.data(), worker.scratchpad.data()});
  if (!to_data_gradient_) return;
  to_data_gradient_.run(thread, worker.stream,
                        {master, data_gradient_weight_.data(), worker.scratchpad.data()});
}

template <typename T, typename Sum>
void TrainingLayer<T, Sum>::forward(int thread, const TrainingWorker<T>& worker, const T* x,
                                    Sum* output) const {
  if constexpr (std::is_same_v<T, float>) {
    if (winograd_) {
      winograd_avx512(*winograd_, x, winograd_weight_.data(), tile,
                      reinterpret_cast<float*>(worker.scratchpad.data()), output);
      return;
    }
  }
  forward_.run(thread, worker.stream, {x, forward_weight_.data(), output, worker.scratchpad.data()});
}

template <typename T, typename Sum>
void TrainingLayer<T, Sum>::data_gradient(int thread, const TrainingWorker<T>& worker, const T* dy,
                                          T* dx) const {
  if constexpr (std::is_same_v<T, float>) {
    if (winograd_gradient_) {
      winograd_avx512(*winograd_gradient_, dy, winograd_gradient_weight_.data(), tile,
                      reinterpret_cast<float*>(worker.scratchpad.data()), dx);
      return;
    }
  }
  data_gradient_.run(thread, worker.stream, {dy, data_gradient_weight_.data(), dx, worker.scratchpad.data()});
}

template <typename T, typename Sum>
void TrainingLayer<T, Sum>::weight_gradient(int thread, const TrainingWorker<T>& worker, const T* x,
                                            const T* dy, float* partial) const {
  if (own_gradient_) {
    if constexpr (std::is_same_v<T, float>) {
      weight_gradient_avx2(*own_gradient_, x, dy, tile, partial);
    } else {
      bf16_gradient_.sum(*own_gradient_, x, dy, tile, worker.scratchpad.data(), partial);
    }
    return;
  }
  weight_gradient_.run(thread, worker.stream, {x, dy, partial, worker.scratchpad.data()});
}

template <typename T, typename Sum>
void TrainingLayer<T, Sum>::store_gradient(int thread, const TrainingWorker<T>& worker, float* master) const {
  if (own_gradient_) {
    unblock_weight_gradient(*own_gradient_,
                            std::is_same_v<T, float> ? kFp32WeightGradientBlock : bf16_gradient_.block,
                            gradient.data(), master);
  } else {
    from_gradient_.run(thread, worker.stream, {gradient.data(), master, worker.scratchpad.data()});
  }
}

template class TrainingLayer<float>;
template class TrainingLayer<Bfloat16>;
template class TrainingLayer<Bfloat16, float>;

}  // namespace nibble
