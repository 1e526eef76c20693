#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/rows.h"
#include "graph/network/description.h"
#include "graph/network/layer_time.h"

namespace nibble {

/// A network that classifies, whatever runs it.
class Model {
 public:
  virtual ~Model() = default;
  /// pixels: [count][32][32][3]; logits: [count][classes]; count up to the batch it was opened for.
  virtual void run(std::span<const std::uint8_t> pixels, int count, std::span<float> logits) = 0;
  /// Time of each layer in one run.
  virtual std::vector<LayerTime> profile(std::span<const std::uint8_t> pixels, int count) = 0;
};

/// A row's file, opened: the network and what the report says about it.
struct OpenedModel {
  std::unique_ptr<Model> model;  ///< nullptr where this CPU or cap cannot run it; `note` says why
  NetworkDescription network;
  std::string engine;
  std::string isa;
  int weight_bits = 0;
  int activation_bits = 0;
  int residual_bits = 0;
  bool fused = true;
  std::optional<double> mac_fraction;
  std::int64_t file_bytes = 0;
  std::int64_t payload_bytes = 0;
  std::vector<std::string> implementations;
  std::string peak_probe;  ///< name of the probe (bench/peaks.h) of the instructions that multiply
  struct LayerKernel {
    std::string name;
    std::string peak_probe;
  };
  std::map<std::string, LayerKernel> kernels;  ///< by the layer's name; layers on oneDNN are not in it
  std::string note;
};

/// Reads the file and builds the network for up to `max_batch` images at a time. Throws InputError naming the
/// file and what is wrong with it.
OpenedModel open_model(const RowKind& kind, const std::filesystem::path& file, int max_batch);

/// Whether this row exists on this CPU: the saturating one only where it differs from the exact one.
bool exists_here(const RowRequest& row);

}  // namespace nibble
