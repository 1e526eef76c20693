#include "bench/figures.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <optional>

#include "graph/network/fold.h"
#include "graph/network/quantized_parameters.h"
#include "graph/network/tensor_file.h"
#include "kernels/requantize.h"
#include "quant/calibration.h"
#include "quant/equalization.h"
#include "quant/quantize.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int kFigureImages = 100;  // FP32 and integers are simulated tensor by tensor on them
constexpr int kLostImages = 24;     // shown; all are counted
constexpr int kActivationBins = 64;
constexpr int kWidths[] = {8, 4, 2};

struct FloatFile {
  NetworkDescription network;
  FloatParameters parameters;
};

struct QuantizedFile {
  std::string name;
  QuantizedNetwork quantized;
};

/// The first row that `runner` runs, in the order of the table: P's own.
const RowRequest* first_row(const std::vector<RowRequest>& requests, Runner runner, int weight_bits) {
  const auto found = std::find_if(requests.begin(), requests.end(), [&](const RowRequest& row) {
    return row.kind.runner == runner && row.kind.weight_bits == weight_bits;
  });
  return found == requests.end() ? nullptr : &*found;
}

std::optional<FloatFile> float_file(const std::vector<RowRequest>& requests) {
  const RowRequest* row = first_row(requests, Runner::fp32, 32);
  fs::path file = row == nullptr ? fs::path{} : row->file;
  if (row == nullptr && !requests.empty()) file = requests.front().reference;
  if (file.empty()) return std::nullopt;
  const TensorFile tensors = read_tensor_file(file);
  NetworkDescription network = stored_network(tensors);
  FloatParameters parameters = stored_parameters(network, tensors);
  return FloatFile{std::move(network), std::move(parameters)};
}

std::vector<QuantizedFile> quantized_files(const std::vector<RowRequest>& requests,
                                           const NetworkDescription& network) {
  std::vector<QuantizedFile> files;
  for (const int bits : kWidths) {
    const RowRequest* row = first_row(requests, Runner::integer, bits);
    if (row == nullptr) continue;
    QuantizedNetwork quantized = read_quantized(row->file);
    if (quantized.network == network) files.push_back({row->name, std::move(quantized)});
  }
  return files;
}

Json sensitivity(const FloatFile& source, const std::vector<QuantizedFile>& files,
                 std::span<const std::uint8_t> pixels) {
  Json json = {
      {"images", pixels.size() / cifar10_image_bytes}, {"layers", nullptr}, {"networks", Json::array()}};
  for (const QuantizedFile& file : files) {
    const Quality quality = measure_quality(source.parameters, file.quantized, pixels);
    Json names = Json::array();
    Json sqnr = Json::array();
    for (const LayerQuality& layer : quality.layers) {
      names.push_back(layer.name);
      // A network that is exact has no noise; JSON has no infinity.
      sqnr.push_back(std::isfinite(layer.sqnr) ? Json(std::round(layer.sqnr * 100) / 100) : Json());
    }
    json["layers"] = std::move(names);
    json["networks"].push_back({{"name", file.name}, {"sqnr", std::move(sqnr)}});
  }
  return json;
}

/// FP32 weights in steps of their channel's scale, beside the integers that they became, in equal bins.
/// `unit`: what the integers of input channel i are multiplied with besides the scale (pixels / 255, divided
/// by the deviation, in the first layer).
Json weight_histogram(const std::string& name, const QuantizedLayer& layer, std::span<const float> weights,
                      const std::vector<double>& unit) {
  const auto [low, high] = std::minmax_element(layer.weights.begin(), layer.weights.end());
  const int largest = std::max({-int{*low}, int{*high}, 1});
  // A level in the middle of a bin; no more than about 70 bins.
  const double width = largest > 64 ? 4 : 0.25;
  const auto half = static_cast<std::size_t>(std::ceil(1.4 * largest / width));
  std::vector<std::int64_t> fp32(2 * half + 1);
  std::vector<std::int64_t> integers(fp32.size());
  const auto bin = [&](double value) {
    const double index = std::round(value / width) + static_cast<double>(half);
    return static_cast<std::size_t>(std::clamp(index, 0.0, static_cast<double>(2 * half)));
  };
  const std::size_t length = layer.weights.size() / layer.weight_scale.size();
  for (std::size_t i = 0; i < layer.weights.size(); ++i) {
    const double step = double{layer.weight_scale[i / length]} * unit[i % unit.size()];
    ++fp32[bin(weights[i] / step)];
    ++integers[bin(layer.weights[i])];
  }
  return {{"name", name},
          {"low", -(static_cast<double>(half) + 0.5) * width},
          {"width", width},
          {"fp32", fp32},
          {"integers", integers}};
}

struct Clip {
  float scale;
  int levels;
};

/// How a network keeps the output of a convolution: as the convolution that reads it has it.
Clip clip_of(const QuantizedNetwork& quantized, int convolution) {
  const std::vector<Block>& blocks = quantized.network.blocks;
  const QuantizedParameters& parameters = quantized.parameters;
  const auto clip = [](float scale, int bits) { return Clip{scale, activation_limit(bits) + 1}; };
  const auto stream_into = [&](std::size_t next, float scale) {
    if (next == blocks.size()) return clip(scale, parameters.residual_bits());
    return clip(parameters.blocks[next].input_scale, parameters.blocks[next].input_bits);
  };
  if (convolution == 0) return stream_into(0, parameters.first_output_scale);
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const QuantizedBlock& block = parameters.blocks[b];
    if (blocks[b].conv1 == convolution) return clip(block.middle_scale, block.middle_bits);
    if (blocks[b].conv2 == convolution) return stream_into(b + 1, block.output_scale);
    if (blocks[b].projection == convolution) return {block.shortcut_scale, 128};  // s8, magnitudes
  }
  return {1, 1};
}

/// Whether the convolution's output stays within a block.
bool is_middle(const NetworkDescription& network, int convolution) {
  return std::any_of(network.blocks.begin(), network.blocks.end(),
                     [&](const Block& block) { return block.conv1 == convolution; });
}

Json activation_histogram(const ValueHistogram& values, const std::vector<QuantizedFile>& files,
                          int convolution) {
  const double width = std::max(double{values.largest()}, 1e-6) / kActivationBins;
  std::vector<std::uint64_t> counts(kActivationBins);
  for (std::size_t i = 0; i < ValueHistogram::kBins; ++i) {
    const double value = (static_cast<double>(i) + 0.5) * values.bin_width();
    const auto bin = static_cast<std::size_t>(value / width);
    counts[std::min(bin, counts.size() - 1)] += values.bins()[i];
  }
  Json clips = Json::array();
  for (const QuantizedFile& file : files) {
    // The histogram is of other values than those which an equalized network clips.
    if (is_equalized(file.quantized.parameters) && is_middle(file.quantized.network, convolution)) continue;
    const Clip clip = clip_of(file.quantized, convolution);
    clips.push_back({{"name", file.name}, {"scale", clip.scale}, {"levels", clip.levels}});
  }
  return {{"width", width}, {"counts", counts}, {"clips", std::move(clips)}};
}

Json histograms(const FloatFile& source, const std::vector<QuantizedFile>& files,
                std::span<const std::uint8_t> pixels) {
  const NetworkDescription& network = source.network;
  const Calibration calibration =
      calibrate(network, fold_batch_normalization(network, source.parameters), pixels);
  std::vector<FoldedParameters> sources;
  for (const QuantizedFile& file : files) {
    sources.push_back(folded_source(network, source.parameters, file.quantized.parameters));
  }
  const std::vector<double> plain = {1};
  std::vector<double> of_pixels;
  for (const float deviation : kPixelDeviation) of_pixels.push_back(255.0 * double{deviation});
  Json json = Json::array();
  for (std::size_t i = 0; i <= network.convolutions.size(); ++i) {
    const bool linear = i == network.convolutions.size();
    Json weights = Json::array();
    for (std::size_t f = 0; f < files.size(); ++f) {
      const QuantizedParameters& parameters = files[f].quantized.parameters;
      weights.push_back(weight_histogram(
          files[f].name, linear ? parameters.linear : parameters.convolutions[i],
          linear ? sources[f].linear_weight : sources[f].convolutions[i].weight, i == 0 ? of_pixels : plain));
    }
    json.push_back(
        {{"layer", linear ? "linear" : network.convolutions[i].name},
         {"weights", std::move(weights)},
         {"activations",
          linear ? Json() : activation_histogram(calibration.outputs[i], files, static_cast<int>(i))}});
  }
  return json;
}

Json confusion(const std::string& name, const std::vector<int>& predicted, const Dataset& images) {
  std::vector<std::vector<int>> counts(cifar10_classes, std::vector<int>(cifar10_classes));
  for (std::size_t i = 0; i < predicted.size(); ++i) {
    ++counts[images.labels[i]][static_cast<std::size_t>(predicted[i])];
  }
  return {{"name", name}, {"counts", counts}};
}

std::string base64(std::span<const std::uint8_t> bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    unsigned value = 0;
    for (std::size_t k = 0; k < 3; ++k) value = value << 8U | (i + k < bytes.size() ? bytes[i + k] : 0U);
    for (std::size_t k = 0; k < 4; ++k) {
      text += i + k <= bytes.size() ? kDigits[value >> (18 - 6 * k) & 63U] : '=';
    }
  }
  return text;
}

/// Images that FP32 has right and the narrowest network wrong.
Json lost_images(const std::string& name, const std::vector<int>& fp32, const std::vector<int>& narrow,
                 const Dataset& images) {
  int total = 0;
  Json shown = Json::array();
  for (std::size_t i = 0; i < narrow.size(); ++i) {
    if (fp32[i] != images.labels[i] || narrow[i] == images.labels[i]) continue;
    if (++total > kLostImages) continue;
    shown.push_back({{"index", i},
                     {"truth", images.labels[i]},
                     {"said", narrow[i]},
                     {"pixels", base64(images.image(i))}});
  }
  return {{"name", name}, {"total", total}, {"images", std::move(shown)}};
}

/// The epochs of a training's log; of an epoch that was trained twice (after a resume) the last.
Json epochs_of(const fs::path& log) {
  std::map<int, Json> epochs;
  std::ifstream stream(log);
  for (std::string line; std::getline(stream, line);) {
    const Json entry = Json::parse(line, nullptr, false);  // a line that was cut is passed over
    if (!entry.is_object() || !entry.contains("epoch") || !entry.contains("train_loss")) continue;
    Json kept;
    for (const char* key : {"epoch", "train_loss", "train_top1", "validation_loss", "validation_top1",
                            "test_loss", "test_top1", "learning_rate", "images_per_second"}) {
      const auto value = entry.find(key);
      kept[key] = value != entry.end() && value->is_number() ? *value : Json();
    }
    if (kept["epoch"].is_number_integer()) epochs[kept["epoch"].get<int>()] = kept;
  }
  Json json = Json::array();
  for (auto& [epoch, entry] : epochs) json.push_back(std::move(entry));
  return json;
}

Json curves(const fs::path& folder) {
  std::vector<fs::path> logs;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder.empty() ? "." : folder, ignored)) {
    if (entry.path().filename().string().ends_with(".log.jsonl")) logs.push_back(entry.path());
  }
  std::sort(logs.begin(), logs.end());
  Json json = Json::array();
  for (const fs::path& log : logs) {
    Json epochs = epochs_of(log);
    if (!epochs.empty()) json.push_back({{"name", log.filename().string()}, {"epochs", std::move(epochs)}});
  }
  return json;
}

}  // namespace

Figures collect_figures(const std::vector<RowRequest>& requests, const Dataset& images,
                        const Predictions& predictions, const fs::path& log_folder) {
  Figures figures = Figures::object();
  const std::optional<FloatFile> source = float_file(requests);
  if (source && images.count() > 0) {
    const std::vector<QuantizedFile> files = quantized_files(requests, source->network);
    const auto pixels =
        std::span(images.pixels)
            .first(static_cast<std::size_t>(std::min(kFigureImages, images.count())) * cifar10_image_bytes);
    if (!files.empty()) {
      figures["sensitivity"] = sensitivity(*source, files, pixels);
      figures["histograms"] = histograms(*source, files, pixels);
    }
  }
  if (!images.labels.empty()) {
    Json matrices = Json::array();
    const std::vector<int>* fp32 = nullptr;
    const std::vector<int>* narrow = nullptr;
    std::string narrow_name;
    for (const RowRequest& row : requests) {
      const auto predicted = predictions.find(row.name);
      const bool shown = row.kind.runner == Runner::fp32 || row.kind.runner == Runner::integer;
      if (!shown || predicted == predictions.end()) continue;
      matrices.push_back(confusion(row.name, predicted->second, images));
      if (row.kind.runner == Runner::fp32 && fp32 == nullptr) fp32 = &predicted->second;
      if (row.kind.runner == Runner::integer && row.kind.weight_bits == 2 && narrow == nullptr) {
        narrow = &predicted->second;
        narrow_name = row.name;
      }
    }
    if (!matrices.empty()) figures["confusion"] = std::move(matrices);
    if (fp32 != nullptr && narrow != nullptr) {
      figures["lost"] = lost_images(narrow_name, *fp32, *narrow, images);
    }
  }
  Json training = curves(log_folder);
  if (!training.empty()) figures["curves"] = std::move(training);
  return figures;
}

}  // namespace nibble
