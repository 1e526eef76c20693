#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// The element types of safetensors that checkpoints use.
enum class DataType { u8, i8, i16, i32, i64, u64, f32 };

std::string_view name_of(DataType type);  ///< as safetensors spells it: "U8", "I8", ..., "F32"

struct StoredTensor {
  DataType type;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;  ///< little-endian, row-major; size = product of shape * size of type
};

/// One safetensors file in memory: https://github.com/huggingface/safetensors#format
///
///   u64 length of header | header, JSON | tensor bytes, without gaps
///
/// The metadata entry "xxh64" is XXH64 (seed 0) of the whole file with that entry's 16 digits as '0'.
struct TensorFile {
  std::map<std::string, std::string> metadata;
  std::map<std::string, StoredTensor> tensors;

  /// A metadata entry; empty where there is none.
  std::string entry(const std::string& key) const;

  /// The tensor's values; throws InputError (naming `file`, the tensor and what was expected) unless it is
  /// there with exactly this type and shape. T: uint8_t, int8_t, int16_t, int32_t, int64_t, uint64_t, float.
  /// Floats must be finite.
  template <typename T>
  std::vector<T> values(const std::string& name, std::span<const std::int64_t> shape) const;

  template <typename T>
  void set(const std::string& name, std::span<const std::int64_t> shape, std::span<const T> values);

  std::filesystem::path file;  ///< where it was read from; only for messages
};

/// Reads and checks a file: length (up to 1 GiB), JSON, repeated names, types, gaps, overlaps, checksum
/// (required). Throws InputError that names the file and what is wrong with it.
TensorFile read_tensor_file(const std::filesystem::path& path);

/// The bytes of such a file.
std::vector<std::byte> serialize(const TensorFile& file);

/// Writes beside `path` first, then fsync, rename, fsync of the folder: whatever happens, `path` is either
/// the old file or the new one. Creates missing folders. Throws RunError.
void write_tensor_file(const std::filesystem::path& path, const TensorFile& file);

/// The same way of writing for any bytes (logs, reports).
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);

/// Throws InputError unless the above can write to `path`, which may be there already: before minutes of work
/// whose result would have no place. Creates missing folders.
void require_writable(const std::filesystem::path& path);

}  // namespace nibble
