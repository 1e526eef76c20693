#include "tests/kernels/kernel_problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "kernels/geometry.h"
#include "kernels/reference.h"
#include "kernels/registry.h"
#include "kernels/thresholds.h"
#include "tests/kernels/guarded_memory.h"

namespace nibble {
namespace {

using Random = std::mt19937_64;
using Values = std::vector<std::int16_t>;

int uniform(Random& random, int lowest, int highest) {
  return std::uniform_int_distribution<int>(lowest, highest)(random);
}

Levels levels_for(Random& random, int weight_bits) {
  if (weight_bits != 2) return {};
  if (uniform(random, 0, 1) == 0) return kDefaultLevels;
  const int small = uniform(random, 1, 2);
  const int large = small + uniform(random, 1, 3);
  return {static_cast<std::int16_t>(-large), static_cast<std::int16_t>(-small),
          static_cast<std::int16_t>(small), static_cast<std::int16_t>(large)};
}

Values make_weights(Random& random, const KernelProblem& problem, int bits, const Levels& levels) {
  const int limit = bits == 2 ? levels[3] : weight_limit(bits);
  const int small = bits == 2 ? levels[2] : std::max(1, limit / 16);
  Values weights(problem.shape.filter_size() * static_cast<std::size_t>(problem.shape.output_channels));
  for (std::size_t i = 0; i < weights.size(); ++i) {
    int value = 0;
    switch (problem.data) {
      case Data::random:
      case Data::largest_sum:
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
        value = (pattern >> place) % 2 == 0 ? limit : -limit;
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
    if (problem.data == Data::random || problem.data == Data::small) value = uniform(random, 0, limit);
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

/// Formats that a neighbour of this kernel may ask for: what kernels of its instruction set read, and one
/// channel a group. The scalar reference knows all of them.
std::vector<ActivationFormat> formats_beside(const ConvolutionKernel& kernel, int bits) {
  std::vector<ActivationFormat> formats;
  const bool wide = kernel.weight_bits == 16;
  for (const ActivationFormat& format : kActivationFormats) {
    const bool read = std::any_of(
        convolution_kernels().begin(), convolution_kernels().end(), [&](const ConvolutionKernel& other) {
          return other.input_format == format && other.instruction_set <= kernel.instruction_set;
        });
    const bool known = read || kernel.instruction_set == InstructionSet::reference;
    if (known && format.bits >= std::min(bits, 16) && (format.bits == 16) == wide) formats.push_back(format);
  }
  return formats;
}

/// A map in memory, guarded at one end, in image lanes or position lanes.
class LaneMap {
 public:
  LaneMap(const KernelProblem& problem, const ActivationFormat& format, int channels, int height, int width,
          int lanes, int stride, GuardedMemory::Guard guard)
      : format_(format),
        channels_(channels),
        height_(height),
        width_(width),
        tile_(problem.position_lanes ? 1 : lanes * problem.lane_blocks),
        position_lanes_(problem.position_lanes),
        phases_(problem.position_lanes && stride == 2 ? 4 : 1),
        plane_{height / (phases_ == 4 ? 2 : 1), width / (phases_ == 4 ? 2 : 1), lanes},
        memory_(static_cast<std::size_t>(groups() * group_size()) *
                    static_cast<std::size_t>(position_lanes_ ? phases_ : height * width),
                guard) {}

  int groups() const { return group_count(format_, channels_); }
  /// Bytes of a group: of all lanes of a position, or of a plane.
  std::ptrdiff_t group_size() const {
    return std::ptrdiff_t{position_lanes_ ? plane_.positions() : tile_} * format_.bytes;
  }
  std::ptrdiff_t phase_stride() const { return groups() * group_size(); }
  const PlaneLayout& plane() const { return plane_; }
  GuardedMemory& memory() { return memory_; }
  MapStrides strides() const { return {width_ * groups() * group_size(), groups() * group_size()}; }

  /// The view from image lane 0 (or row 0's first position), one step of `step` bytes a position.
  OutputView view(std::ptrdiff_t start, std::ptrdiff_t step, std::ptrdiff_t row = 0) {
    return {memory_.data() + start, step, group_size(), row};
  }

  OutputView element(int image, int row, int column) {
    if (position_lanes_) {
      const int phase = phases_ == 4 ? row % 2 * 2 + column % 2 : 0;
      const int divisor = phases_ == 4 ? 2 : 1;
      return view(phase * phase_stride() +
                      std::ptrdiff_t{plane_.position(row / divisor, column / divisor)} * format_.bytes,
                  0);
    }
    return view((std::ptrdiff_t{row} * width_ + column) * groups() * group_size() +
                    std::ptrdiff_t{image} * format_.bytes,
                0);
  }

  void store(const Values& values, int images) {
    std::size_t next = 0;
    for (int image = 0; image < images; ++image) {
      for (int row = 0; row < height_; ++row) {
        for (int column = 0; column < width_; ++column) {
          for (int channel = 0; channel < channels_; ++channel) {
            store_activation(element(image, row, column), format_, 0, channel, 0, values[next++]);
          }
        }
      }
    }
  }

 private:
  ActivationFormat format_;
  int channels_;
  int height_;
  int width_;
  int tile_;
  bool position_lanes_;
  int phases_;
  PlaneLayout plane_;
  GuardedMemory memory_;
};

/// After blocks first_block .. last_block - 1 of `groups` planes were written: zeroes the pads in them, what
/// lies behind the last row when the last block is among them, and the margins beside the outermost blocks.
void clear_pads(const PlaneLayout& layout, std::uint8_t* planes, int groups, std::ptrdiff_t group_stride,
                int bytes, int first_block, int last_block) {
  const int first = first_block * layout.lanes;
  const int last = last_block * layout.lanes;
  const int rows_end = layout.height * layout.pitch();
  for (int group = 0; group < groups; ++group) {
    std::uint8_t* plane = planes + group * group_stride;
    const auto clear = [&](int from, int to) {  // positions relative to row 0
      if (from >= to) return;
      std::memset(plane + std::ptrdiff_t{layout.origin() + from} * bytes, 0,
                  static_cast<std::size_t>((to - from) * bytes));
    };
    if (first_block == 0) clear(-layout.margin(), 0);
    // The first pad at or behind `first`: pads are at width, width + pitch, width + 2 * pitch, ...
    const int skipped = std::max(0, first - layout.width + layout.pitch() - 1) / layout.pitch();
    const int end = std::min(last, rows_end);
    for (int pad = layout.width + skipped * layout.pitch(); pad < end; pad += layout.pitch())
      clear(pad, pad + 1);
    clear(std::max(first, rows_end), last_block == layout.blocks() ? last + layout.margin() : last);
  }
}

/// Scales that make outputs spread over (and beyond) their range.
std::vector<float> make_scales(Random& random, const Values& weights, std::size_t filter, int activation_bits,
                               QuantizedRange range, int padded) {
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
  return what + "\n  repeat: NIBBLE_KERNEL_PROBLEM=\"" + problem.text() +
         "\" kernels_test --gtest_filter='*OneProblem*'";
}

template <typename Accumulator>
Values expected_outputs(const KernelProblem& problem, const Values& activations, const Values& weights,
                        const Requantization& requantization, const Values& residual, int images) {
  const std::size_t map = problem.shape.input_size();
  const std::size_t output = problem.shape.output_size();
  Values result(output * static_cast<std::size_t>(images));
  std::vector<Accumulator> accumulators(output);
  for (std::size_t n = 0; n < static_cast<std::size_t>(images); ++n) {
    reference_convolution<Accumulator>(problem.shape, std::span(activations).subspan(n * map, map), weights,
                                       accumulators);
    reference_requantize<Accumulator>(
        accumulators, requantization,
        residual.empty() ? std::span<const std::int16_t>() : std::span(residual).subspan(n * output, output),
        std::span(result).subspan(n * output, output));
  }
  return result;
}

}  // namespace

std::string KernelProblem::text() const {
  std::ostringstream out;
  out << kernel << ' ' << shape.input_channels << ' ' << shape.output_channels << ' ' << shape.kernel << ' '
      << shape.stride << ' ' << shape.padding << ' ' << shape.input_height << ' ' << shape.input_width << ' '
      << static_cast<int>(data) << ' ' << position_lanes << ' ' << lane_blocks << ' ' << residual << ' '
      << derived_bits << ' ' << output_bits << ' ' << output_signed << ' ' << split << ' ' << seed;
  return out.str();
}

KernelProblem parse_problem(const std::string& text) {
  KernelProblem problem;
  std::istringstream in(text);
  int data = 0;
  in >> problem.kernel >> problem.shape.input_channels >> problem.shape.output_channels >>
      problem.shape.kernel >> problem.shape.stride >> problem.shape.padding >> problem.shape.input_height >>
      problem.shape.input_width >> data >> problem.position_lanes >> problem.lane_blocks >>
      problem.residual >> problem.derived_bits >> problem.output_bits >> problem.output_signed >>
      problem.split >> problem.seed;
  if (!in) throw std::invalid_argument("not a problem: " + text);
  problem.data = static_cast<Data>(data);
  return problem;
}

KernelProblem random_problem(const ConvolutionKernel& kernel, std::uint64_t seed) {
  Random random(seed);
  KernelProblem problem;
  problem.kernel = kernel.name;
  problem.seed = seed;
  problem.position_lanes = uniform(random, 0, 2) == 0;
  ConvolutionShape& shape = problem.shape;
  shape.kernel = uniform(random, 0, 3) == 0 ? 1 : 3;
  shape.padding = shape.kernel / 2;
  shape.stride = uniform(random, 0, 2) == 0 ? 2 : 1;
  shape.input_channels = uniform(random, 0, 1) == 0 ? uniform(random, 1, 67) : 16 * uniform(random, 1, 4);
  shape.output_channels = uniform(random, 0, 1) == 0 ? uniform(random, 1, 67) : 16 * uniform(random, 1, 4);
  shape.input_height = uniform(random, 1, 9);
  shape.input_width = uniform(random, 1, 9);
  if (problem.position_lanes && shape.stride == 2) {
    shape.input_height += shape.input_height % 2;
    shape.input_width += shape.input_width % 2;
  }
  if (shape.stride == 1 && uniform(random, 0, 4) == 0) {  // without padding, as the first convolution
    shape.padding = 0;
    shape.input_height = std::max(shape.input_height, shape.kernel);
    shape.input_width = std::max(shape.input_width, shape.kernel);
    problem.position_lanes = false;
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

std::string check_kernel(const ConvolutionKernel& kernel, const KernelProblem& problem, bool* supported) {
  Random random(problem.seed);
  const ConvolutionShape& shape = problem.shape;
  const int height = shape.output_height();
  const int width = shape.output_width();
  const int images = problem.position_lanes ? 1 : kernel.lanes * problem.lane_blocks;
  const auto guard = problem.seed % 2 == 0 ? GuardedMemory::Guard::behind : GuardedMemory::Guard::before;

  const Levels levels = levels_for(random, kernel.weight_bits);
  const Values weights = make_weights(random, problem, kernel.weight_bits, levels);
  const ConvolutionLayer layer{shape, kernel.weight_bits, kernel.activation_bits, levels, weights};
  const bool supports = kernel.supports(layer);
  if (supported != nullptr) *supported = supports;
  if (!supports) return "";
  const PackedConvolution packed = kernel.pack(layer);
  const Values activations = make_activations(random, problem, kernel.activation_bits, images, weights);

  // The output stage.
  const auto pick = [&](const std::vector<ActivationFormat>& formats) {
    return formats[random() % formats.size()];
  };
  const int padded = (shape.output_channels + kChannelPadding - 1) / kChannelPadding * kChannelPadding;
  OutputStage stage;
  stage.range =
      problem.output_signed ? shortcut_range(problem.output_bits) : activation_range(problem.output_bits);
  const std::vector<float> scale =
      make_scales(random, weights, shape.filter_size(), kernel.activation_bits, stage.range, padded);
  std::vector<float> offset(static_cast<std::size_t>(padded));
  for (std::size_t c = 0; c < static_cast<std::size_t>(shape.output_channels); ++c) {
    offset[c] =
        std::uniform_real_distribution<float>(-0.5F, 0.5F)(random) * static_cast<float>(stage.range.highest);
  }
  stage.scale = scale.data();
  stage.offset = offset.data();
  stage.format = pick(formats_beside(kernel, problem.output_bits));
  const int stream_bits = kernel.weight_bits == 16 ? 16 : 8;
  Values residual;
  if (problem.residual != 0) {
    stage.residual_signed = problem.residual == 2;
    stage.residual_ratio = std::uniform_real_distribution<float>(0.3F, 1.5F)(random);
    stage.residual_format = pick(formats_beside(kernel, stream_bits));
    const QuantizedRange range =
        stage.residual_signed ? shortcut_range(stream_bits) : activation_range(stream_bits);
    residual.resize(shape.output_size() * static_cast<std::size_t>(images));
    for (std::int16_t& value : residual) {
      value = static_cast<std::int16_t>(uniform(random, range.lowest, range.highest));
    }
  }
  std::vector<std::uint8_t> byte_thresholds;
  if (problem.derived_bits != 0) {
    stage.derived_bits = problem.derived_bits;
    stage.derived_ratio = std::uniform_real_distribution<float>(0.2F, 2.0F)(random) *
                          static_cast<float>(activation_limit(problem.derived_bits)) / 255.0F;
    stage.derived_format = pick(formats_beside(kernel, problem.derived_bits));
    byte_thresholds = make_byte_thresholds(stage.derived_ratio, problem.derived_bits);
    stage.derived_thresholds = byte_thresholds.data();
  }
  std::vector<std::int16_t> sum_thresholds;
  if (problem.output_bits == 2 && problem.residual == 0 && random() % 4 != 0) {
    sum_thresholds = make_sum_thresholds(layer, scale, offset, padded);
    if (!sum_thresholds.empty()) stage.thresholds = sum_thresholds.data();
    stage.padded_channels = padded;
  }

  // Maps in memory, and what they must be afterwards.
  const Requantization requantization{
      std::span(scale).first(static_cast<std::size_t>(shape.output_channels)),
      std::span(offset).first(static_cast<std::size_t>(shape.output_channels)), stage.range,
      stage.residual_ratio};
  const Values outputs =
      kernel.weight_bits == 16
          ? expected_outputs<std::int64_t>(problem, activations, weights, requantization, residual, images)
          : expected_outputs<std::int32_t>(problem, activations, weights, requantization, residual, images);
  const auto map = [&](const ActivationFormat& format, int channels, int rows, int columns, int stride) {
    return LaneMap(problem, format, channels, rows, columns, kernel.lanes, stride, guard);
  };
  LaneMap input =
      map(kernel.input_format, shape.input_channels, shape.input_height, shape.input_width, shape.stride);
  input.store(activations, images);
  LaneMap output = map(stage.format, shape.output_channels, height, width, 1);
  LaneMap expected = map(stage.format, shape.output_channels, height, width, 1);
  expected.store(outputs, images);
  const ActivationFormat residual_format = stage.has_residual() ? stage.residual_format : kPlanar8;
  const ActivationFormat derived_format = stage.derived_bits != 0 ? stage.derived_format : kPlanar8;
  LaneMap residual_map = map(residual_format, shape.output_channels, height, width, 1);
  if (stage.has_residual()) residual_map.store(residual, images);
  LaneMap derived = map(derived_format, shape.output_channels, height, width, 1);
  LaneMap expected_derived = map(derived_format, shape.output_channels, height, width, 1);
  if (stage.derived_bits != 0) {
    Values x(outputs.size());
    reference_derive_input(outputs, stage.derived_ratio, stage.derived_bits, x);
    expected_derived.store(x, images);
  }
  // In place where the formats allow it, as the network does.
  const bool in_place = stage.has_residual() && stage.residual_format == stage.format && random() % 2 == 0;
  LaneMap& target = in_place ? residual_map : output;
  if (!in_place) std::memset(output.memory().data(), 0xEE, output.memory().size());
  std::memset(derived.memory().data(), 0xEE, derived.memory().size());

  // The calls.
  std::vector<int> channel_cuts{0, shape.output_channels};
  for (int i = 0; i < problem.split; ++i) {
    channel_cuts.push_back(uniform(random, 0, shape.output_channels / kernel.channel_block) *
                           kernel.channel_block);
  }
  std::sort(channel_cuts.begin(), channel_cuts.end());
  const auto run = [&](ConvolutionCall call) {
    for (std::size_t i = 0; i + 1 < channel_cuts.size(); ++i) {
      call.first_channel = channel_cuts[i];
      call.last_channel = channel_cuts[i + 1];
      if (call.first_channel < call.last_channel) kernel.run(packed, stage, call);
    }
  };
  if (problem.position_lanes) {
    const PlaneLayout& layout = target.plane();
    const std::vector<Tap> taps = plane_taps(shape, layout, kernel.input_format.bytes, input.phase_stride());
    const auto view = [&](LaneMap& of, const ActivationFormat& format, int block) {
      const std::ptrdiff_t step = std::ptrdiff_t{kernel.lanes} * format.bytes;
      return of.view(std::ptrdiff_t{layout.origin()} * format.bytes + block * step, step);
    };
    const int cut = problem.split > 0 ? uniform(random, 0, layout.blocks()) : 0;
    for (const auto& [first, last] : {std::pair{0, cut}, std::pair{cut, layout.blocks()}}) {
      if (first == last) continue;
      run({view(input, kernel.input_format, first), taps, last - first, 0, 0,
           view(target, stage.format, first), view(residual_map, residual_format, first),
           view(derived, derived_format, first)});
    }
    const auto clear = [&](LaneMap& of, const ActivationFormat& format) {
      for (const auto& [first, last] : {std::pair{0, cut}, std::pair{cut, layout.blocks()}}) {
        clear_pads(layout, of.memory().data(), of.groups(), of.group_size(), format.bytes, first, last);
      }
    };
    clear(target, stage.format);
    clear(derived, derived_format);
  } else {
    // Kernels that take whole rows, or several, compute them cut too.
    const bool whole_rows = kernel.prefers_whole_rows(packed) && random() % 4 != 0;
    const bool several_rows = kernel.takes_rows && random() % 4 != 0;
    const ConvolutionGeometry geometry = cut_into_runs(shape, input.strides(), whole_rows, several_rows);
    for (int block = 0; block < problem.lane_blocks; ++block) {
      for (const PositionRun& position_run : geometry.runs) {
        const auto view = [&](LaneMap& of, const ActivationFormat& format, int stride) {
          const MapStrides strides = of.strides();
          return of.view(
              position_run.row * stride * strides.row + position_run.column * stride * strides.column +
                  std::ptrdiff_t{block} * kernel.lanes * format.bytes,
              stride * (position_run.row_step * strides.row + position_run.column_step * strides.column),
              stride * strides.row);
        };
        run({view(input, kernel.input_format, shape.stride), geometry.tap_lists[position_run.taps],
             position_run.positions, 0, 0, view(target, stage.format, 1),
             view(residual_map, residual_format, 1), view(derived, derived_format, 1), position_run.whole_row,
             position_run.rows});
      }
    }
  }

  // The comparison: every byte, also those of channels and pads that do not exist.
  const auto compare = [&](LaneMap& found, LaneMap& wanted, const ActivationFormat& format,
                           const std::string& what) -> std::string {
    if (!found.memory().intact()) return describe(problem, what + ": bytes outside were written");
    if (std::memcmp(found.memory().data(), wanted.memory().data(), found.memory().size()) == 0) return "";
    const auto view_of = [&](LaneMap& of, int image, int row, int column) {
      return InputView(of.element(image, row, column));
    };
    for (int image = 0; image < images; ++image) {
      for (int row = 0; row < height; ++row) {
        for (int column = 0; column < width; ++column) {
          for (int c = 0; c < shape.output_channels; ++c) {
            const int is = load_activation(view_of(found, image, row, column), format, 0, c, 0);
            const int should = load_activation(view_of(wanted, image, row, column), format, 0, c, 0);
            if (is != should) {
              return describe(problem, what + ": image " + std::to_string(image) + ", row " +
                                           std::to_string(row) + ", column " + std::to_string(column) +
                                           ", channel " + std::to_string(c) + " is " + std::to_string(is) +
                                           ", expected " + std::to_string(should));
            }
          }
        }
      }
    }
    return describe(problem, what + ": bits of channels or pads that do not exist are not zero");
  };
  std::string difference = compare(target, expected, stage.format, "output");
  if (difference.empty() && stage.derived_bits != 0) {
    difference = compare(derived, expected_derived, stage.derived_format, "derived");
  }
  if (difference.empty() && !input.memory().intact())
    difference = describe(problem, "input: bytes outside were written");
  return difference;
}

}  // namespace nibble
