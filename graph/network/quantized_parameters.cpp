#include "graph/network/quantized_parameters.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <span>

#include "graph/network/error.h"
#include "graph/network/float_parameters.h"
#include "graph/network/tensor_file.h"
#include "kernels/packed.h"
#include "kernels/requantize.h"

namespace nibble {
namespace {

// Tensors of a file, beside "<convolution>.weight" and "linear.weight" (U8, packed):
//   "widths"  U8  [weight bits of each convolution, of the linear layer; input and middle bits of each block]
//   "levels"  I16 [2-bit layers, 4], in the order of execution
//   "scales"  F32 [first output; input, middle, shortcut, output of each block; then each layer's channels]
//   "biases"  F32 [each layer's channels]
constexpr std::string_view kProvenance = "provenance.";

using Shape1 = std::array<std::int64_t, 1>;
using Shape2 = std::array<std::int64_t, 2>;

/// A layer's name and sizes, the same for convolutions and the linear layer (which comes last).
struct LayerShape {
  std::string name;
  std::size_t output_channels;
  std::size_t weight_count;
};

std::vector<LayerShape> layer_shapes(const NetworkDescription& network) {
  std::vector<LayerShape> shapes;
  for (const Convolution& convolution : network.convolutions) {
    shapes.push_back({convolution.name, static_cast<std::size_t>(convolution.output_channels),
                      static_cast<std::size_t>(convolution.weight_count())});
  }
  const auto classes = static_cast<std::size_t>(network.classes);
  shapes.push_back({"linear", classes, classes * static_cast<std::size_t>(network.feature_channels)});
  return shapes;
}

/// The layers of `parameters` in the order of layer_shapes().
std::vector<const QuantizedLayer*> layers_of(const QuantizedParameters& parameters) {
  std::vector<const QuantizedLayer*> layers;
  for (const QuantizedLayer& layer : parameters.convolutions) layers.push_back(&layer);
  layers.push_back(&parameters.linear);
  return layers;
}

std::size_t scale_count(const std::vector<LayerShape>& shapes, std::size_t blocks) {
  std::size_t count = 1 + 4 * blocks;
  for (const LayerShape& shape : shapes) count += shape.output_channels;
  return count;
}

/// What is wrong with a network, thrown without the file's name, which the caller puts in front.
[[noreturn]] void refuse(const std::string& what) {
  throw InputError(what + "; quantize the network again");
}

bool is_width(int bits) {
  return bits == 16 || bits == 8 || bits == 4 || bits == 2;
}

void check_scale(float scale, const std::string& what) {
  if (!(scale > 0.0F) || !std::isfinite(scale)) {
    refuse("the scale of " + what + " is " + std::to_string(scale) + ", expected a finite number above 0");
  }
}

void check_widths(const QuantizedNetwork& quantized, const std::vector<LayerShape>& shapes) {
  const QuantizedParameters& parameters = quantized.parameters;
  if (!is_width(parameters.weight_bits) || !is_width(parameters.activation_bits)) {
    refuse("the nominal widths are " + std::to_string(parameters.weight_bits) + " and " +
           std::to_string(parameters.activation_bits) + " bits, expected 16, 8, 4 or 2");
  }
  const bool wide = parameters.weight_bits == 16;
  const auto fits = [&](int bits) { return is_width(bits) && (bits == 16) == wide; };
  const char* expected = wide ? "16" : "8, 4 or 2";
  if (!fits(parameters.activation_bits)) {
    refuse("the nominal activation width is " + std::to_string(parameters.activation_bits) +
           " bits beside weights of " + std::to_string(parameters.weight_bits) + " bits, expected " +
           expected);
  }
  const std::vector<const QuantizedLayer*> layers = layers_of(parameters);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const bool end_layer = i == 0 || i + 1 == layers.size();
    const int bits = layers[i]->weight_bits;
    if (!fits(bits) || (end_layer && !wide && bits != 8)) {
      refuse("the weights of '" + shapes[i].name + "' have " + std::to_string(bits) + " bits, expected " +
             (end_layer && !wide ? "8" : expected));
    }
  }
  for (std::size_t i = 0; i < parameters.blocks.size(); ++i) {
    const QuantizedBlock& block = parameters.blocks[i];
    for (const int bits : {block.input_bits, block.middle_bits}) {
      if (!fits(bits)) {
        refuse("the activations of block " + std::to_string(i) + " have " + std::to_string(bits) +
               " bits, expected " + expected);
      }
    }
  }
}

void check_layer(const QuantizedLayer& layer, const LayerShape& shape) {
  if (layer.weights.size() != shape.weight_count || layer.weight_scale.size() != shape.output_channels ||
      layer.bias.size() != shape.output_channels) {
    refuse("'" + shape.name + "' has " + std::to_string(layer.weights.size()) + " weights, " +
           std::to_string(layer.weight_scale.size()) + " scales and " + std::to_string(layer.bias.size()) +
           " biases, expected " + std::to_string(shape.weight_count) + ", " +
           std::to_string(shape.output_channels) + " and " + std::to_string(shape.output_channels));
  }
  Levels levels{};
  if (layer.weight_bits == 2) {
    const std::vector<std::int16_t>& l = layer.levels;
    if (l.size() != 4 || l[0] != -l[3] || l[1] != -l[2] || l[2] <= 0 || l[3] <= l[2] ||
        l[3] > weight_limit(2)) {
      std::string found;
      for (const std::int16_t level : l) found += " " + std::to_string(level);
      refuse("the levels of '" + shape.name + "' are" + found +
             ", expected four symmetric ones, -b -a a b with 0 < a < b <= 127");
    }
    std::copy(l.begin(), l.end(), levels.begin());
  } else if (!layer.levels.empty()) {
    refuse("'" + shape.name + "' has levels although its weights have " + std::to_string(layer.weight_bits) +
           " bits, expected levels at 2 bits only");
  }
  for (std::size_t i = 0; i < layer.weights.size(); ++i) {
    if (!representable(layer.weights[i], layer.weight_bits, levels)) {
      refuse("tensor '" + shape.name + ".weight' has the value " + std::to_string(layer.weights[i]) +
             " at element " + std::to_string(i) +
             (layer.weight_bits == 2 ? std::string(", expected one of its levels")
                                     : ", expected -" + std::to_string(weight_limit(layer.weight_bits)) +
                                           " to " + std::to_string(weight_limit(layer.weight_bits))));
    }
  }
  for (std::size_t c = 0; c < shape.output_channels; ++c) {
    check_scale(layer.weight_scale[c], "'" + shape.name + "', output channel " + std::to_string(c) + ",");
    if (!std::isfinite(layer.bias[c])) {
      refuse("the bias of '" + shape.name + "', output channel " + std::to_string(c) +
             ", is not finite, expected a number");
    }
  }
}

/// S and B are made from the scales; a ratio that overflows float32 would make infinities out of integers.
/// Kernels that filter lines have 8 times the sums and an eighth of S, which must round nothing.
void check_factors(const QuantizedLayer& layer, const LayerShape& shape, float input_scale,
                   float output_scale) {
  constexpr float kSmallest = 8 * std::numeric_limits<float>::min();
  for (std::size_t c = 0; c < shape.output_channels; ++c) {
    const float scale = requantize_scale(input_scale, layer.weight_scale[c], output_scale);
    if (!std::isfinite(scale) || scale < kSmallest ||
        !std::isfinite(scale_ratio(layer.bias[c], output_scale))) {
      refuse("the scales of '" + shape.name + "', output channel " + std::to_string(c) +
             ", give a factor beyond float32, expected scales of like magnitude");
    }
  }
}

void check_ratio(float numerator, float denominator, const std::string& what) {
  if (!std::isfinite(scale_ratio(numerator, denominator))) {
    refuse("the scales of " + what + " have a ratio beyond float32, expected scales of like magnitude");
  }
}

void check_blocks(const QuantizedNetwork& quantized, const std::vector<LayerShape>& shapes) {
  const QuantizedParameters& parameters = quantized.parameters;
  check_scale(parameters.first_output_scale, "the first convolution's output");
  check_factors(parameters.convolutions[0], shapes[0], 1.0F, parameters.first_output_scale);
  float stream_scale = parameters.first_output_scale;
  for (std::size_t i = 0; i < parameters.blocks.size(); ++i) {
    const QuantizedBlock& block = parameters.blocks[i];
    const Block& shape = quantized.network.blocks[i];
    const std::string name = "block " + std::to_string(i);
    check_scale(block.input_scale, name + "'s input");
    check_scale(block.middle_scale, name + "'s middle");
    check_scale(block.shortcut_scale, name + "'s shortcut");
    check_scale(block.output_scale, name + "'s output");
    if (block.input_bits >= 8 && block.input_scale != stream_scale) {
      refuse("the input of " + name + " is the stream itself at " + std::to_string(block.input_bits) +
             " bits, so its scale is expected to be " + std::to_string(stream_scale) + ", found " +
             std::to_string(block.input_scale));
    }
    check_ratio(stream_scale, block.input_scale, name + "'s input");
    const auto conv1 = static_cast<std::size_t>(shape.conv1);
    const auto conv2 = static_cast<std::size_t>(shape.conv2);
    check_factors(parameters.convolutions[conv1], shapes[conv1], block.input_scale, block.middle_scale);
    check_factors(parameters.convolutions[conv2], shapes[conv2], block.middle_scale, block.output_scale);
    if (shape.shortcut == Shortcut::projection) {
      const auto projection = static_cast<std::size_t>(shape.projection);
      check_factors(parameters.convolutions[projection], shapes[projection], block.input_scale,
                    block.shortcut_scale);
      check_ratio(block.shortcut_scale, block.output_scale, name + "'s shortcut");
    } else {
      check_ratio(stream_scale, block.output_scale, name + "'s shortcut");
    }
    stream_scale = block.output_scale;
  }
  check_factors(parameters.linear, shapes.back(), stream_scale, 1.0F);
}

void check(const QuantizedNetwork& quantized) {
  const QuantizedParameters& parameters = quantized.parameters;
  if (parameters.convolutions.size() != quantized.network.convolutions.size() ||
      parameters.blocks.size() != quantized.network.blocks.size()) {
    refuse("there are " + std::to_string(parameters.convolutions.size()) + " convolutions and " +
           std::to_string(parameters.blocks.size()) + " blocks, expected " +
           std::to_string(quantized.network.convolutions.size()) + " and " +
           std::to_string(quantized.network.blocks.size()));
  }
  const std::vector<LayerShape> shapes = layer_shapes(quantized.network);
  const std::vector<const QuantizedLayer*> layers = layers_of(parameters);
  check_widths(quantized, shapes);
  for (std::size_t i = 0; i < layers.size(); ++i) check_layer(*layers[i], shapes[i]);
  check_blocks(quantized, shapes);
}

int stored_width(const TensorFile& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  int bits = 0;
  if (found != file.metadata.end()) {
    const std::string& text = found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bits);
    if (error != std::errc{} || end != text.data() + text.size()) bits = 0;
  }
  if (!is_width(bits)) {
    refuse("the metadata entry '" + key + "' is " +
           (found == file.metadata.end() ? "missing" : "'" + found->second + "'") +
           ", expected 16, 8, 4 or 2");
  }
  return bits;
}

/// Takes values one after the other from a tensor whose length was checked.
class Cursor {
 public:
  explicit Cursor(std::span<const float> values) : values_(values) {}
  float one() { return take(1)[0]; }
  std::span<const float> take(std::size_t count) {
    const std::span<const float> taken = values_.first(count);
    values_ = values_.subspan(count);
    return taken;
  }

 private:
  std::span<const float> values_;
};

QuantizedNetwork parse(const TensorFile& file) {
  QuantizedNetwork quantized;
  quantized.network = stored_network(file, kIntegerFormat);
  const NetworkDescription& network = quantized.network;
  QuantizedParameters& parameters = quantized.parameters;
  parameters.weight_bits = stored_width(file, "weight_bits");
  parameters.activation_bits = stored_width(file, "activation_bits");
  for (const auto& [key, value] : file.metadata) {
    if (key.starts_with(kProvenance)) parameters.provenance[key.substr(kProvenance.size())] = value;
  }

  const std::vector<LayerShape> shapes = layer_shapes(network);
  const std::size_t blocks = network.blocks.size();
  const auto widths =
      file.values<std::uint8_t>("widths", Shape1{static_cast<std::int64_t>(shapes.size() + 2 * blocks)});
  const auto scale_values =
      file.values<float>("scales", Shape1{static_cast<std::int64_t>(scale_count(shapes, blocks))});
  const auto bias_values = file.values<float>(
      "biases", Shape1{static_cast<std::int64_t>(scale_count(shapes, blocks) - 1 - 4 * blocks)});
  const auto narrow_layers = std::count(
      widths.begin(), widths.begin() + static_cast<std::ptrdiff_t>(shapes.size()), std::uint8_t{2});
  const auto levels = file.values<std::int16_t>("levels", Shape2{narrow_layers, 4});
  if (file.tensors.size() != shapes.size() + 4) {
    refuse("the file has " + std::to_string(file.tensors.size()) + " tensors, expected " +
           std::to_string(shapes.size() + 4));
  }

  Cursor scales(scale_values);
  Cursor biases(bias_values);
  parameters.first_output_scale = scales.one();
  for (std::size_t i = 0; i < blocks; ++i) {
    QuantizedBlock block{};
    block.input_bits = widths[shapes.size() + 2 * i];
    block.middle_bits = widths[shapes.size() + 2 * i + 1];
    block.input_scale = scales.one();
    block.middle_scale = scales.one();
    block.shortcut_scale = scales.one();
    block.output_scale = scales.one();
    parameters.blocks.push_back(block);
  }
  std::size_t level_index = 0;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    QuantizedLayer layer;
    layer.weight_bits = widths[i];
    if (!is_width(layer.weight_bits)) {
      refuse("tensor 'widths' has " + std::to_string(layer.weight_bits) + " bits for '" + shapes[i].name +
             "', expected 16, 8, 4 or 2");
    }
    PackedValues packed{layer.weight_bits, shapes[i].weight_count, {}, {}};
    if (layer.weight_bits == 2) {
      std::copy_n(levels.begin() + static_cast<std::ptrdiff_t>(4 * level_index++), 4, packed.levels.begin());
      layer.levels.assign(packed.levels.begin(), packed.levels.end());
    }
    const std::size_t size = packed_size(packed.count, packed.bits);
    packed.bytes =
        file.values<std::uint8_t>(shapes[i].name + ".weight", Shape1{static_cast<std::int64_t>(size)});
    layer.weights = unpack(packed);
    const auto scale = scales.take(shapes[i].output_channels);
    const auto bias = biases.take(shapes[i].output_channels);
    layer.weight_scale.assign(scale.begin(), scale.end());
    layer.bias.assign(bias.begin(), bias.end());
    (i + 1 == shapes.size() ? parameters.linear : parameters.convolutions.emplace_back()) = std::move(layer);
  }
  return quantized;
}

}  // namespace

TensorFile tensor_file_of(const QuantizedNetwork& quantized) {
  check(quantized);
  const QuantizedParameters& parameters = quantized.parameters;
  TensorFile file;
  file.metadata["format"] = kIntegerFormat;
  file.metadata["variant"] = quantized.network.variant;
  file.metadata["depth"] = std::to_string(quantized.network.depth);
  file.metadata["shortcut"] = quantized.network.shortcut;
  file.metadata["weight_bits"] = std::to_string(parameters.weight_bits);
  file.metadata["activation_bits"] = std::to_string(parameters.activation_bits);
  for (const auto& [key, value] : parameters.provenance)
    file.metadata[std::string(kProvenance) + key] = value;

  const std::vector<LayerShape> shapes = layer_shapes(quantized.network);
  const std::vector<const QuantizedLayer*> layers = layers_of(parameters);
  std::vector<std::uint8_t> widths;
  std::vector<std::int16_t> levels;
  std::vector<float> scales{parameters.first_output_scale};
  std::vector<float> biases;
  for (const QuantizedBlock& block : parameters.blocks) {
    scales.insert(scales.end(),
                  {block.input_scale, block.middle_scale, block.shortcut_scale, block.output_scale});
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const QuantizedLayer& layer = *layers[i];
    Levels layer_levels{};
    if (layer.weight_bits == 2) std::copy(layer.levels.begin(), layer.levels.end(), layer_levels.begin());
    const PackedValues packed = pack(layer.weights, layer.weight_bits, layer_levels);
    file.set<std::uint8_t>(shapes[i].name + ".weight", Shape1{static_cast<std::int64_t>(packed.bytes.size())},
                           packed.bytes);
    widths.push_back(static_cast<std::uint8_t>(layer.weight_bits));
    levels.insert(levels.end(), layer.levels.begin(), layer.levels.end());
    scales.insert(scales.end(), layer.weight_scale.begin(), layer.weight_scale.end());
    biases.insert(biases.end(), layer.bias.begin(), layer.bias.end());
  }
  for (const QuantizedBlock& block : parameters.blocks) {
    widths.push_back(static_cast<std::uint8_t>(block.input_bits));
    widths.push_back(static_cast<std::uint8_t>(block.middle_bits));
  }
  file.set<std::uint8_t>("widths", Shape1{static_cast<std::int64_t>(widths.size())}, widths);
  file.set<std::int16_t>("levels", Shape2{static_cast<std::int64_t>(levels.size() / 4), 4}, levels);
  file.set<float>("scales", Shape1{static_cast<std::int64_t>(scales.size())}, scales);
  file.set<float>("biases", Shape1{static_cast<std::int64_t>(biases.size())}, biases);
  return file;
}

void write_quantized(const std::filesystem::path& path, const QuantizedNetwork& quantized) {
  TensorFile file;
  try {
    file = tensor_file_of(quantized);
  } catch (const InputError& error) {
    throw RunError("cannot write " + path.string() + ": " + error.what());
  }
  write_tensor_file(path, file);
}

QuantizedNetwork read_quantized(const std::filesystem::path& path) {
  const TensorFile file = read_tensor_file(path);
  try {
    QuantizedNetwork quantized = parse(file);
    check(quantized);
    return quantized;
  } catch (const InputError& error) {
    const std::string what = error.what();
    throw InputError(what.starts_with(path.string() + ": ") ? what : path.string() + ": " + what);
  }
}

std::vector<int> input_widths(const QuantizedNetwork& quantized) {
  std::vector<int> bits(quantized.network.convolutions.size(), 8);  // the first reads pixels
  for (std::size_t i = 0; i < quantized.network.blocks.size(); ++i) {
    const Block& block = quantized.network.blocks[i];
    bits[static_cast<std::size_t>(block.conv1)] = quantized.parameters.blocks[i].input_bits;
    bits[static_cast<std::size_t>(block.conv2)] = quantized.parameters.blocks[i].middle_bits;
    if (block.projection >= 0) {
      bits[static_cast<std::size_t>(block.projection)] = quantized.parameters.blocks[i].input_bits;
    }
  }
  return bits;
}

double nominal_mac_fraction(const QuantizedNetwork& quantized) {
  const NetworkDescription& network = quantized.network;
  const QuantizedParameters& parameters = quantized.parameters;
  const std::vector<int> input_bits = input_widths(quantized);
  std::int64_t nominal = 0;
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    if (parameters.convolutions[i].weight_bits == parameters.weight_bits &&
        input_bits[i] == parameters.activation_bits) {
      nominal += network.convolutions[i].multiply_accumulates();
    }
  }
  if (parameters.linear.weight_bits == parameters.weight_bits &&
      parameters.residual_bits() == parameters.activation_bits) {
    nominal += std::int64_t{network.feature_channels} * network.classes;
  }
  return static_cast<double>(nominal) / static_cast<double>(network.multiply_accumulates());
}

}  // namespace nibble
