#include "bench/file_audit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <regex>

#include "bench/model.h"
#include "bench/rows.h"
#include "graph/network/error.h"
#include "graph/network/float_parameters.h"
#include "graph/network/instruction_set.h"
#include "graph/network/integer_network.h"
#include "graph/network/quantized_parameters.h"
#include "graph/network/reference_network.h"
#include "graph/network/signature.h"
#include "graph/network/tensor_file.h"
#include "graph/onednn/int8_unfused_parameters.h"
#include "graph/onednn/learned_scales.h"
#include "kernels/packed.h"
#include "kernels/requantize.h"

namespace nibble {
namespace {

constexpr int kSignatureImages = 1000;
constexpr int kReferenceImages = 4;
constexpr int kBatch = 100;
constexpr std::int64_t kLimit32 = 2147483647;
constexpr std::int64_t kLimit64 = std::int64_t{1}
                                  << 53U;  // beyond it the one rounding to double is not exact

/// The largest sum of |weight| of an output channel.
template <typename Weight>
std::int64_t largest_channel(std::span<const Weight> weights, std::size_t channels) {
  std::int64_t largest = 0;
  const std::size_t length = weights.size() / channels;
  for (std::size_t c = 0; c < channels; ++c) {
    std::int64_t sum = 0;
    for (const Weight weight : weights.subspan(c * length, length)) sum += std::abs(int{weight});
    largest = std::max(largest, sum);
  }
  return largest;
}

std::int64_t bytes_of(const TensorFile& file, const std::string& name) {
  return static_cast<std::int64_t>(file.tensors.at(name).bytes.size());
}

std::string name_of(const NetworkDescription& network) {
  return network.variant == "he" ? fmt::format("he {} {}", network.depth, network.shortcut) : network.variant;
}

const RowKind* find_kind(const std::string& format, int weight_bits, Runner runner) {
  for (const RowKind& kind : row_kinds()) {
    if (kind.format == format && kind.runner == runner &&
        (runner != Runner::integer || kind.weight_bits == weight_bits)) {
      return &kind;
    }
  }
  return nullptr;
}

std::string signature_of(Model& model, const Dataset& images, int classes) {
  const int count = std::min(images.count(), kSignatureImages);
  std::vector<float> logits(static_cast<std::size_t>(count * classes));
  for (int first = 0; first < count; first += kBatch) {
    const int size = std::min(kBatch, count - first);
    model.run(std::span(images.pixels)
                  .subspan(static_cast<std::size_t>(first) * cifar10_image_bytes,
                           static_cast<std::size_t>(size) * cifar10_image_bytes),
              size,
              std::span(logits).subspan(static_cast<std::size_t>(first * classes),
                                        static_cast<std::size_t>(size * classes)));
  }
  return signature(logits);
}

/// Runs the file as `kind` runs it and takes the signatures into the audit.
OpenedModel run_file(const RowKind& kind, const Dataset& images, const Dataset& generated, FileAudit& audit) {
  OpenedModel opened = open_model(kind, audit.file, kBatch);
  audit.residual_bits = opened.residual_bits;
  audit.payload_bytes = opened.payload_bytes;
  if (!opened.model) return opened;
  audit.signature_generated = signature_of(*opened.model, generated, opened.network.classes);
  if (images.count() >= kSignatureImages) {
    audit.signature = signature_of(*opened.model, images, opened.network.classes);
  }
  return opened;
}

/// "int4", "int2a8" in the file's name, where it has one.
void check_name(bool mixed, FileAudit& audit) {
  const std::string name = audit.file.filename().string();
  std::smatch match;
  static const std::regex kClaim("int(16|8|4|2)(a(16|8|4|2))?(?![0-9])");
  if (!std::regex_search(name, match, kClaim)) return;
  if (mixed) {
    audit.objections.push_back(
        fmt::format("the name says {} bits, the file's blocks have different widths", match[1].str()));
    return;
  }
  const int weight_bits = std::stoi(match[1]);
  if (weight_bits != audit.weight_bits) {
    audit.objections.push_back(fmt::format("the name says {} bits, the file says weights of {} bits",
                                           weight_bits, audit.weight_bits));
  }
  const int activation_bits = match[3].matched ? std::stoi(match[3]) : weight_bits;
  if (activation_bits != audit.activation_bits) {
    audit.objections.push_back(fmt::format("the name says activations of {} bits, the file says {}",
                                           activation_bits, audit.activation_bits));
  }
}

void audit_float(const TensorFile& tensors, const Dataset& images, const Dataset& generated,
                 FileAudit& audit) {
  const NetworkDescription network = stored_network(tensors);
  audit.network = name_of(network);
  audit.parameters = network.parameter_count();
  audit.weight_bits = audit.activation_bits = 32;
  for (const Convolution& convolution : network.convolutions) {
    audit.layers.push_back({convolution.name, 32, 32, convolution.weight_count(),
                            bytes_of(tensors, convolution.name + ".weight"), 0, kLimit32, ""});
  }
  audit.layers.push_back({"linear", 32, 32, std::int64_t{network.classes} * network.feature_channels,
                          bytes_of(tensors, "linear.weight"), 0, kLimit32, ""});
  run_file(row_kinds().front(), images, generated, audit);
  check_name(false, audit);
}

void audit_unfused(const TensorFile& tensors, const Dataset& images, const Dataset& generated,
                   FileAudit& audit) {
  const UnfusedNetwork unfused = read_unfused(audit.file);
  const NetworkDescription& network = unfused.network;
  audit.network = name_of(network);
  audit.parameters = network.parameter_count();
  audit.weight_bits = audit.activation_bits = 8;
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& convolution = network.convolutions[i];
    const std::vector<std::int8_t>& weights = unfused.parameters.convolutions[i].weights;
    const int largest_input = i == 0 ? 255 : 128;  // pixels, then s8
    audit.layers.push_back(
        {convolution.name, 8, 8, convolution.weight_count(), bytes_of(tensors, convolution.name + ".weight"),
         largest_input *
             largest_channel<std::int8_t>(weights, static_cast<std::size_t>(convolution.output_channels)),
         kLimit32, ""});
  }
  audit.layers.push_back({"linear", 8, 8, std::int64_t{network.classes} * network.feature_channels,
                          bytes_of(tensors, "linear.weight"),
                          std::int64_t{128} * network.feature_size * network.feature_size *
                              largest_channel<std::int8_t>(unfused.parameters.linear_weights,
                                                           static_cast<std::size_t>(network.classes)),
                          kLimit32, ""});
  run_file(*find_kind(audit.format, 8, Runner::int8_unfused), images, generated, audit);
  check_name(false, audit);
}

/// The reference on a few images, and the other engine where there is one, bit for bit.
void check_engines(const QuantizedNetwork& quantized, const Dataset& generated, FileAudit& audit) {
  const int classes = quantized.network.classes;
  std::vector<float> expected(static_cast<std::size_t>(kReferenceImages * classes));
  std::vector<float> found(expected.size());
  ReferenceNetwork(quantized).run(generated.pixels.data(), kReferenceImages, expected.data());
  IntegerNetwork(quantized, effective_instruction_set())
      .run(generated.pixels.data(), kReferenceImages, found.data());
  const bool equal = signature(expected) == signature(found);
  audit.engines.push_back(fmt::format("scalar reference on {} images: {}", kReferenceImages,
                                      equal ? "equal bit for bit" : "DIFFERENT"));
  if (!equal) audit.objections.emplace_back("the kernels and the scalar reference disagree on this file");

  const bool for_onednn = audit.weight_bits == 8 && audit.activation_bits == 8 && *audit.mac_fraction == 1;
  if (!for_onednn) return;
  const RowKind& fused = *find_kind(audit.format, 8, Runner::int8_fused);
  const OpenedModel onednn = open_model(fused, audit.file, kBatch);
  if (!onednn.model) return;
  const bool same = signature_of(*onednn.model, generated, classes) == audit.signature_generated;
  audit.engines.push_back(fmt::format("{} on {} images: {}", onednn.engine, kSignatureImages,
                                      same ? "equal bit for bit" : "DIFFERENT"));
  if (!same) audit.objections.emplace_back("oneDNN and our kernels disagree on this file");
}

void audit_integer(const TensorFile& tensors, const Dataset& images, const Dataset& generated,
                   FileAudit& audit) {
  const QuantizedNetwork quantized = read_quantized(audit.file);
  const NetworkDescription& network = quantized.network;
  const QuantizedParameters& parameters = quantized.parameters;
  audit.network = name_of(network);
  audit.parameters = network.parameter_count();
  audit.weight_bits = parameters.weight_bits;
  audit.activation_bits = parameters.activation_bits;
  audit.mac_fraction = nominal_mac_fraction(quantized);
  for (const auto& [key, value] : parameters.provenance) audit.provenance.push_back(key + ": " + value);

  const bool wide = parameters.weight_bits == 16;
  const std::vector<int> inputs = input_widths(quantized);
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& convolution = network.convolutions[i];
    const QuantizedLayer& layer = parameters.convolutions[i];
    const std::int64_t largest =
        largest_channel<std::int16_t>(layer.weights, static_cast<std::size_t>(convolution.output_channels));
    audit.layers.push_back({convolution.name, layer.weight_bits, inputs[i], convolution.weight_count(),
                            bytes_of(tensors, convolution.name + ".weight"),
                            activation_limit(inputs[i]) * largest, wide && i > 0 ? kLimit64 : kLimit32, ""});
  }
  audit.layers.push_back({"linear", parameters.linear.weight_bits, parameters.residual_bits(),
                          std::int64_t{network.classes} * network.feature_channels,
                          bytes_of(tensors, "linear.weight"),
                          std::int64_t{activation_limit(parameters.residual_bits())} * network.feature_size *
                              network.feature_size *
                              largest_channel<std::int16_t>(parameters.linear.weights,
                                                            static_cast<std::size_t>(network.classes)),
                          wide ? kLimit64 : kLimit32, "sum of the map"});

  const bool mixed = parameters.provenance.contains(kMixedWidths);
  const int kind_bits = mixed ? kMixedKind : parameters.weight_bits;
  const OpenedModel opened =
      run_file(*find_kind(audit.format, kind_bits, Runner::integer), images, generated, audit);
  for (LayerAudit& layer : audit.layers) {
    const auto kernel = opened.kernels.find(layer.name);
    if (kernel != opened.kernels.end()) layer.kernel = kernel->second.name;
  }
  check_name(mixed, audit);
  check_engines(quantized, generated, audit);

  if (!mixed && *audit.mac_fraction < kLeastNominalFraction) {
    audit.objections.push_back(fmt::format(
        "only {:.1f} % of the multiply-accumulates run at {} x {} bits, at least {:.0f} % are expected",
        *audit.mac_fraction * 100, audit.weight_bits, audit.activation_bits, kLeastNominalFraction * 100));
  }
}

}  // namespace

FileAudit audit_file(const std::filesystem::path& file, const Dataset& images) {
  FileAudit audit;
  audit.file = file;
  const TensorFile tensors = read_tensor_file(file);
  audit.file_bytes = static_cast<std::int64_t>(std::filesystem::file_size(file));
  audit.format = tensors.entry("format");
  const Dataset generated = generated_images(kSignatureImages);
  if (audit.format == kFloatFormat) {
    audit_float(tensors, images, generated, audit);
  } else if (audit.format == unfused_format) {
    audit_unfused(tensors, images, generated, audit);
  } else if (audit.format == kIntegerFormat) {
    audit_integer(tensors, images, generated, audit);
  } else if (audit.format == kTrainedFormat) {
    throw InputError(file.string() +
                     ": this is the state of a trained quantization, not yet integers; quant exports it, and "
                     "train has done so at its end");
  } else {
    throw InputError(file.string() + ": the format is '" + audit.format +
                     "', which is not one of train or quant; name a checkpoint of theirs");
  }
  for (std::size_t i = 0; i < audit.layers.size(); ++i) {
    const LayerAudit& layer = audit.layers[i];
    if (!layer.is_bounded()) {
      audit.objections.push_back(fmt::format("sums of '{}' can reach {}, which its accumulator cannot hold",
                                             layer.name, layer.largest_sum));
    }
    const auto packed = static_cast<std::int64_t>(
        layer.weight_bits == 32 ? 4 * static_cast<std::size_t>(layer.weights)
                                : packed_size(static_cast<std::size_t>(layer.weights), layer.weight_bits));
    if (layer.stored_bytes != packed) {
      audit.objections.push_back(fmt::format("'{}' takes {} bytes, {} weights of {} bits take {}", layer.name,
                                             layer.stored_bytes, layer.weights, layer.weight_bits, packed));
    }
    const bool end_layer = i == 0 || i + 1 == audit.layers.size();
    if (!end_layer && layer.weight_bits > audit.weight_bits) {
      audit.objections.push_back(
          fmt::format("'{}' is stored with {:.2f} bits a weight, so this is not a "
                      "{}-bit file",
                      layer.name, layer.stored_bits(), audit.weight_bits));
    }
  }
  return audit;
}

std::vector<std::string> to_lines(const FileAudit& audit) {
  std::vector<std::string> lines;
  lines.push_back(fmt::format("file: {}, {} bytes; checksum and every tensor as expected",
                              audit.file.string(), audit.file_bytes));
  lines.push_back(
      fmt::format("format: {}, network {}, {} parameters", audit.format, audit.network, audit.parameters));
  if (audit.weight_bits == 32) {
    lines.emplace_back("widths: FP32, nothing is quantized");
  } else {
    lines.push_back(fmt::format("widths: weights {} bits, activations {}, residual stream {}{}",
                                audit.weight_bits, audit.activation_bits, audit.residual_bits,
                                audit.mac_fraction ? fmt::format("; {:.2f} % of the multiply-accumulates run "
                                                                 "at these widths",
                                                                 *audit.mac_fraction * 100)
                                                   : ""));
  }
  for (const std::string& entry : audit.provenance) lines.push_back("  " + entry);

  lines.push_back(fmt::format("{:<20} {:>8} {:>8} {:>9} {:>6} {:>6} {:>16} {:>8}  {}", "layer", "weights",
                              "bytes", "bits each", "bits w", "bits a", "largest sum", "of limit", "kernel"));
  std::int64_t weights = 0;
  std::int64_t bytes = 0;
  for (const LayerAudit& layer : audit.layers) {
    weights += layer.weights;
    bytes += layer.stored_bytes;
    const bool sums = layer.largest_sum > 0;
    lines.push_back(fmt::format("{:<20} {:>8} {:>8} {:>9.2f} {:>6} {:>6} {:>16} {:>8}  {}", layer.name,
                                layer.weights, layer.stored_bytes, layer.stored_bits(), layer.weight_bits,
                                layer.input_bits, sums ? fmt::format("{}", layer.largest_sum) : "float",
                                sums
                                    ? fmt::format("{:.2f} %", 100.0 * static_cast<double>(layer.largest_sum) /
                                                                  static_cast<double>(layer.register_limit))
                                    : "",
                                layer.kernel.empty() ? "oneDNN" : layer.kernel));
  }
  lines.push_back(fmt::format("{:<20} {:>8} {:>8} {:>9.2f}", "all weights", weights, bytes,
                              8.0 * static_cast<double>(bytes) / static_cast<double>(weights)));
  const auto a_parameter = [&](std::int64_t size) {
    return 8.0 * static_cast<double>(size) / static_cast<double>(audit.parameters);
  };
  lines.push_back(
      fmt::format("size: {:.2f} bits a parameter with scales and biases ({} bytes), {:.2f} with "
                  "the header and whatever else is in the file",
                  a_parameter(audit.payload_bytes), audit.payload_bytes, a_parameter(audit.file_bytes)));
  if (audit.weight_bits == 32) {
    lines.emplace_back("bounds: none to prove, sums are floats");
  } else if (std::all_of(audit.layers.begin(), audit.layers.end(),
                         [](const LayerAudit& layer) { return layer.is_bounded(); })) {
    lines.emplace_back("bounds: from the weights themselves, no sum can leave its accumulator");
  }
  lines.push_back("signature on 1,000 generated images: " +
                  (audit.signature_generated.empty() ? "n/a" : audit.signature_generated));
  lines.push_back("signature on the first 1,000 test images: " +
                  (audit.signature.empty() ? "n/a, there is no data set" : audit.signature));
  for (const std::string& engine : audit.engines) lines.push_back("  " + engine);
  for (const std::string& objection : audit.objections) lines.push_back("WRONG: " + objection);
  if (audit.objections.empty()) lines.emplace_back("ok: the file is what it says");
  return lines;
}

}  // namespace nibble
