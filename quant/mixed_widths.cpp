#include "quant/mixed_widths.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <map>
#include <tuple>

#include "graph/network/error.h"
#include "graph/network/instruction_set.h"
#include "graph/network/integer_network.h"
#include "graph/optimize/loss.h"
#include "kernels/packed.h"
#include "quant/float_pass.h"
#include "quant/quantize.h"
#include "quant/simulation.h"

namespace nibble {
namespace {

constexpr std::array kWidths = {8, 4, 2};
constexpr int kTilesAThread = 4;

/// Safetensors' header of such a file, at most: provenance, and 80 to 100 bytes a tensor.
double header_bytes(const NetworkDescription& network) {
  return 3000 + 120 * static_cast<double>(network.convolutions.size());
}

/// Convolutions of a block.
std::vector<std::size_t> convolutions_of(const Block& block) {
  std::vector<std::size_t> indices = {static_cast<std::size_t>(block.conv1),
                                      static_cast<std::size_t>(block.conv2)};
  if (block.projection >= 0) indices.push_back(static_cast<std::size_t>(block.projection));
  return indices;
}

double stored_bytes(const Convolution& convolution, int bits) {
  const double levels = bits == 2 ? 4 * sizeof(std::int16_t) : 0;
  return static_cast<double>(packed_size(static_cast<std::size_t>(convolution.weight_count()), bits)) +
         levels;
}

/// Bytes beside the blocks' weights: first and linear layer, scales, biases, widths, header.
double other_bytes(const NetworkDescription& network) {
  double channels = network.classes;
  for (const Convolution& convolution : network.convolutions) channels += convolution.output_channels;
  const auto blocks = static_cast<double>(network.blocks.size());
  const double widths = static_cast<double>(network.convolutions.size()) + 1 + 2 * blocks;
  return stored_bytes(network.convolutions[0], 8) + double{1} * network.classes * network.feature_channels +
         sizeof(float) * (1 + 4 * blocks + 2 * channels) + widths + header_bytes(network);
}

/// Mean KL(FP32 || quantized) on the images.
class Sensitivity {
 public:
  explicit Sensitivity(const CalibratedNetwork& source)
      : source_(source),
        teacher_(FloatPass(source.network, source.folded).run(source.pixels, [](const FloatTap&) {})) {}

  double loss(const QuantizationOptions& options) const {
    const QuantizedNetwork quantized = quantize(source_, options);
    const std::vector<float> logits = Simulation(source_.network).run(quantized.parameters, source_.pixels);
    return distillation_loss(logits, teacher_, source_.network.classes, Reduction::mean, 1.0, {}).loss;
  }

 private:
  const CalibratedNetwork& source_;
  std::vector<float> teacher_;
};

/// Seconds of each layer for one image among many.
std::map<std::string, double> layer_seconds(const QuantizedNetwork& quantized) {
  const IntegerNetwork network(quantized, effective_instruction_set());
  const int images = network.plan().lanes * omp_get_max_threads() * kTilesAThread;
  const std::vector<std::uint8_t> pixels(static_cast<std::size_t>(images) *
                                         static_cast<std::size_t>(quantized.network.image_size) *
                                         static_cast<std::size_t>(quantized.network.image_size) * 3);
  std::map<std::string, double> seconds;
  for (const LayerTime& layer : network.profile(pixels.data(), images)) {
    seconds[layer.name] += layer.seconds / images;
  }
  return seconds;
}

}  // namespace

WidthTable measure_widths(const NetworkDescription& network, const FloatParameters& parameters,
                          std::span<const std::uint8_t> pixels_nhwc, const QuantizationOptions& options) {
  QuantizationOptions trial = options;
  trial.method = "nearest";
  trial.bits = trial.activation_bits = 8;
  const CalibratedNetwork source = calibrated(network, parameters, pixels_nhwc);
  const Sensitivity sensitivity(source);
  WidthTable table{};
  table.blocks.resize(network.blocks.size());
  table.other_bytes = other_bytes(network);
  const std::size_t trials = network.blocks.size() * (kWidths.size() - 1);
  std::size_t done = 0;
  double lossless = 0;
  for (const int bits : kWidths) {
    const std::map<std::string, double> seconds =
        layer_seconds(quantize(source, default_options(bits, bits)));
    double all_blocks = 0;
    for (std::size_t b = 0; b < network.blocks.size(); ++b) {
      BlockWidth width{bits, 0, 0, 0};
      for (const std::size_t index : convolutions_of(network.blocks[b])) {
        width.bytes += stored_bytes(network.convolutions[index], bits);
        width.seconds += seconds.at(network.convolutions[index].name);
      }
      trial.block_bits.assign(network.blocks.size(), 8);
      trial.block_bits[b] = bits;
      if (bits == 8 && b == 0) lossless = sensitivity.loss(trial);
      if (bits != 8) {
        width.loss = std::max(0.0, sensitivity.loss(trial) - lossless);
        if (options.progress) {
          options.progress(fmt::format("sensitivity {}/{}  block {} at {} bits: {:.4f}", ++done, trials,
                                       b + 1, bits, width.loss));
        }
      }
      all_blocks += width.seconds;
      table.blocks[b].push_back(width);
    }
    double all = 0;
    for (const auto& [name, value] : seconds) all += value;
    table.other_seconds = std::max(table.other_seconds, all - all_blocks);
  }
  return table;
}

std::vector<int> choose_widths(const WidthTable& table, const Budget& budget) {
  // Choices for the blocks so far that no other choice beats in loss, bytes and seconds at once.
  struct Choice {
    double loss;
    double bytes;
    double seconds;
    std::vector<int> bits;
  };
  const auto within = [&](const Choice& choice) {
    return (budget.bytes == 0 || choice.bytes <= budget.bytes) &&
           (budget.seconds == 0 || choice.seconds <= budget.seconds);
  };
  // What is not limited counts for nothing.
  const auto beats = [&](const Choice& a, const Choice& b) {
    return a.loss <= b.loss && (budget.bytes == 0 || a.bytes <= b.bytes) &&
           (budget.seconds == 0 || a.seconds <= b.seconds);
  };
  std::vector<Choice> front = {{0, table.other_bytes, table.other_seconds, {}}};
  Choice least = front[0];
  for (const std::vector<BlockWidth>& widths : table.blocks) {
    std::vector<Choice> grown;
    for (const Choice& choice : front) {
      for (const BlockWidth& width : widths) {
        Choice next{choice.loss + width.loss, choice.bytes + width.bytes, choice.seconds + width.seconds,
                    choice.bits};
        next.bits.push_back(width.bits);
        if (within(next)) grown.push_back(std::move(next));
      }
    }
    const auto smallest = [&](auto member) {
      return std::min_element(widths.begin(), widths.end(), [&](const BlockWidth& a, const BlockWidth& b) {
        return a.*member < b.*member;
      });
    };
    least.bytes += smallest(&BlockWidth::bytes)->bytes;
    least.seconds += smallest(&BlockWidth::seconds)->seconds;
    std::sort(grown.begin(), grown.end(), [](const Choice& a, const Choice& b) {
      return std::tie(a.loss, a.bytes, a.seconds) < std::tie(b.loss, b.bytes, b.seconds);
    });
    front.clear();
    for (Choice& choice : grown) {
      if (std::none_of(front.begin(), front.end(), [&](const Choice& kept) { return beats(kept, choice); })) {
        front.push_back(std::move(choice));
      }
    }
  }
  if (!front.empty()) return front[0].bits;  // the least loss stands first
  if (budget.bytes != 0 && least.bytes > budget.bytes) {
    throw InputError(
        fmt::format("no choice of widths gives a file of {:.0f} bytes, the smallest may have "
                    "{:.0f}; raise --budget-bytes",
                    budget.bytes, least.bytes));
  }
  throw InputError(
      fmt::format("no choice of widths takes {:.0f} ms for 10,000 images here, the fastest takes "
                  "{:.0f} ms; raise --budget-ms{}",
                  budget.seconds * 1e7, least.seconds * 1e7, budget.bytes != 0 ? " or --budget-bytes" : ""));
}

}  // namespace nibble
