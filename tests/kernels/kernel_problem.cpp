#include "tests/kernels/kernel_problem.h"

#include <errno.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "kernels/geometry.h"
#include "kernels/reference.h"
#include "kernels/thresholds.h"
#include "tests/kernels/guarded_memory.h"

namespace nibble {
namespace {

using Random = std::mt19937_64;
using Values = std::vector<std::int16_t>;

int uniform(Random& random, int lowest, int highest) {
  return std::uniform_int_distribution<int>(lowest, highest)(random);
}

Levels levels_for(Random& random, int weight_bits, bool may_be_far) {
  if (weight_bits != 2) return {};
  if (uniform(random, 0, 1) == 0) return kDefaultLevels;
  const bool far = uniform(random, 0, 7) == 0 && may_be_far;
  const int small = uniform(random, 1, far ? 8 : 2);
  const int large = small + uniform(random, 1, far ? 34 : 3);
  return {static_cast<std::int16_t>(-large), static_cast<std::int16_t>(-small),
          static_cast<std::int16_t>(small), static_cast<std::int16_t>(large)};
}

Values make_weights(Random& random, const KernelProblem& problem, int bits, const Levels& levels) {
  const int limit = bits == 2 ? levels[3] : weight_limit(bits);
  // Of 8 bits a 15th is 8: U of four outputs of twice fit s8 still, but pairs of products pass 16 bits.
  const int small = bits == 2 ? levels[2] : std::max(1, limit / (uniform(random, 0, 1) == 0 ? 15 : 3));
  const int of_lines = uniform(random, 0, 1) == 0 ? limit : small;
  Values weights(problem.shape.filter_size() * static_cast<std::size_t>(problem.shape.output_channels));
  for (std::size_t i = 0; i < weights.size(); ++i) {
    int value = 0;
    switch (problem.data) {
      case Data::random:
      case Data::largest_sum:
      case Data::far_outputs:
        value = bits == 2 ? levels[random() % 4] : uniform(random, -limit, limit);
        break;
      case Data::small:
        value = bits == 2 ? levels[1 + random() % 2] : uniform(random, -small, small);
        break;
      case Data::maximum:
        value = limit;
        break;
      case Data::minimum:
        value = -limit;
        break;
      case Data::alternating:
        value = i % 2 == 0 ? limit : -limit;
        break;
      case Data::lines: {
        const auto kernel = static_cast<std::size_t>(problem.shape.kernel);
        const std::size_t tap =
            i / static_cast<std::size_t>(problem.shape.input_channels) % (kernel * kernel);
        const std::size_t pattern = i / problem.shape.filter_size();
        const std::size_t place = pattern / 8 % 2 == 0 ? tap % kernel : tap / kernel;
        value = (pattern >> place) % 2 == 0 ? of_lines : -of_lines;
        break;
      }
    }
    weights[i] = static_cast<std::int16_t>(value);
  }
  return weights;
}

/// [lane or image][row][column][channel]
Values make_activations(Random& random, const KernelProblem& problem, int bits, int images,
                        const Values& weights) {
  const int limit = activation_limit(bits);
  const std::size_t map = problem.shape.input_size();
  const auto channels = static_cast<std::size_t>(problem.shape.input_channels);
  const std::size_t filter = problem.shape.filter_size();
  Values values(map * static_cast<std::size_t>(images));
  for (std::size_t i = 0; i < values.size(); ++i) {
    int value = limit;
    const bool is_random =
        problem.data == Data::random || problem.data == Data::small || problem.data == Data::far_outputs;
    if (is_random) value = uniform(random, 0, limit);
    if (problem.data == Data::alternating) value = (i + i / map) % 2 == 0 ? limit : 0;
    if (problem.data == Data::largest_sum) {
      // Image n aims at output channel n / 2: the largest sum where n is even, the smallest where it is odd.
      // The pattern of the filter's first tap repeats at every position.
      const std::size_t image = i / map;
      const std::size_t channel = image / 2 % static_cast<std::size_t>(problem.shape.output_channels);
      const int weight = weights[channel * filter + i % channels];
      value = (weight > 0) == (image % 2 == 0) ? limit : 0;
    }
    if (problem.data == Data::lines) {
      const std::size_t image = i / map;
      const std::size_t position = i % map / channels;
      const auto width = static_cast<std::size_t>(problem.shape.input_width);
      const std::size_t place = image % 2 == 0 ? position % width : position / width;
      value = ((37 * image + 11) >> (place % 6)) % 2 == 0 ? 0 : limit;
    }
    values[i] = static_cast<std::int16_t>(value);
  }
  return values;
}

/// Formats that a neighbour of this kernel may ask for.
std::vector<ActivationFormat> formats_beside(const ConvolutionKernel& kernel, int bits) {
  std::vector<ActivationFormat> formats;
  const bool wide = kernel.weight_bits == 16;
  for (const ActivationFormat& format : kActivationFormats) {
    if (kernel.writes(format) && format.bits >= bits && (format.bits == 16) == wide)
      formats.push_back(format);
  }
  return formats;
}

/// Scales that make outputs spread over (and beyond) their range.
std::vector<float> make_scales(Random& random, std::span<const std::int16_t> weights, std::size_t filter,
                               int activation_bits, QuantizedRange range, int padded) {
  std::vector<float> scales(static_cast<std::size_t>(padded));
  for (std::size_t c = 0; c < weights.size() / filter; ++c) {
    double square = 1.0;
    for (std::size_t i = 0; i < filter; ++i) square += std::pow(weights[c * filter + i], 2);
    const double deviation = std::sqrt(square) * activation_limit(activation_bits) / 2;
    scales[c] = static_cast<float>(std::uniform_real_distribution<double>(0.1, 1.0)(random) *
                                   (range.highest - range.lowest) / deviation);
  }
  return scales;
}

std::string describe(const KernelProblem& problem, const std::string& what) {
  return what + "\n  repeat: NIBBLE_KERNEL_PROBLEM=\"" + problem.text() + "\" " +
         program_invocation_short_name + " --gtest_filter='*OneProblem*'";
}

/// A random output stage, and the memory that it points to.
struct Stage {
  OutputStage values;
  std::vector<float> scale;
  std::vector<float> offset;
  Values residual;  ///< of all images

  // What `values` points to: nothing behind it may be read.
  std::vector<std::unique_ptr<GuardedMemory>> guarded;
  template <typename T>
  const T* guard(const std::vector<T>& from) {
    const std::size_t bytes = from.size() * sizeof(T);
    guarded.push_back(std::make_unique<GuardedMemory>(bytes, GuardedMemory::Guard::behind));
    std::memcpy(guarded.back()->data(), from.data(), bytes);
    return reinterpret_cast<const T*>(guarded.back()->data());
  }

  Stage(Random& random, const ConvolutionKernel& kernel, const KernelProblem& problem,
        const ConvolutionLayer& layer, int images);
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
};

Stage::Stage(Random& random, const ConvolutionKernel& kernel, const KernelProblem& problem,
             const ConvolutionLayer& layer, int images) {
  const ConvolutionShape& shape = problem.shape;
  const auto pick = [&](const std::vector<ActivationFormat>& formats) {
    return formats[random() % formats.size()];
  };
  const int padded = (shape.output_channels + kChannelPadding - 1) / kChannelPadding * kChannelPadding;
  values.range =
      problem.output_signed ? shortcut_range(problem.output_bits) : activation_range(problem.output_bits);
  scale =
      make_scales(random, layer.weights, shape.filter_size(), kernel.activation_bits, values.range, padded);
  offset.resize(static_cast<std::size_t>(padded));
  for (std::size_t c = 0; c < static_cast<std::size_t>(shape.output_channels); ++c) {
    offset[c] =
        std::uniform_real_distribution<float>(-0.5F, 0.5F)(random) * static_cast<float>(values.range.highest);
    // In some channels, so that they stand beside others in a block. Most sums become far less or far more
    // than 32 bits hold.
    if (problem.data == Data::far_outputs && random() % 2 == 0) {
      constexpr float kScales[] = {0, 0x1p-100F, 1e5F, 1e8F, 1e22F};
      constexpr float kOffsets[] = {0, 1e9F, -1e9F, 2147483648.0F, -3e9F, 1e20F};
      scale[c] = kScales[random() % std::size(kScales)];
      offset[c] = kOffsets[random() % std::size(kOffsets)];
    }
  }
  values.scale = guard(scale);
  values.offset = guard(offset);
  values.format = pick(formats_beside(kernel, problem.output_bits));
  if (problem.residual != 0) {
    const int stream_bits = kernel.weight_bits == 16 ? 16 : 8;
    values.residual_signed = problem.residual == 2;
    values.residual_ratio = std::uniform_real_distribution<float>(0.3F, 1.5F)(random);
    if (problem.data == Data::far_outputs && random() % 2 == 0) values.residual_ratio = 1e7F;
    values.residual_format = pick(formats_beside(kernel, stream_bits));
    const QuantizedRange range =
        values.residual_signed ? shortcut_range(stream_bits) : activation_range(stream_bits);
    residual.resize(shape.output_size() * static_cast<std::size_t>(images));
    for (std::int16_t& value : residual) {
      value = static_cast<std::int16_t>(uniform(random, range.lowest, range.highest));
    }
  }
  if (problem.derived_bits != 0) {
    values.derived_bits = problem.derived_bits;
    values.derived_ratio = std::uniform_real_distribution<float>(0.2F, 2.0F)(random) *
                           static_cast<float>(activation_limit(problem.derived_bits)) / 255.0F;
    values.derived_format = pick(formats_beside(kernel, problem.derived_bits));
    values.derived_thresholds = guard(make_byte_thresholds(values.derived_ratio, problem.derived_bits));
  }
  if (problem.output_bits == 2 && problem.residual == 0 && random() % 4 != 0) {
    const std::vector<std::int16_t> thresholds = make_sum_thresholds(layer, scale, offset, padded);
    if (!thresholds.empty()) values.thresholds = guard(thresholds);
    values.padded_channels = padded;
  }
}

/// What the scalar reference computes: [image][row][column][channel].
struct Results {
  Values outputs;
  Values derived;
};

template <typename Accumulator>
Results expected_results(const KernelProblem& problem, const Values& activations, const Values& weights,
                         const Stage& stage, int images) {
  const std::size_t map = problem.shape.input_size();
  const std::size_t output = problem.shape.output_size();
  const auto channels = static_cast<std::size_t>(problem.shape.output_channels);
  const Requantization requantization{std::span(stage.scale).first(channels),
                                      std::span(stage.offset).first(channels), stage.values.range,
                                      stage.values.residual_ratio};
  Results results;
  results.outputs.resize(output * static_cast<std::size_t>(images));
  std::vector<Accumulator> accumulators(output);
  for (std::size_t n = 0; n < static_cast<std::size_t>(images); ++n) {
    reference_convolution<Accumulator>(problem.shape, std::span(activations).subspan(n * map, map), weights,
                                       accumulators);
    reference_requantize<Accumulator>(accumulators, requantization,
                                      stage.residual.empty()
                                          ? std::span<const std::int16_t>()
                                          : std::span(stage.residual).subspan(n * output, output),
                                      std::span(results.outputs).subspan(n * output, output));
  }
  if (stage.values.derived_bits != 0) {
    results.derived.resize(results.outputs.size());
    reference_derive_input(results.outputs, stage.values.derived_ratio, stage.values.derived_bits,
                           results.derived);
  }
  return results;
}

/// The maps of a problem in memory. A residual and derived values that it has not got are maps that no call
/// looks at.
struct Maps {
  LaneMap input;
  LaneMap output;
  LaneMap residual;
  LaneMap derived;
  bool in_place;  ///< the output takes the residual's place

  LaneMap& target() { return in_place ? residual : output; }
};

Maps make_maps(const ConvolutionKernel& kernel, const KernelProblem& problem, const OutputStage& stage,
               bool in_place) {
  const ConvolutionShape& shape = problem.shape;
  const auto guard = problem.seed % 2 == 0 ? GuardedMemory::Guard::behind : GuardedMemory::Guard::before;
  const auto map = [&](const ActivationFormat& format, const MapSize& size, int stride) {
    return LaneMap(problem.lanes, format, size, kernel.lanes, kernel.lanes * problem.lane_blocks, stride,
                   guard);
  };
  const auto result = [&](const ActivationFormat& format) {
    return map(format, {shape.output_channels, shape.output_height(), shape.output_width()}, 0);
  };
  return {
      map(kernel.input_format, {shape.input_channels, shape.input_height, shape.input_width}, shape.stride),
      result(stage.format), result(stage.has_residual() ? stage.residual_format : kPlanar8),
      result(stage.derived_bits != 0 ? stage.derived_format : kPlanar8), in_place};
}

/// Calls the kernel for all channels, cut into several calls where the problem says so.
class Caller {
 public:
  Caller(Random& random, const ConvolutionKernel& kernel, const KernelProblem& problem,
         const PackedConvolution& packed, const OutputStage& stage)
      : kernel_(kernel), packed_(packed), stage_(stage), cuts_{0, problem.shape.output_channels} {
    for (int i = 0; i < problem.split; ++i) {
      cuts_.push_back(uniform(random, 0, problem.shape.output_channels / kernel.channel_block) *
                      kernel.channel_block);
    }
    std::sort(cuts_.begin(), cuts_.end());
  }

  void operator()(ConvolutionCall call) const {
    for (std::size_t i = 0; i + 1 < cuts_.size(); ++i) {
      call.first_channel = cuts_[i];
      call.last_channel = cuts_[i + 1];
      if (call.first_channel < call.last_channel) kernel_.run(packed_, stage_, call);
    }
  }

 private:
  const ConvolutionKernel& kernel_;
  const PackedConvolution& packed_;
  const OutputStage& stage_;
  std::vector<int> cuts_;
};

void run_in_image_lanes(Random& random, const ConvolutionKernel& kernel, const KernelProblem& problem,
                        const PackedConvolution& packed, const Caller& call, Maps& maps) {
  const ConvolutionShape& shape = problem.shape;
  // Kernels that take whole rows, or several, compute them cut too.
  const bool whole_rows = kernel.prefers_whole_rows(packed) && random() % 4 != 0;
  const bool several_rows = kernel.takes_rows && random() % 4 != 0;
  const ConvolutionGeometry geometry = cut_into_runs(shape, maps.input.strides(), whole_rows, several_rows);
  for (int image = 0; image < kernel.lanes * problem.lane_blocks; image += kernel.lanes) {
    for (const PositionRun& run : geometry.runs) {
      call({maps.input.run(run, image, shape.stride), geometry.tap_lists[run.taps], run.positions, 0, 0,
            maps.target().run(run, image, 1), maps.residual.run(run, image, 1),
            maps.derived.run(run, image, 1), run.whole_row, run.rows});
    }
  }
}

void run_in_position_lanes(Random& random, const KernelProblem& problem, const Caller& call, Maps& maps) {
  const std::vector<Tap> taps = maps.input.taps(problem.shape);
  const int blocks = maps.target().blocks();
  const int cut = problem.split > 0 ? uniform(random, 0, blocks) : 0;
  for (const auto& [first, last] : {std::pair{0, cut}, std::pair{cut, blocks}}) {
    if (first == last) continue;
    call({maps.input.block(first), taps, last - first, 0, 0, maps.target().block(first),
          maps.residual.block(first), maps.derived.block(first)});
  }
  maps.target().clear_pads();
  maps.derived.clear_pads();
}

/// Every byte, also those of channels and pads that do not exist. "" or what differs.
std::string compare(const KernelProblem& problem, const std::string& what, const LaneMap& found,
                    const LaneMap& wanted, int images) {
  if (!found.memory().intact()) return describe(problem, what + ": bytes outside were written");
  if (std::memcmp(found.memory().data(), wanted.memory().data(), found.memory().size()) == 0) return "";
  for (int image = 0; image < images; ++image) {
    for (int row = 0; row < found.size().height; ++row) {
      for (int column = 0; column < found.size().width; ++column) {
        for (int channel = 0; channel < found.size().channels; ++channel) {
          const int is = found.load(image, row, column, channel);
          const int should = wanted.load(image, row, column, channel);
          if (is == should) continue;
          return describe(problem, what + ": image " + std::to_string(image) + ", row " +
                                       std::to_string(row) + ", column " + std::to_string(column) +
                                       ", channel " + std::to_string(channel) + " is " + std::to_string(is) +
                                       ", expected " + std::to_string(should));
        }
      }
    }
  }
  return describe(problem, what + ": bits of channels or pads that do not exist are not zero");
}

}  // namespace

std::string KernelProblem::text() const {
  std::ostringstream out;
  out << kernel << ' ' << shape.input_channels << ' ' << shape.output_channels << ' ' << shape.kernel << ' '
      << shape.stride << ' ' << shape.padding << ' ' << shape.input_height << ' ' << shape.input_width << ' '
      << static_cast<int>(data) << ' ' << static_cast<int>(lanes) << ' ' << lane_blocks << ' ' << residual
      << ' ' << derived_bits << ' ' << output_bits << ' ' << output_signed << ' ' << split << ' '
      << far_levels << ' ' << seed;
  return out.str();
}

KernelProblem parse_problem(const std::string& text) {
  KernelProblem problem;
  std::istringstream in(text);
  int data = 0;
  int lanes = 0;
  in >> problem.kernel >> problem.shape.input_channels >> problem.shape.output_channels >>
      problem.shape.kernel >> problem.shape.stride >> problem.shape.padding >> problem.shape.input_height >>
      problem.shape.input_width >> data >> lanes >> problem.lane_blocks >> problem.residual >>
      problem.derived_bits >> problem.output_bits >> problem.output_signed >> problem.split >>
      problem.far_levels >> problem.seed;
  if (!in) throw std::invalid_argument("not a problem: " + text);
  problem.data = static_cast<Data>(data);
  problem.lanes = static_cast<Lanes>(lanes);
  return problem;
}

KernelProblem random_problem(const ConvolutionKernel& kernel, std::uint64_t seed) {
  Random random(seed);
  KernelProblem problem;
  problem.kernel = kernel.name;
  problem.seed = seed;
  constexpr Lanes kChoices[] = {Lanes::images, Lanes::images, Lanes::planes, Lanes::column_copies};
  problem.lanes = kChoices[uniform(random, 0, 3)];
  ConvolutionShape& shape = problem.shape;
  shape.kernel = uniform(random, 0, 3) == 0 ? 1 : 3;
  shape.padding = shape.kernel / 2;
  shape.stride = uniform(random, 0, 2) == 0 ? 2 : 1;
  shape.input_channels = uniform(random, 0, 1) == 0 ? uniform(random, 1, 67) : 16 * uniform(random, 1, 4);
  shape.output_channels = uniform(random, 0, 1) == 0 ? uniform(random, 1, 67) : 16 * uniform(random, 1, 4);
  shape.input_height = uniform(random, 1, 9);
  shape.input_width = uniform(random, 1, 9);
  make_even(problem);
  if (shape.stride == 1 && uniform(random, 0, 4) == 0) {  // without padding, as the first convolution
    shape.padding = 0;
    shape.input_height = std::max(shape.input_height, shape.kernel);
    shape.input_width = std::max(shape.input_width, shape.kernel);
    problem.lanes = Lanes::images;
  }
  problem.data = static_cast<Data>(uniform(random, 0, kDataKinds - 1));
  problem.lane_blocks = uniform(random, 1, 2);
  problem.residual = uniform(random, 0, 2);
  problem.split = uniform(random, 0, 2);
  if (kernel.weight_bits == 16) {
    problem.output_bits = 16;
    problem.output_signed = problem.residual == 0 && uniform(random, 0, 3) == 0;
  } else {
    const int choice = uniform(random, 0, 3);
    problem.output_bits = problem.residual != 0 || choice < 2 ? 8 : choice == 2 ? 4 : 2;
    problem.output_signed = problem.residual == 0 && problem.output_bits == 8 && uniform(random, 0, 3) == 0;
    if (problem.output_bits == 8 && !problem.output_signed) problem.derived_bits = 2 * uniform(random, 0, 2);
  }
  return problem;
}

void make_even(KernelProblem& problem) {
  if (problem.lanes == Lanes::images || problem.shape.stride == 1) return;
  problem.shape.input_height += problem.shape.input_height % 2;
  problem.shape.input_width += problem.shape.input_width % 2;
}

std::string check_kernel(const ConvolutionKernel& kernel, const KernelProblem& problem, bool* supported) {
  Random random(problem.seed);
  const int images = problem.lanes == Lanes::images ? kernel.lanes * problem.lane_blocks : 1;
  const Levels levels = levels_for(random, kernel.weight_bits, problem.far_levels);
  const Values weights = make_weights(random, problem, kernel.weight_bits, levels);
  const ConvolutionLayer layer{problem.shape, kernel.weight_bits, kernel.activation_bits, levels, weights};
  const bool supports = kernel.supports(layer);
  if (supported != nullptr) *supported = supports;
  if (!supports) return supported != nullptr ? "" : describe(problem, "the kernel refuses the layer");
  const PackedConvolution packed = kernel.pack(layer);
  const Values activations = make_activations(random, problem, kernel.activation_bits, images, weights);
  const Stage stage(random, kernel, problem, layer, images);
  const Results results = kernel.weight_bits == 16
                              ? expected_results<std::int64_t>(problem, activations, weights, stage, images)
                              : expected_results<std::int32_t>(problem, activations, weights, stage, images);

  // In place where the formats allow it, as the network does.
  const OutputStage& values = stage.values;
  const bool in_place = values.has_residual() && values.residual_format == values.format && random() % 2 == 0;
  Maps maps = make_maps(kernel, problem, values, in_place);
  Maps expected = make_maps(kernel, problem, values, in_place);
  std::memset(maps.output.memory().data(), 0xEE, maps.output.memory().size());
  std::memset(maps.derived.memory().data(), 0xEE, maps.derived.memory().size());
  maps.input.store(activations, images);
  if (values.has_residual()) maps.residual.store(stage.residual, images);
  expected.target().store(results.outputs, images);
  if (values.derived_bits != 0) expected.derived.store(results.derived, images);

  const Caller call(random, kernel, problem, packed, values);
  if (problem.lanes == Lanes::images) {
    run_in_image_lanes(random, kernel, problem, packed, call, maps);
  } else {
    run_in_position_lanes(random, problem, call, maps);
  }

  std::string difference = compare(problem, "output", maps.target(), expected.target(), images);
  if (difference.empty() && values.derived_bits != 0) {
    difference = compare(problem, "derived", maps.derived, expected.derived, images);
  }
  if (difference.empty() && !maps.input.memory().intact()) {
    difference = describe(problem, "input: bytes outside were written");
  }
  return difference;
}

}  // namespace nibble
