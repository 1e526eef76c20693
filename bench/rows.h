#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace nibble {

/// What runs a file.
enum class Runner {
  fp32,             ///< FloatNetwork
  bf16,             ///< FloatNetwork in BF16
  int8_unfused,     ///< Int8UnfusedNetwork
  int8_fused,       ///< Int8Network, right on every CPU
  int8_saturating,  ///< Int8Network with every layer on oneDNN; only where that differs, on CPUs without VNNI
  integer           ///< IntegerNetwork, our own kernels
};

/// RowKind::weight_bits of files whose blocks differ in width.
inline constexpr int kMixedKind = 0;

/// One kind of row of the table: a file's kind and what runs it.
struct RowKind {
  const char* name;
  const char* suffix;   ///< of the file: checkpoint path P gives P<suffix>.safetensors
  const char* made_by;  ///< the command that makes the file
  const char* format;   ///< metadata entry "format" of the file
  int weight_bits;      ///< nominal, or kMixedKind
  Runner runner;
};

/// Every kind, in the order of the table.
const std::vector<RowKind>& row_kinds();

/// A row that is to be measured.
struct RowRequest {
  RowKind kind;
  std::string name;  ///< kind.name, with what distinguishes files of the same kind
  std::filesystem::path file;
  std::filesystem::path reference;  ///< the FP32 file that it was made from; empty: there is none
};

struct RowSelection {
  std::vector<RowRequest> rows;
  std::vector<std::string> remarks;  ///< one sentence each: files that are missing or were passed over
};

/// The rows for checkpoint path P: first P's own files in the order of row_kinds(), then the other files of
/// P's folder by name.
///
/// `models` keeps those whose name ("int4", every case), file name without .safetensors ("64_200_int4") or
/// path is listed, in that order; a path outside P's folder is taken too, and stands for that file alone.
/// Throws InputError when nothing is there to be measured, a path has no file, or naming the nearest name
/// when an entry matches nothing.
RowSelection select_rows(const std::string& checkpoint_path, const std::vector<std::string>& models);

}  // namespace nibble
