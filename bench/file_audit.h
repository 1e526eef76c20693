#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "graph/data/cifar10.h"

namespace nibble {

/// What a file stores for one layer, and what its sums can reach.
struct LayerAudit {
  std::string name;
  int weight_bits;            ///< as the file states it; 32 in an FP32 checkpoint
  int input_bits;             ///< of the activations that it reads
  std::int64_t weights;       ///< how many
  std::int64_t stored_bytes;  ///< of the tensor of its weights
  std::int64_t largest_sum;   ///< no partial sum of any order exceeds it in magnitude; 0: floats
  std::int64_t
      register_limit;  ///< of the accumulator that it is given: 2^31 - 1, or 2^53 where it has 64 bits
  std::string kernel;  ///< that this CPU runs it on, proved for these very weights; empty: oneDNN

  double stored_bits() const {
    return 8.0 * static_cast<double>(stored_bytes) / static_cast<double>(weights);
  }
  bool is_bounded() const { return largest_sum <= register_limit; }
};

/// A checkpoint looked into: what it claims to be and whether its bytes agree.
struct FileAudit {
  std::filesystem::path file;
  std::string format;   ///< "nibble-integer-1" and so on
  std::string network;  ///< "resnet_344", "he 20 B"
  int weight_bits = 0;
  int activation_bits = 0;
  int residual_bits = 0;
  std::optional<double> mac_fraction;
  std::int64_t file_bytes = 0;
  std::int64_t payload_bytes = 0;  ///< of the tensors of the network
  std::int64_t parameters = 0;
  std::vector<LayerAudit> layers;
  std::vector<std::string> provenance;  ///< "key: value"
  std::string signature_generated;
  std::string signature;                ///< empty without the data set
  std::vector<std::string> engines;     ///< checks of the signature: "scalar reference: equal"
  std::vector<std::string> objections;  ///< one sentence each; empty: the file is what it says
};

/// Fraction of the multiply-accumulates that must run at the widths that a file's name gives.
inline constexpr double kLeastNominalFraction = 0.98;

/// Reads the whole file (length, checksum, every tensor: InputError names what is wrong), bounds every sum
/// from its weights, counts stored bits, and runs it on 1,000 generated images and, unless `images` is empty,
/// on the first 1,000 of those. FP32 checkpoints and unfused networks are audited as far as they go.
FileAudit audit_file(const std::filesystem::path& file, const Dataset& images);

/// The audit as people read it.
std::vector<std::string> to_lines(const FileAudit& audit);

}  // namespace nibble
