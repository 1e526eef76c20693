#include "bench/kernel_layer.h"

#include <algorithm>
#include <cmath>

#include "graph/data/random.h"
#include "graph/network/convolution_shape.h"
#include "kernels/geometry.h"
#include "kernels/thresholds.h"

namespace nibble {
namespace {

constexpr float kRatio = 0.75F;  ///< of every rescaling whose value does not matter

ConvolutionShape shape_of(const DistinctLayer& layer) {
  const ConvolutionShape shape = shape_of(layer.convolution);
  return layer.reads_pixels ? with_border(shape) : shape;
}

/// At 16 bits as large as quant lets them be, so that four vpmaddwd results fit 32 bits.
constexpr int largest_weight(int bits) {
  return bits == 16 ? weight_limit(16) / 4 : weight_limit(bits);
}

/// Weights as trained ones are spread: more small than large ones. At 2 bits all four levels.
std::vector<std::int16_t> make_weights(const ConvolutionShape& shape, int bits) {
  SplitMix64 random(1);
  std::vector<std::int16_t> weights(shape.filter_size() * static_cast<std::size_t>(shape.output_channels));
  for (std::int16_t& weight : weights) {
    if (bits == 2) {
      weight = kDefaultLevels[random.below(4)];
      continue;
    }
    const double normal = random.uniform() + random.uniform() + random.uniform() - 1.5;
    weight = static_cast<std::int16_t>(std::lround(normal / 1.5 * largest_weight(bits)));
  }
  return weights;
}

ConvolutionLayer convolution_layer(const ConvolutionKernel& kernel, const DistinctLayer& layer,
                                   const std::vector<std::int16_t>& weights) {
  return {shape_of(layer), kernel.weight_bits, kernel.activation_bits,
          kernel.weight_bits == 2 ? kDefaultLevels : Levels{}, weights};
}

/// A map of one tile.
struct Map {
  AlignedVector<std::uint8_t> bytes;
  ActivationFormat format{};
  int width = 0;
  std::ptrdiff_t position_bytes = 0;
  std::ptrdiff_t group_bytes = 0;

  void make(int height, int map_width, int channels, const ActivationFormat& map_format, int lanes) {
    format = map_format;
    width = map_width;
    group_bytes = std::ptrdiff_t{lanes} * format.bytes;
    position_bytes = group_count(format, channels) * group_bytes;
    bytes.resize(static_cast<std::size_t>(height * width * position_bytes));
  }
  OutputView view(const PositionRun& run, int stride) {
    const std::ptrdiff_t column = stride * position_bytes;
    const std::ptrdiff_t row = width * column;
    const std::ptrdiff_t first = run.row * row + run.column * column;
    const std::ptrdiff_t step = run.row_step * row + run.column_step * column;
    return {bytes.data() + first, step, group_bytes, row};
  }
};

}  // namespace

struct KernelLayer::Implementation {
  const ConvolutionKernel& kernel;
  DistinctLayer layer;
  ConvolutionShape shape;
  PackedConvolution packed;
  OutputStage stage;
  AlignedVector<float> scale;
  AlignedVector<float> offset;
  std::vector<std::int16_t> sum_thresholds;
  std::vector<std::uint8_t> byte_thresholds;
  ConvolutionGeometry geometry;
  Map input;
  Map output;
  Map residual;
  Map derived;

  Implementation(const ConvolutionKernel& kernel_row, const DistinctLayer& distinct)
      : kernel(kernel_row), layer(distinct), shape(shape_of(distinct)) {
    const std::vector<std::int16_t> weights = make_weights(shape, kernel.weight_bits);
    const ConvolutionLayer packing = convolution_layer(kernel, layer, weights);
    packed = kernel.pack(packing);
    make_stage(packing);
    make_maps();
    const std::ptrdiff_t row = shape.input_width * input.position_bytes;
    geometry = cut_into_runs(shape, {row, input.position_bytes}, kernel.prefers_whole_rows(packed),
                             kernel.takes_rows);
  }

  /// The stream is u15 in 16-bit networks, in the format of its readers; u8 in all others, as the kernel
  /// likes it where the readers have an input of their own.
  ActivationFormat stream_format() const {
    return kernel.activation_bits < 8 ? kernel.stream_format : kernel.input_format;
  }

  void make_stage(const ConvolutionLayer& packing) {
    const bool wide = kernel.weight_bits == 16;
    const int stream_bits = wide ? 16 : 8;
    const auto padded = static_cast<std::size_t>((shape.output_channels + kChannelPadding - 1) /
                                                 kChannelPadding * kChannelPadding);
    // Half of the activations' range for the sums that random data give.
    const bool to_stream = layer.role != ConvolutionRole::relu || layer.reads_pixels;
    const int output_bits = to_stream ? stream_bits : kernel.activation_bits;
    const double typical = std::sqrt(static_cast<double>(shape.filter_size())) *
                           (kernel.weight_bits == 2 ? 2.0 : largest_weight(kernel.weight_bits) / 3.0) *
                           activation_limit(kernel.activation_bits) / 2;
    scale.assign(padded, 0.0F);
    offset.assign(padded, 0.0F);
    for (int c = 0; c < shape.output_channels; ++c) {
      scale[static_cast<std::size_t>(c)] = static_cast<float>(activation_limit(output_bits) / 2 / typical);
      offset[static_cast<std::size_t>(c)] = static_cast<float>(c % 5) * 0.1F;
    }
    stage.scale = scale.data();
    stage.offset = offset.data();
    stage.padded_channels = static_cast<int>(padded);
    stage.range = layer.role == ConvolutionRole::projection ? shortcut_range(stream_bits)
                                                            : activation_range(output_bits);
    // The pixels' convolution writes the stream of a block of 8-bit (16-bit) inputs; a network's other layers
    // write what the same kernel reads next.
    stage.format = layer.reads_pixels ? (wide ? kPlanar16 : kPlanar8)
                   : to_stream        ? stream_format()
                                      : kernel.input_format;
    if (layer.role == ConvolutionRole::residual) {
      stage.residual_format = stage.format;
      stage.residual_ratio = kRatio;
      if (kernel.activation_bits < 8) {
        byte_thresholds = make_byte_thresholds(1.0F / 16, kernel.activation_bits);
        stage.derived_bits = kernel.activation_bits;
        stage.derived_format = kernel.input_format;
        stage.derived_ratio = 1.0F / 16;
        stage.derived_thresholds = byte_thresholds.data();
      }
    }
    if (output_bits == 2) {
      sum_thresholds = make_sum_thresholds(packing, scale, offset, stage.padded_channels);
      if (!sum_thresholds.empty()) stage.thresholds = sum_thresholds.data();
    }
  }

  void make_maps() {
    const int height = shape.output_height();
    const int width = shape.output_width();
    input.make(shape.input_height, shape.input_width, shape.input_channels, kernel.input_format,
               kernel.lanes);
    output.make(height, width, shape.output_channels, stage.format, kernel.lanes);
    residual.make(height, width, shape.output_channels,
                  stage.has_residual() ? stage.residual_format : kPlanar8, kernel.lanes);
    derived.make(height, width, shape.output_channels,
                 stage.derived_bits != 0 ? stage.derived_format : kPlanar8, kernel.lanes);
    SplitMix64 random(2);
    const auto limit = static_cast<std::uint32_t>(activation_limit(kernel.activation_bits));
    const InputView view{input.bytes.data(), input.position_bytes, input.group_bytes};
    for (int position = 0; position < shape.input_height * shape.input_width; ++position) {
      for (int channel = 0; channel < shape.input_channels; ++channel) {
        for (int lane = 0; lane < kernel.lanes; ++lane) {
          store_activation({input.bytes.data(), view.position_stride, view.group_stride}, input.format,
                           position, channel, lane, static_cast<int>(random.below(limit + 1)));
        }
      }
    }
  }
};

bool KernelLayer::supported(const ConvolutionKernel& kernel, const DistinctLayer& layer) {
  // Pixels are u8 and their weights have 8 or 16 bits, whatever the width of the network; elsewhere 16-bit
  // weights read u15.
  const bool fits = layer.reads_pixels ? kernel.activation_bits == 8 && kernel.weight_bits >= 8
                                       : (kernel.weight_bits == 16) == (kernel.activation_bits == 16);
  if (!fits) return false;
  const std::vector<std::int16_t> weights = make_weights(shape_of(layer), kernel.weight_bits);
  return kernel.supports(convolution_layer(kernel, layer, weights));
}

KernelLayer::KernelLayer(const ConvolutionKernel& kernel, const DistinctLayer& layer)
    : implementation_(std::make_unique<Implementation>(kernel, layer)) {}
KernelLayer::~KernelLayer() = default;

void KernelLayer::run() {
  Implementation& self = *implementation_;
  for (const PositionRun& run : self.geometry.runs) {
    self.kernel.run(self.packed, self.stage,
                    {self.input.view(run, self.shape.stride), self.geometry.tap_lists[run.taps],
                     run.positions, 0, self.shape.output_channels, self.output.view(run, 1),
                     self.residual.view(run, 1), self.derived.view(run, 1), run.whole_row, run.rows});
  }
}

int KernelLayer::images() const {
  return implementation_->kernel.lanes;
}

double KernelLayer::multiply_accumulates() const {
  return static_cast<double>(implementation_->layer.convolution.multiply_accumulates()) * images();
}

}  // namespace nibble
