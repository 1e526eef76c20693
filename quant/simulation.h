#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <tuple>
#include <vector>

#include "graph/network/description.h"
#include "graph/network/quantized_parameters.h"
#include "quant/convolution_runner.h"

namespace nibble {

/// The integers of one tensor, [image][row][column][channel]: u8, u15, s8 and s16 all fit.
using Integers = std::vector<std::int16_t>;

/// Raw pixels in the 34x34 image whose border is the rounded mean.
Integers bordered_pixels(const NetworkDescription& network, std::span<const std::uint8_t> pixels_nhwc);

/// A quantized network, layer by layer, with its integers laid open. Convolutions run on the integer values
/// in float32 (ConvolutionRunner), so up to 8 bits everything is bit for bit the scalar reference's: a layer
/// whose sums could reach 2^24 is refused. At 16 bits the sums are rounded: good for statistics, not for
/// signatures.
class Simulation {
 public:
  explicit Simulation(const NetworkDescription& network, int chunk = 50);

  /// Sums of products, [count][rows][columns][channels], of images first .. first + count - 1.
  using SeeSums = std::function<void(int first, int count, std::span<const float> sums)>;

  /// Accumulators of one convolution for all images of `inputs` (bordered pixels for convolution 0). Throws
  /// RunError where float32 might not hold them.
  void accumulate(int convolution, std::span<const std::int16_t> weights, const Integers& inputs,
                  const SeeSums& see);

  /// The whole convolution: `residual` may be empty; `residual_ratio` is s_r / s_out.
  struct Requantization {
    float input_scale;
    float output_scale;
    int lowest;
    int highest;
    float residual_ratio = 0;
  };
  Integers convolve(int convolution, const QuantizedLayer& layer, const Integers& inputs,
                    const Requantization& requantization, const Integers& residual = {});

  /// x of a block from the stream before it, whose scale is `stream_scale`.
  Integers block_input(const QuantizedBlock& block, const Integers& stream, float stream_scale) const;

  /// What computes one convolution of a walk: convolve() or something that looks on, or first makes the
  /// layer.
  using Convolve = std::function<Integers(int convolution, const Integers& inputs, const Requantization&,
                                          const Integers& residual)>;

  /// The stream that enters the first block, and the one behind block `index` from the one before it. Scales
  /// and widths are those of `parameters`, a projection is computed between conv1 and conv2.
  Integers first_stream(const QuantizedParameters& parameters, std::span<const std::uint8_t> pixels_nhwc,
                        const Convolve& convolve) const;
  Integers run_block(const QuantizedParameters& parameters, std::size_t index, Integers stream,
                     const Convolve& convolve) const;

  /// convolve() with the layers of `parameters`, which must outlive it as the Simulation must.
  Convolve layers_of(const QuantizedParameters& parameters);

  /// Pool and linear layer, [images][classes].
  std::vector<float> classify(const QuantizedLayer& linear, const Integers& stream, float stream_scale) const;

  /// Pixels to logits. `see` (may be empty) gets each convolution's output for each chunk of images, in the
  /// order of execution (a projection before its block's conv2).
  using SeeOutput = std::function<void(int convolution, const Integers& output, float scale)>;
  std::vector<float> run(const QuantizedParameters& parameters, std::span<const std::uint8_t> pixels_nhwc,
                         const SeeOutput& see = {});

  const NetworkDescription& network() const { return network_; }

 private:
  Integers pad_channels(const Block& block, const Integers& stream) const;
  std::size_t input_size(int convolution) const;
  std::size_t output_size(int convolution) const;

  const NetworkDescription network_;
  int chunk_;
  /// By input channels, output channels, kernel, stride, input rows: equal shapes share one.
  std::map<std::tuple<int, int, int, int, int>, ConvolutionRunner> runners_;
};

}  // namespace nibble
