#include "graph/onednn/learned_scales.h"

#include <string>

#include "graph/network/error.h"

namespace nibble {
namespace {

constexpr const char* kScales = "quantizer.scales";

/// visit(value) for every scale, in the order of the file.
template <typename Scales, typename Visit>
void for_scales(Scales& scales, const Visit& visit) {
  visit(scales.first_output);
  for (auto& block : scales.blocks) {
    visit(block.input);
    visit(block.middle);
    visit(block.shortcut);
    visit(block.output);
  }
  for (auto& layer : scales.weights) {
    for (auto& scale : layer) visit(scale);
  }
  for (auto& scale : scales.linear) visit(scale);
}

int stored_width(const TensorFile& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  const std::string text = found == file.metadata.end() ? "missing" : found->second;
  if (text != "8" && text != "4" && text != "2") {
    throw InputError(file.file.string() + ": the metadata entry '" + key + "' is '" + text +
                     "', expected 8, 4 or 2; train again");
  }
  return text[0] - '0';
}

}  // namespace

int trained_weight_bits(const LearnedScales& scales, std::size_t index) {
  return index == 0 ? 8 : scales.weight_bits;
}

void store_scales(const LearnedScales& scales, TensorFile& file) {
  std::vector<float> values;
  for_scales(scales, [&](float scale) { values.push_back(scale); });
  const std::int64_t shape[] = {std::ssize(values)};
  file.set<float>(kScales, shape, values);
  file.metadata["format"] = kTrainedFormat;
  file.metadata["weight_bits"] = std::to_string(scales.weight_bits);
  file.metadata["activation_bits"] = std::to_string(scales.activation_bits);
}

LearnedScales stored_scales(const NetworkDescription& network, const TensorFile& file) {
  LearnedScales scales;
  scales.weight_bits = stored_width(file, "weight_bits");
  scales.activation_bits = stored_width(file, "activation_bits");
  for (const Convolution& convolution : network.convolutions) {
    scales.weights.emplace_back(static_cast<std::size_t>(convolution.output_channels));
  }
  scales.linear.resize(static_cast<std::size_t>(network.classes));
  scales.blocks.resize(network.blocks.size());
  std::int64_t count = 0;
  for_scales(scales, [&](float) { ++count; });
  const std::int64_t shape[] = {count};
  const std::vector<float> values = file.values<float>(kScales, shape);
  std::size_t next = 0;
  for_scales(scales, [&](float& scale) {
    scale = values[next++];
    if (!(scale > 0)) {
      throw InputError(file.file.string() + ": value " + std::to_string(next - 1) + " of the tensor '" +
                       kScales + "' is " + std::to_string(scale) + ", expected more than 0; train again");
    }
  });
  return scales;
}

}  // namespace nibble
