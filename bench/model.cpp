#include "bench/model.h"

#include <algorithm>

#include "bench/peaks.h"
#include "bench/system.h"
#include "graph/network/error.h"
#include "graph/network/instruction_set.h"
#include "graph/network/integer_network.h"
#include "graph/network/quantized_parameters.h"
#include "graph/network/tensor_file.h"
#include "graph/onednn/float_network.h"
#include "graph/onednn/int8_network.h"
#include "graph/onednn/int8_unfused_network.h"

namespace nibble {
namespace {

/// Bytes of the tensors that belong to the network's layers: a float checkpoint has the optimizer's too.
std::int64_t layer_bytes(const NetworkDescription& network, const TensorFile& file) {
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : file.tensors) {
    const bool of_layer =
        name.starts_with("linear.") ||
        std::any_of(network.convolutions.begin(), network.convolutions.end(),
                    [&](const Convolution& convolution) { return name.starts_with(convolution.name + "."); });
    if (of_layer) bytes += static_cast<std::int64_t>(tensor.bytes.size());
  }
  return bytes;
}

std::int64_t all_bytes(const TensorFile& file) {
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : file.tensors) bytes += static_cast<std::int64_t>(tensor.bytes.size());
  return bytes;
}

/// Adapts a network on oneDNN: FloatNetwork, Int8Network and Int8UnfusedNetwork have the same face.
template <typename Network>
class OneDnnModel : public Model {
 public:
  explicit OneDnnModel(Network network) : network_(std::move(network)) {}
  void run(std::span<const std::uint8_t> pixels, int count, std::span<float> logits) override {
    network_.run(pixels, count, logits);
  }
  std::vector<LayerTime> profile(std::span<const std::uint8_t> pixels, int count) override {
    return network_.profile(pixels, count);
  }

 private:
  Network network_;
};

class IntegerModel : public Model {
 public:
  explicit IntegerModel(const QuantizedNetwork& quantized)
      : network_(quantized, effective_instruction_set()) {}
  void run(std::span<const std::uint8_t> pixels, int count, std::span<float> logits) override {
    network_.run(pixels.data(), count, logits.data());
  }
  std::vector<LayerTime> profile(std::span<const std::uint8_t> pixels, int count) override {
    return network_.profile(pixels.data(), count);
  }
  const IntegerNetwork& network() const { return network_; }

 private:
  IntegerNetwork network_;
};

template <typename Network>
void take_onednn(Network network, OpenedModel& opened) {
  opened.isa = onednn_isa();
  opened.peak_probe = onednn_probe_name(opened.weight_bits);
  opened.implementations = network.implementations();
  opened.model = std::make_unique<OneDnnModel<Network>>(std::move(network));
}

void open_float(const std::filesystem::path& file, int max_batch, Precision precision, OpenedModel& opened) {
  const TensorFile tensors = read_tensor_file(file);
  opened.network = stored_network(tensors);
  opened.payload_bytes = layer_bytes(opened.network, tensors);
  opened.engine = "onednn";
  opened.weight_bits = opened.activation_bits = opened.residual_bits = precision == Precision::fp32 ? 32 : 16;
  try {
    require_precision(precision);
  } catch (const InputError& error) {
    opened.note = error.what();
    return;
  }
  take_onednn(FloatNetwork(opened.network, stored_parameters(opened.network, tensors), max_batch, precision),
              opened);
}

void open_quantized(const RowKind& kind, const std::filesystem::path& file, int max_batch,
                    OpenedModel& opened) {
  const QuantizedNetwork quantized = read_quantized(file);
  opened.network = quantized.network;
  opened.payload_bytes = all_bytes(read_tensor_file(file));
  opened.weight_bits = quantized.parameters.weight_bits;
  opened.activation_bits = quantized.parameters.activation_bits;
  opened.residual_bits = quantized.parameters.residual_bits();
  opened.mac_fraction = nominal_mac_fraction(quantized);
  if (kind.runner == Runner::integer) {
    auto model = std::make_unique<IntegerModel>(quantized);
    opened.engine = "nibble";
    opened.isa = name_of(model->network().instruction_set());
    if (!quantized.parameters.provenance.contains(kMixedWidths)) {  // else no one peak is the network's
      opened.peak_probe =
          probe_name(model->network().instruction_set(), opened.weight_bits, opened.activation_bits);
    }
    for (const PlannedConvolution& planned : model->network().plan().convolutions) {
      const ConvolutionKernel& kernel = *planned.kernel;
      opened.kernels[planned.name] = {
          std::string(kernel.name),
          probe_name(kernel.instruction_set, kernel.weight_bits, kernel.activation_bits)};
    }
    opened.model = std::move(model);
    return;
  }
  const bool saturating = kind.runner == Runner::int8_saturating;
  Int8Network network(quantized, max_batch, saturating ? UnprovedLayers::saturating : UnprovedLayers::exact);
  opened.engine = network.engine();
  if (saturating)
    opened.note = "sums of two products saturate at 16 bits, so the results are wrong; for comparison";
  take_onednn(std::move(network), opened);
}

void open_unfused(const std::filesystem::path& file, int max_batch, OpenedModel& opened) {
  const UnfusedNetwork unfused = read_unfused(file);
  opened.network = unfused.network;
  opened.payload_bytes = all_bytes(read_tensor_file(file));
  opened.engine = "onednn";
  opened.weight_bits = opened.activation_bits = opened.residual_bits = 8;
  opened.fused = false;
  take_onednn(Int8UnfusedNetwork(unfused, max_batch), opened);
}

}  // namespace

OpenedModel open_model(const RowKind& kind, const std::filesystem::path& file, int max_batch) {
  OpenedModel opened;
  opened.file_bytes = static_cast<std::int64_t>(std::filesystem::file_size(file));
  try {
    switch (kind.runner) {
      case Runner::fp32:
        open_float(file, max_batch, Precision::fp32, opened);
        break;
      case Runner::bf16:
        open_float(file, max_batch, Precision::bf16, opened);
        break;
      case Runner::int8_unfused:
        open_unfused(file, max_batch, opened);
        break;
      case Runner::int8_fused:
      case Runner::int8_saturating:
      case Runner::integer:
        open_quantized(kind, file, max_batch, opened);
        break;
    }
  } catch (const InputError& error) {
    const std::string text = error.what();
    if (text.find(file.string()) != std::string::npos) throw;
    throw InputError(file.string() + ": " + text);  // a network's refusal, which knows no file
  }
  return opened;
}

bool exists_here(const RowRequest& row) {
  return row.kind.runner != Runner::int8_saturating || !onednn_is_exact(read_quantized(row.file));
}

}  // namespace nibble
