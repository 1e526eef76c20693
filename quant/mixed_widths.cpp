#include "quant/mixed_widths.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <tuple>
#include <utility>

#include "graph/data/cifar10.h"
#include "graph/network/error.h"
#include "graph/network/instruction_set.h"
#include "graph/network/integer_network.h"
#include "graph/optimize/loss.h"
#include "kernels/packed.h"
#include "quant/float_pass.h"
#include "quant/simulation.h"

namespace nibble {
namespace {

constexpr std::array kWidths = {8, 4, 2};
constexpr int kTilesAThread = 4;

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

/// Bytes beside the blocks' weights and levels. `widest` has 8 bits everywhere and all texts of the file to
/// come: with fewer bits no offset in the header is longer (two a tensor, many of them a digit shorter), only
/// the shape of the levels, and the header is filled up to a multiple of 8.
double other_bytes(const QuantizedNetwork& widest) {
  constexpr double reserve = 20;
  double blocks = 0;
  for (const Block& block : widest.network.blocks) {
    for (const std::size_t index : convolutions_of(block)) {
      blocks += stored_bytes(widest.network.convolutions[index], 8);
    }
  }
  return static_cast<double>(serialize(tensor_file_of(widest)).size()) - blocks + reserve;
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

/// A quantized network and images that fill some tiles of each thread.
struct TimedNetwork {
  explicit TimedNetwork(const QuantizedNetwork& quantized)
      : network(quantized, effective_instruction_set()),
        images(network.plan().lanes * omp_get_max_threads() * kTilesAThread),
        pixels(generated_images(images).pixels) {}

  IntegerNetwork network;
  int images;
  std::vector<std::uint8_t> pixels;
};

/// Seconds of each layer for one image among many.
std::map<std::string, double> layer_seconds(const QuantizedNetwork& quantized) {
  const TimedNetwork timed(quantized);
  std::map<std::string, double> seconds;
  for (const LayerTime& layer : timed.network.profile(timed.pixels.data(), timed.images)) {
    seconds[layer.name] += layer.seconds / timed.images;
  }
  return seconds;
}

/// `options` for a network of these widths by nearest rounding, which is quick, and as large and as fast.
QuantizationOptions trial_of(const QuantizationOptions& options, std::vector<int> block_bits) {
  QuantizationOptions trial = options;
  trial.method = "nearest";
  trial.learning_steps = 0;
  trial.bits = trial.activation_bits = *std::max_element(block_bits.begin(), block_bits.end());
  trial.block_bits = std::move(block_bits);
  return trial;
}

struct Choice {
  double loss;
  double bytes;
  double seconds;
  std::vector<int> bits;
};

/// Choices that no other one beats in loss, bytes and seconds at once, the least loss first.
std::vector<Choice> best_of(std::vector<Choice> choices) {
  std::sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) {
    return std::tie(a.loss, a.bytes, a.seconds) < std::tie(b.loss, b.bytes, b.seconds);
  });
  std::vector<Choice> best;
  std::map<double, double> least;  // seconds that so many bytes were seen with: the more, the fewer
  for (Choice& choice : choices) {
    const auto larger = least.upper_bound(choice.bytes);
    if (larger != least.begin() && std::prev(larger)->second <= choice.seconds) continue;
    auto beaten = least.lower_bound(choice.bytes);
    while (beaten != least.end() && beaten->second >= choice.seconds) beaten = least.erase(beaten);
    least[choice.bytes] = choice.seconds;
    best.push_back(std::move(choice));
  }
  return best;
}

const BlockWidth& width_of(const std::vector<BlockWidth>& widths, int bits) {
  return *std::find_if(widths.begin(), widths.end(),
                       [&](const BlockWidth& width) { return width.bits == bits; });
}

}  // namespace

WidthTable measure_widths(const CalibratedNetwork& source, const QuantizationOptions& options,
                          const std::map<std::string, std::string>& provenance) {
  const NetworkDescription& network = source.network;
  const Sensitivity sensitivity(source);
  const std::vector<int> all_wide(network.blocks.size(), 8);
  QuantizedNetwork widest = quantize(source, trial_of(options, all_wide));
  widest.parameters.provenance["method"] = options.method;
  widest.parameters.provenance.insert(provenance.begin(), provenance.end());
  WidthTable table{};
  table.blocks.resize(network.blocks.size());
  table.other_bytes = other_bytes(widest);
  const double lossless = sensitivity.loss(trial_of(options, all_wide));
  const std::size_t trials = network.blocks.size() * (kWidths.size() - 1);
  std::size_t done = 0;
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
      if (bits != 8) {
        std::vector<int> one_narrow = all_wide;
        one_narrow[b] = bits;
        width.loss = std::max(0.0, sensitivity.loss(trial_of(options, one_narrow)) - lossless);
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
  const bool bytes_count = budget.bytes != 0;
  const bool seconds_count = budget.seconds != 0;
  std::vector<Choice> best = {
      {0, bytes_count ? table.other_bytes : 0, seconds_count ? table.other_seconds : 0, {}}};
  double least_bytes = table.other_bytes;
  double least_seconds = table.other_seconds;
  for (const std::vector<BlockWidth>& widths : table.blocks) {
    std::vector<Choice> grown;
    for (const Choice& choice : best) {
      for (const BlockWidth& width : widths) {
        Choice next{choice.loss + width.loss, choice.bytes + (bytes_count ? width.bytes : 0),
                    choice.seconds + (seconds_count ? width.seconds : 0), choice.bits};
        next.bits.push_back(width.bits);
        if (next.bytes <= budget.bytes && next.seconds <= budget.seconds) grown.push_back(std::move(next));
      }
    }
    best = best_of(std::move(grown));
    const auto smallest = [&](auto member) {
      return std::min_element(widths.begin(), widths.end(), [&](const BlockWidth& a, const BlockWidth& b) {
        return a.*member < b.*member;
      });
    };
    least_bytes += smallest(&BlockWidth::bytes)->bytes;
    least_seconds += smallest(&BlockWidth::seconds)->seconds;
  }
  if (!best.empty()) return best[0].bits;
  if (bytes_count && least_bytes > budget.bytes) {
    throw InputError(
        fmt::format("no choice of widths gives a file of {:.0f} bytes, the smallest may have {:.0f}; raise "
                    "--budget-bytes",
                    budget.bytes, least_bytes));
  }
  if (seconds_count && least_seconds > budget.seconds) {
    throw InputError(
        fmt::format("no choice of widths takes {:.0f} ms for 10,000 images here, the fastest takes {:.0f} "
                    "ms; raise --budget-ms",
                    budget.seconds * 1e7, least_seconds * 1e7));
  }
  throw InputError(
      fmt::format("no choice of widths keeps within {:.0f} bytes and {:.0f} ms for 10,000 images together, "
                  "though each alone is possible; raise --budget-bytes or --budget-ms",
                  budget.bytes, budget.seconds * 1e7));
}

double measure_seconds(const QuantizedNetwork& quantized) {
  constexpr std::size_t passes = 7;
  const TimedNetwork timed(quantized);
  std::vector<float> logits(static_cast<std::size_t>(timed.images * quantized.network.classes));
  std::vector<double> seconds;
  for (std::size_t pass = 0; pass <= passes; ++pass) {  // the first one only warms up
    const auto start = std::chrono::steady_clock::now();
    timed.network.run(timed.pixels.data(), timed.images, logits.data());
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(seconds.begin() + 1, seconds.begin() + 1 + passes / 2, seconds.end());
  return seconds[1 + passes / 2] / timed.images;
}

std::vector<int> choose_measured_widths(const CalibratedNetwork& source, WidthTable table,
                                        const Budget& budget, const QuantizationOptions& options) {
  for (;;) {
    std::vector<int> bits = choose_widths(table, budget);
    if (budget.seconds == 0) return bits;
    const double measured = measure_seconds(quantize(source, trial_of(options, bits)));
    if (measured <= budget.seconds) return bits;
    // The layers' times are as far too small for other choices, and this one is now beyond the budget.
    double sum = table.other_seconds;
    for (std::size_t b = 0; b < bits.size(); ++b) sum += width_of(table.blocks[b], bits[b]).seconds;
    const double factor = measured / sum;
    table.other_seconds *= factor;
    for (std::vector<BlockWidth>& widths : table.blocks) {
      for (BlockWidth& width : widths) width.seconds *= factor;
    }
  }
}

}  // namespace nibble
