#include "graph/network/quantized_parameters.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

#include "graph/network/error.h"
#include "graph/network/tensor_file.h"
#include "tests/graph/network/random_network.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

using testing::HasSubstr;

NetworkDescription resnet_344() {
  return describe_network("resnet_344", 0, "");
}

void expect_equal(const QuantizedLayer& a, const QuantizedLayer& b) {
  EXPECT_EQ(a.weight_bits, b.weight_bits);
  EXPECT_EQ(a.levels, b.levels);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.weight_scale, b.weight_scale);
  EXPECT_EQ(a.bias, b.bias);
}

class QuantizedFile : public testing::Test {
 protected:
  std::filesystem::path path() const { return folder_.path() / "network.safetensors"; }

  /// Writes a 2-bit network (or another), lets `damage` change the file's tensors, and returns what reading
  /// says.
  std::string message_after(const std::function<void(TensorFile&)>& damage, int bits = 2) {
    write_quantized(path(), random_network(resnet_344(), bits, bits, 1));
    TensorFile file = read_tensor_file(path());
    damage(file);
    write_tensor_file(path(), file);
    try {
      read_quantized(path());
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr(path().string()));
      return error.what();
    }
    return "(accepted)";
  }

  TemporaryFolder folder_;
};

struct Width {
  int weight_bits;
  int activation_bits;
  std::uintmax_t largest_file;
};

class QuantizedFileOfWidth : public QuantizedFile, public testing::WithParamInterface<Width> {};

INSTANTIATE_TEST_SUITE_P(Widths, QuantizedFileOfWidth,
                         testing::Values(Width{16, 16, 790'000}, Width{8, 8, 405'000}, Width{4, 4, 212'000},
                                         Width{2, 2, 116'000}, Width{2, 8, 116'000}, Width{4, 8, 212'000}));

TEST_P(QuantizedFileOfWidth, ReturnsWhatWasWritten) {
  QuantizedNetwork written =
      random_network(resnet_344(), GetParam().weight_bits, GetParam().activation_bits, 7);
  // As much text as quant writes.
  for (const char* key : {"source_sha256", "calibration_sha256"}) {
    written.parameters.provenance[key] = std::string(64, 'a');
  }
  for (const char* key : {"calibration_seed", "calibration_count", "observer", "method"}) {
    written.parameters.provenance[key] = "12345678";
  }
  write_quantized(path(), written);
  EXPECT_LE(std::filesystem::file_size(path()), GetParam().largest_file);

  const QuantizedNetwork read = read_quantized(path());
  EXPECT_EQ(read.network, written.network);
  const QuantizedParameters& a = read.parameters;
  const QuantizedParameters& b = written.parameters;
  EXPECT_EQ(a.weight_bits, b.weight_bits);
  EXPECT_EQ(a.activation_bits, b.activation_bits);
  EXPECT_EQ(a.provenance, b.provenance);
  EXPECT_EQ(a.first_output_scale, b.first_output_scale);
  ASSERT_EQ(a.convolutions.size(), b.convolutions.size());
  for (std::size_t i = 0; i < a.convolutions.size(); ++i) expect_equal(a.convolutions[i], b.convolutions[i]);
  expect_equal(a.linear, b.linear);
  ASSERT_EQ(a.blocks.size(), b.blocks.size());
  for (std::size_t i = 0; i < a.blocks.size(); ++i) {
    EXPECT_EQ(a.blocks[i].input_bits, b.blocks[i].input_bits);
    EXPECT_EQ(a.blocks[i].middle_bits, b.blocks[i].middle_bits);
    EXPECT_EQ(a.blocks[i].input_scale, b.blocks[i].input_scale);
    EXPECT_EQ(a.blocks[i].middle_scale, b.blocks[i].middle_scale);
    EXPECT_EQ(a.blocks[i].shortcut_scale, b.blocks[i].shortcut_scale);
    EXPECT_EQ(a.blocks[i].output_scale, b.blocks[i].output_scale);
  }
}

TEST_F(QuantizedFile, HoldsEveryVariant) {
  for (const char* shortcut : {"A", "B"}) {
    for (const int depth : {20, 56}) {
      const QuantizedNetwork written = random_network(describe_network("he", depth, shortcut), 4, 4, 2);
      write_quantized(path(), written);
      EXPECT_EQ(read_quantized(path()).network, written.network);
    }
  }
}

TEST_F(QuantizedFile, MayHaveLayersOfDifferentWidths) {
  QuantizedNetwork written = random_network(resnet_344(), 2, 2, 3);
  const QuantizedNetwork wider = random_network(resnet_344(), 8, 8, 3);
  written.parameters.convolutions[5] = wider.parameters.convolutions[5];
  written.parameters.blocks[3].middle_bits = 8;
  write_quantized(path(), written);
  expect_equal(read_quantized(path()).parameters.convolutions[5], wider.parameters.convolutions[5]);
}

TEST_F(QuantizedFile, RefusesImpossibleIntegers) {
  const auto set_byte = [](const char* tensor, std::size_t index, unsigned value) {
    return [=](TensorFile& file) { file.tensors.at(tensor).bytes.at(index) = static_cast<std::byte>(value); };
  };
  EXPECT_THAT(message_after(set_byte("conv1.weight", 3, 0x80)),
              HasSubstr("'conv1.weight' has the value -128 at element 3, expected -127 to 127"));
  EXPECT_THAT(message_after(set_byte("blocks.0.conv1.weight", 1, 0x88), 4),
              HasSubstr("'blocks.0.conv1.weight' has the value -8 at element 2, expected -7 to 7"));
  EXPECT_THAT(message_after(
                  [](TensorFile& file) {
                    auto& bytes = file.tensors.at("linear.weight").bytes;
                    bytes[0] = std::byte{0};
                    bytes[1] = std::byte{0x80};
                  },
                  16),
              HasSubstr("'linear.weight' has the value -32768 at element 0"));
}

TEST_F(QuantizedFile, RefusesLevelsThatAreNotSymmetric) {
  const auto levels = [](std::vector<std::int16_t> first) {
    return [first](TensorFile& file) {
      StoredTensor& tensor = file.tensors.at("levels");
      std::vector<std::int16_t> all(tensor.bytes.size() / 2);
      std::memcpy(all.data(), tensor.bytes.data(), tensor.bytes.size());
      std::copy(first.begin(), first.end(), all.begin());
      file.set<std::int16_t>("levels", std::vector<std::int64_t>{tensor.shape}, all);
    };
  };
  for (const std::vector<std::int16_t>& wrong : {std::vector<std::int16_t>{-3, -1, 1, 4},
                                                 {-3, -2, 1, 3},
                                                 {-1, -3, 3, 1},
                                                 {-3, 0, 0, 3},
                                                 {-2, -2, 2, 2},
                                                 {3, 1, -1, -3},
                                                 {-200, -1, 1, 200}}) {
    EXPECT_THAT(message_after(levels(wrong)), HasSubstr("the levels of 'blocks.0.conv1' are"));
  }
  EXPECT_EQ(message_after(levels({-4, -1, 1, 4})), "(accepted)");
}

TEST_F(QuantizedFile, RefusesImpossibleScales) {
  const auto set_scale = [](std::size_t index, float value) {
    return
        [=](TensorFile& file) { std::memcpy(file.tensors.at("scales").bytes.data() + 4 * index, &value, 4); };
  };
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_THAT(message_after(set_scale(0, 0.0F)), HasSubstr("the first convolution's output is 0"));
  EXPECT_THAT(message_after(set_scale(1, -1.0F)), HasSubstr("scale of block 0's input is -1"));
  EXPECT_THAT(message_after(set_scale(4, std::nanf(""))), HasSubstr("tensor 'scales' has NaN or infinity"));
  EXPECT_THAT(message_after(set_scale(4, infinity)), HasSubstr("tensor 'scales' has NaN or infinity"));
  EXPECT_THAT(message_after(set_scale(45, -0.5F)), HasSubstr("'conv1', output channel 0, is -0.5"));
  EXPECT_THAT(message_after(set_scale(0, 1e-42F)), HasSubstr("beyond float32"));
  EXPECT_THAT(message_after(set_scale(0, 3e38F)), HasSubstr("beyond float32"));  // S would be denormal
  EXPECT_THAT(message_after(set_scale(1, 0.5F), 8), HasSubstr("the input of block 0 is the stream itself"));
}

TEST_F(QuantizedFile, RefusesImpossibleWidths) {
  const auto set_width = [](std::size_t index, int value) {
    return
        [=](TensorFile& file) { file.tensors.at("widths").bytes.at(index) = static_cast<std::byte>(value); };
  };
  EXPECT_THAT(message_after(set_width(1, 5), 8), HasSubstr("5 bits for 'blocks.0.conv1'"));
  EXPECT_THAT(message_after(set_width(26, 3), 8), HasSubstr("activations of block 0 have 3 bits"));
  EXPECT_THAT(message_after(set_width(27, 16), 8),
              HasSubstr("activations of block 0 have 16 bits, expected 8, 4 or 2"));
  EXPECT_THAT(message_after(set_width(27, 8), 16),
              HasSubstr("activations of block 0 have 8 bits, expected 16"));
  EXPECT_THAT(message_after([](TensorFile& file) { file.metadata["weight_bits"] = "7"; }),
              HasSubstr("'weight_bits' is '7', expected 16, 8, 4 or 2"));
  EXPECT_THAT(message_after([](TensorFile& file) { file.metadata.erase("activation_bits"); }),
              HasSubstr("'activation_bits' is missing"));
}

TEST_F(QuantizedFile, RefusesOtherTensors) {
  EXPECT_THAT(message_after([](TensorFile& file) { file.tensors.erase("biases"); }),
              HasSubstr("tensor 'biases' is missing"));
  EXPECT_THAT(message_after([](TensorFile& file) { file.tensors["extra"] = file.tensors["biases"]; }),
              HasSubstr("tensors, expected"));
  EXPECT_THAT(message_after([](TensorFile& file) { file.metadata["format"] = "nibble-float-1"; }),
              HasSubstr("expected 'nibble-integer-1'"));
  EXPECT_THAT(message_after([](TensorFile& file) {
                file.metadata["variant"] = "he";
                file.metadata["depth"] = "20";
                file.metadata["shortcut"] = "A";
              }),
              HasSubstr("expected"));
}

TEST_F(QuantizedFile, RefusesFilesThatAreDamagedAnywhere) {
  write_quantized(path(), random_network(resnet_344(), 2, 2, 1));
  std::ifstream stream(path(), std::ios::binary);
  const std::vector<char> whole((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const auto expect_refused = [&](const std::vector<char>& bytes, const std::string& what) {
    std::ofstream(path(), std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    EXPECT_THROW(read_quantized(path()), InputError) << what;
  };
  for (std::size_t length = 0; length < whole.size(); length += 1 + whole.size() / 37) {
    expect_refused({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length)},
                   "cut to " + std::to_string(length));
  }
  for (std::size_t at = 0; at < whole.size(); at += 1 + whole.size() / 101) {
    std::vector<char> flipped = whole;
    flipped[at] = static_cast<char>(flipped[at] ^ (1 << (at % 8)));
    expect_refused(flipped, "bit flipped at " + std::to_string(at));
  }
  std::vector<char> longer = whole;
  longer.push_back(0);
  expect_refused(longer, "one byte longer");
}

TEST_F(QuantizedFile, IsNotWrittenWithImpossibleIntegers) {
  QuantizedNetwork network = random_network(resnet_344(), 4, 4, 1);
  network.parameters.convolutions[3].weights[9] = 8;
  EXPECT_THROW(write_quantized(path(), network), RunError);
  EXPECT_FALSE(std::filesystem::exists(path()));
}

TEST(MacFraction, IsOfTheNominalWidth) {
  EXPECT_EQ(nominal_mac_fraction(random_network(resnet_344(), 8, 8, 1)), 1.0);
  QuantizedNetwork narrow = random_network(resnet_344(), 2, 2, 1);
  const double first = 16.0 * 3 * 94 * 94;  // 94 = 31 + 32 + 31 valid taps in each direction
  const auto total = static_cast<double>(narrow.network.multiply_accumulates());
  // The pixels have 8 bits in a 16-bit network too.
  EXPECT_DOUBLE_EQ(nominal_mac_fraction(random_network(resnet_344(), 16, 16, 1)), (total - first) / total);
  EXPECT_DOUBLE_EQ(nominal_mac_fraction(narrow), (total - first - 640) / total);
  EXPECT_GE(nominal_mac_fraction(narrow), 0.98);
  narrow.parameters.blocks[0].middle_bits = 8;
  const double conv2 = 16.0 * 16 * 94 * 94;
  EXPECT_DOUBLE_EQ(nominal_mac_fraction(narrow), (total - first - 640 - conv2) / total);
}

}  // namespace
}  // namespace nibble
