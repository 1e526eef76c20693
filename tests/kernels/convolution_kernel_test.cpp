#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/registry.h"
#include "tests/kernels/kernel_problem.h"
#include "tests/kernels/tested_kernels.h"

namespace nibble {
namespace {

class EveryKernel : public testing::TestWithParam<ConvolutionKernel> {};

INSTANTIATE_TEST_SUITE_P(Registry, EveryKernel, testing::ValuesIn(tested_kernels()),
                         [](const auto& row) { return std::string(row.param.name); });

/// The convolutions of every network variant but the first: channels in and out, kernel, stride, map.
constexpr ConvolutionShape kLayers[] = {
    {16, 16, 3, 1, 1, 32, 32}, {16, 32, 3, 2, 1, 32, 32}, {16, 32, 1, 2, 0, 32, 32},
    {32, 32, 3, 1, 1, 16, 16}, {32, 64, 3, 2, 1, 16, 16}, {32, 64, 1, 2, 0, 16, 16},
    {64, 64, 3, 1, 1, 8, 8},
};
/// The first one: pixels within their border in tiles, padded as a single image.
constexpr ConvolutionShape kFirstInTiles{3, 16, 3, 1, 0, 34, 34};
constexpr ConvolutionShape kFirstOfOne{3, 16, 3, 1, 1, 32, 32};

/// Whether `kernel` may be a network's first: pixels are 8 bits, and so are its weights at least.
bool reads_pixels(const ConvolutionKernel& kernel) {
  return kernel.activation_bits == 8 && kernel.weight_bits >= 8;
}

TEST_P(EveryKernel, EqualsTheReferenceOnEveryLayer) {
  const ConvolutionKernel& kernel = GetParam();
  for (const ConvolutionShape& shape : kLayers) {
    for (int lanes = 0; lanes < kLaneKinds; ++lanes) {
      for (int data = 0; data < kDataKinds; ++data) {
        KernelProblem problem = random_problem(kernel, 40 + static_cast<std::uint64_t>(data));
        problem.shape = shape;
        problem.lanes = static_cast<Lanes>(lanes);
        problem.lane_blocks = 1;
        problem.data = static_cast<Data>(data);
        problem.far_levels = false;
        ASSERT_EQ(check_kernel(kernel, problem), "");
      }
    }
  }
}

TEST_P(EveryKernel, EqualsTheReferenceOnTheFirstLayer) {
  const ConvolutionKernel& kernel = GetParam();
  if (!reads_pixels(kernel)) return;
  for (int lanes = 0; lanes < kLaneKinds; ++lanes) {
    for (int data = 0; data < kDataKinds; ++data) {
      KernelProblem problem = random_problem(kernel, 60 + static_cast<std::uint64_t>(data));
      problem.lanes = static_cast<Lanes>(lanes);
      problem.shape = problem.lanes == Lanes::images ? kFirstInTiles : kFirstOfOne;
      problem.lane_blocks = 1;
      problem.data = static_cast<Data>(data);
      ASSERT_EQ(check_kernel(kernel, problem), "");
    }
  }
}

TEST_P(EveryKernel, EqualsTheReferenceForEveryNumberOfChannels) {
  const ConvolutionKernel& kernel = GetParam();
  for (int channels = 1; channels <= 67; ++channels) {
    for (const bool of_input : {true, false}) {
      KernelProblem problem = random_problem(kernel, 1000 + static_cast<std::uint64_t>(channels));
      (of_input ? problem.shape.input_channels : problem.shape.output_channels) = channels;
      (of_input ? problem.shape.output_channels : problem.shape.input_channels) = 16;
      problem.far_levels = false;
      ASSERT_EQ(check_kernel(kernel, problem), "");
    }
  }
}

/// More output channels than kernels prepare at once, in up to three calls of several register blocks of
/// positions; where the widths allow it, 2-bit outputs or derived inputs, which may have three channels a
/// group.
TEST_P(EveryKernel, EqualsTheReferenceForManyOutputChannels) {
  const ConvolutionKernel& kernel = GetParam();
  for (int seed = 0; seed < 80; ++seed) {
    KernelProblem problem = random_problem(kernel, 3000 + static_cast<std::uint64_t>(seed));
    problem.shape.input_channels = 5;
    problem.shape.output_channels = 140 + seed / 4;
    problem.shape.input_height = 4;
    problem.shape.input_width = 8;
    problem.split = seed % 3;
    problem.far_levels = false;
    if (kernel.weight_bits != 16) {
      problem.output_bits = seed % 2 == 0 ? 2 : 8;
      problem.derived_bits = seed % 2 == 0 ? 0 : 2;
      problem.residual = seed % 2 == 0 ? 0 : problem.residual;
      problem.output_signed = false;
    }
    ASSERT_EQ(check_kernel(kernel, problem), "");
  }
}

/// Rows longer than what kernels prepare of one, on both sides of 64 positions inside, and more input
/// channels than a byte holds the activations of, in calls of one or several rows.
TEST_P(EveryKernel, EqualsTheReferenceOnLongRowsAndManyInputChannels) {
  const ConvolutionKernel& kernel = GetParam();
  struct Size {
    int input_channels;
    int output_channels;
    int height;
    int width;
  };
  constexpr Size kSizes[] = {{16, 16, 4, 65}, {7, 20, 5, 66}, {7, 48, 4, 67},
                             {16, 16, 2, 80}, {91, 48, 4, 5}, {100, 16, 3, 6}};
  for (const Size& size : kSizes) {
    for (int data = 0; data < kDataKinds; ++data) {
      for (const int stride : {1, 2}) {
        KernelProblem problem = random_problem(kernel, 4000 + static_cast<std::uint64_t>(data));
        problem.shape = {size.input_channels, size.output_channels, 3, stride, 1, size.height, size.width};
        problem.lanes = Lanes::images;
        problem.lane_blocks = 1;
        problem.data = static_cast<Data>(data);
        problem.far_levels = false;
        ASSERT_EQ(check_kernel(kernel, problem), "");
      }
    }
  }
}

TEST_P(EveryKernel, EqualsTheReferenceForEveryMapSize) {
  const ConvolutionKernel& kernel = GetParam();
  for (int size = 1; size <= 33; ++size) {
    for (const bool of_height : {true, false}) {
      KernelProblem problem = random_problem(kernel, 2000 + static_cast<std::uint64_t>(size));
      problem.shape.input_channels = 12 + size % 3;  // groups of three leave none, one or two over
      problem.shape.output_channels = 8;
      problem.shape.padding = problem.shape.kernel / 2;
      (of_height ? problem.shape.input_height : problem.shape.input_width) = size;
      if (problem.lanes != Lanes::images && size % 2 == 1) problem.shape.stride = 1;
      problem.far_levels = false;
      ASSERT_EQ(check_kernel(kernel, problem), "");
    }
  }
}

TEST_P(EveryKernel, EqualsTheReferenceOnRandomProblems) {
  const ConvolutionKernel& kernel = GetParam();
  const int problems = random_problems(kernel);
  int seed = 0;
  for (int supported = 0; supported < problems; ++seed) {
    bool is_supported = false;
    const KernelProblem problem = random_problem(kernel, static_cast<std::uint64_t>(seed));
    ASSERT_EQ(check_kernel(kernel, problem, &is_supported), "");
    supported += is_supported;
    ASSERT_LE(seed, 2 * problems) << "most layers are refused";
  }
  // Only levels that are far apart may be refused.
  if (kernel.weight_bits != 2) {
    EXPECT_EQ(seed, problems);
  }
}

/// Every weight times every activation, each product alone in a sum: output channels are the weights,
/// positions the activations.
TEST_P(EveryKernel, MultipliesEveryPairOfOperands) {
  const ConvolutionKernel& kernel = GetParam();
  if (kernel.weight_bits == 16) return;  // 2^31 pairs; the extremes are in the other tests
  const Levels levels = kDefaultLevels;
  const int activations = activation_limit(kernel.activation_bits) + 1;
  std::vector<std::int16_t> values;
  for (int value = -weight_limit(kernel.weight_bits); value <= weight_limit(kernel.weight_bits); ++value) {
    if (representable(value, kernel.weight_bits, levels)) values.push_back(static_cast<std::int16_t>(value));
  }
  const auto channels = static_cast<int>(values.size());
  const int padded = (channels + kChannelPadding - 1) / kChannelPadding * kChannelPadding;
  // Products are up to 255 * 127: a shift keeps them in s8, rounded as the formula says.
  const float scale = kernel.weight_bits == 8 && kernel.activation_bits == 8 ? 1.0F / 256 : 1.0F / 16;
  const std::vector<float> scales(static_cast<std::size_t>(padded), scale);
  const std::vector<float> offsets(static_cast<std::size_t>(padded), 0.0F);
  const int group_channels = kernel.input_format.channels;
  for (int place = 0; place < group_channels; ++place) {  // of the one input channel that is not zero
    const ConvolutionShape shape{group_channels, channels, 1, 1, 0, 1, activations};
    std::vector<std::int16_t> weights;
    for (const std::int16_t value : values) {
      for (int i = 0; i < group_channels; ++i) weights.push_back(i == place ? value : values.back());
    }
    const ConvolutionLayer layer{shape, kernel.weight_bits, kernel.activation_bits, levels, weights};
    ASSERT_TRUE(kernel.supports(layer));
    const PackedConvolution packed = kernel.pack(layer);
    OutputStage stage;
    stage.scale = scales.data();
    stage.offset = offsets.data();
    stage.range = shortcut_range(8);
    stage.format = kPlanar8;
    const std::ptrdiff_t input_bytes = std::ptrdiff_t{kernel.lanes} * kernel.input_format.bytes;
    const std::ptrdiff_t output_bytes = std::ptrdiff_t{channels} * kernel.lanes;
    std::vector<std::uint8_t> input(static_cast<std::size_t>(activations * input_bytes));
    std::vector<std::uint8_t> output(static_cast<std::size_t>(activations * output_bytes));
    for (int a = 0; a < activations; ++a) {
      for (int lane = 0; lane < kernel.lanes; ++lane) {
        for (int i = 0; i < group_channels; ++i) {
          store_activation({input.data(), input_bytes, 0}, kernel.input_format, a, i, lane,
                           i == place ? a : 0);
        }
      }
    }
    const Tap tap{0, 0};
    kernel.run(packed, stage,
               {{input.data(), input_bytes, 0},
                {&tap, 1},
                activations,
                0,
                channels,
                {output.data(), output_bytes, kernel.lanes},
                {},
                {}});
    for (int a = 0; a < activations; ++a) {
      for (int o = 0; o < channels; ++o) {
        const int weight = values[static_cast<std::size_t>(o)];
        const int expected = requantize(weight * a, scale, 0.0F, shortcut_range(8));
        for (int lane = 0; lane < kernel.lanes; ++lane) {
          const auto found = static_cast<std::int8_t>(
              output[static_cast<std::size_t>(a * output_bytes + o * kernel.lanes + lane)]);
          ASSERT_EQ(found, expected) << weight << " * " << a << ", lane " << lane << ", place " << place;
        }
      }
    }
  }
}

/// The full grid: run by `ctest -L nightly`.
class NightlyGrid : public testing::TestWithParam<ConvolutionKernel> {};

INSTANTIATE_TEST_SUITE_P(Registry, NightlyGrid, testing::ValuesIn(tested_kernels()),
                         [](const auto& row) { return std::string(row.param.name); });

TEST_P(NightlyGrid, EqualsTheReferenceForEveryShape) {
  const ConvolutionKernel& kernel = GetParam();
  const std::vector<int> channels = {1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 33, 48, 63, 64, 67};
  std::uint64_t seed = 1;
  for (const int inputs : channels) {
    for (const int outputs : channels) {
      for (const int size : {1, 2, 3, 5, 8, 16, 33}) {
        if (size > 8 && inputs * outputs > 600) continue;
        for (int kind = 0; kind < 4; ++kind) {
          KernelProblem problem = random_problem(kernel, ++seed);
          ConvolutionShape& shape = problem.shape;
          shape = {inputs, outputs, kind % 2 == 0 ? 3 : 1, kind / 2 + 1, kind % 2 == 0 ? 1 : 0, size, size};
          if (problem.lanes != Lanes::images && shape.stride == 2)
            shape.input_height = shape.input_width = 2 * size;
          problem.far_levels = false;
          ASSERT_EQ(check_kernel(kernel, problem), "");
        }
      }
    }
  }
}

/// Or, where the environment names none, any.
TEST(OneProblem, IsTheOneNamedByTheEnvironment) {
  const std::vector<ConvolutionKernel> kernels = tested_kernels();
  KernelProblem any = random_problem(kernels.front(), 7);
  any.far_levels = false;
  const char* text = std::getenv("NIBBLE_KERNEL_PROBLEM");
  const KernelProblem problem = parse_problem(text != nullptr ? text : any.text());
  const auto kernel = std::find_if(kernels.begin(), kernels.end(), [&](const ConvolutionKernel& candidate) {
    return candidate.name == problem.kernel;
  });
  ASSERT_NE(kernel, kernels.end()) << "this machine does not test " << problem.kernel;
  EXPECT_EQ(check_kernel(*kernel, problem), "");
}

TEST(Registry, ChoosesTheReferenceUnderItsCap) {
  const std::vector<std::int16_t> weights(16 * 16 * 9, 1);
  for (const ConvolutionKernel& kernel : convolution_kernels()) {
    const ConvolutionLayer layer{
        {16, 16, 3, 1, 1, 8, 8}, kernel.weight_bits, kernel.activation_bits, kDefaultLevels, weights};
    EXPECT_EQ(choose_kernel(layer, InstructionSet::reference).instruction_set, InstructionSet::reference);
    const ConvolutionKernel& best = choose_kernel(layer, detected_instruction_set());
    EXPECT_EQ(best.weight_bits, kernel.weight_bits);
    EXPECT_EQ(best.activation_bits, kernel.activation_bits);
  }
}

/// The network's own layers get the kernel of their widths that the instruction set's file is for.
TEST(Registry, ChoosesTheKernelOfEachWidthAndInstructionSet) {
  const auto expected = [](int weight_bits, int activation_bits, InstructionSet limit) {
    const bool is_int2 = weight_bits == 2 && activation_bits == 2;
    std::string name = "int" + std::to_string(weight_bits);
    if (activation_bits != weight_bits) name += "a" + std::to_string(activation_bits);
    if (limit == InstructionSet::avx2 || weight_bits == 16) return name + "_avx2";
    if (limit == InstructionSet::avx512_amx) return name + "_amx";
    if (!is_int2) return name + "_vnni";
    return name + (limit == InstructionSet::avx512_vbmi ? "_vbmi" : "_avx2");
  };
  for (const InstructionSet limit : {InstructionSet::avx2, InstructionSet::avx512_vnni,
                                     InstructionSet::avx512_vbmi, InstructionSet::avx512_amx}) {
    if (limit > detected_instruction_set()) continue;
    for (const ConvolutionKernel& widths : convolution_kernels()) {
      for (const ConvolutionShape& shape : kLayers) {
        const std::vector<std::int16_t> weights(
            shape.filter_size() * static_cast<std::size_t>(shape.output_channels), 1);
        const ConvolutionLayer layer{shape, widths.weight_bits, widths.activation_bits, kDefaultLevels,
                                     weights};
        EXPECT_EQ(choose_kernel(layer, limit).name,
                  expected(widths.weight_bits, widths.activation_bits, limit));
      }
    }
  }
}

TEST(Registry, NamesEachKernelOnce) {
  std::vector<std::string_view> names;
  for (const ConvolutionKernel& kernel : convolution_kernels()) names.push_back(kernel.name);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

}  // namespace

void PrintTo(const ConvolutionKernel& kernel, std::ostream* out) {
  *out << kernel.name;
}

}  // namespace nibble
