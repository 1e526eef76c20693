#include "graph/network/tensor_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "graph/network/error.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

static_assert(std::endian::native == std::endian::little, "tensor bytes are used as they lie in the file");

namespace nibble {
namespace {

using nlohmann::json;

struct TypeRow {
  DataType type;
  std::string_view name;
  std::size_t size;
};

constexpr std::array kTypes = {TypeRow{DataType::u8, "U8", 1},   TypeRow{DataType::i8, "I8", 1},
                               TypeRow{DataType::i16, "I16", 2}, TypeRow{DataType::i32, "I32", 4},
                               TypeRow{DataType::i64, "I64", 8}, TypeRow{DataType::u64, "U64", 8},
                               TypeRow{DataType::f32, "F32", 4}};

const TypeRow& row_of(DataType type) {
  return *std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeRow& row) { return row.type == type; });
}

template <typename T>
constexpr DataType type_for();
template <>
constexpr DataType type_for<std::uint8_t>() {
  return DataType::u8;
}
template <>
constexpr DataType type_for<std::int8_t>() {
  return DataType::i8;
}
template <>
constexpr DataType type_for<std::int16_t>() {
  return DataType::i16;
}
template <>
constexpr DataType type_for<std::int32_t>() {
  return DataType::i32;
}
template <>
constexpr DataType type_for<std::int64_t>() {
  return DataType::i64;
}
template <>
constexpr DataType type_for<std::uint64_t>() {
  return DataType::u64;
}
template <>
constexpr DataType type_for<float>() {
  return DataType::f32;
}

// Far above any of ours; stop a damaged length field, and a file of another kind before it fills the memory.
constexpr std::size_t kMaximumHeader = 16U << 20;
constexpr std::streamoff kMaximumFile = 1 << 30;
constexpr std::string_view kChecksumKey = "xxh64";
constexpr std::string_view kChecksumZeros = "0000000000000000";

std::string hexadecimal(std::uint64_t value) {
  std::string text(16, '0');
  for (std::size_t i = 0; i < text.size(); ++i)
    text[text.size() - 1 - i] = "0123456789abcdef"[(value >> (4 * i)) & 15U];
  return text;
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

/// Where the checksum's digits lie in a serialized header; npos when it has none.
std::size_t checksum_position(std::string_view header) {
  const std::string key = "\"" + std::string(kChecksumKey) + "\":\"";
  const std::size_t found = header.find(key);
  return found == std::string_view::npos ? found : found + key.size();
}

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& why) {
  throw InputError(path.string() + ": " + why +
                   "; the file is damaged or not a checkpoint of this program, make or download it again");
}

/// Parses the header and refuses a key that appears twice in one object, which plain parsing would hide.
json parse_header(const std::filesystem::path& path, std::string_view text) {
  std::vector<std::set<std::string>> open_objects;
  std::string repeated;
  const auto watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects.pop_back();
    if (event == json::parse_event_t::key && !open_objects.back().insert(value.get<std::string>()).second) {
      repeated = value.get<std::string>();
    }
    return true;
  };
  json header;
  try {
    header = json::parse(text, watch);
  } catch (const json::exception& error) {
    refuse(path, std::string("the header is not JSON (") + error.what() + ")");
  }
  if (!repeated.empty()) refuse(path, "the name '" + repeated + "' appears twice in the header");
  if (!header.is_object()) refuse(path, "the header is not a JSON object");
  return header;
}

/// Type and shape; the bytes are those of `range`.
StoredTensor parse_tensor(const std::filesystem::path& path, const std::string& name, const json& entry,
                          std::span<const std::byte> data, std::pair<std::size_t, std::size_t>& range) {
  StoredTensor tensor;
  try {
    const auto type_name = entry.at("dtype").get<std::string>();
    const auto row = std::find_if(kTypes.begin(), kTypes.end(),
                                  [&](const TypeRow& candidate) { return candidate.name == type_name; });
    if (row == kTypes.end()) refuse(path, "tensor '" + name + "' has the unknown type '" + type_name + "'");
    tensor.type = row->type;
    std::size_t expected = row->size;
    for (const json& extent : entry.at("shape")) {
      const auto value = extent.get<std::int64_t>();
      if (value < 0 || !extent.is_number_integer())
        refuse(path, "tensor '" + name + "' has an impossible shape");
      if (value != 0 && expected > data.size() / static_cast<std::size_t>(value)) {
        refuse(path, "tensor '" + name + "' is larger than the file");
      }
      expected *= static_cast<std::size_t>(value);
      tensor.shape.push_back(value);
    }
    const json& offsets = entry.at("data_offsets");
    if (offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) {
      refuse(path, "tensor '" + name + "' has no data_offsets [begin, end]");
    }
    range = {offsets[0].get<std::size_t>(), offsets[1].get<std::size_t>()};
    if (range.first > range.second || range.second > data.size() || range.second - range.first != expected) {
      refuse(path, "tensor '" + name + "' of shape " + shape_text(tensor.shape) + " needs " +
                       std::to_string(expected) + " bytes, its offsets say " + std::to_string(range.first) +
                       " to " + std::to_string(range.second) + " of " + std::to_string(data.size()));
    }
  } catch (const json::exception& error) {
    refuse(path, "the entry of tensor '" + name + "' is malformed (" + error.what() + ")");
  }
  return tensor;
}

/// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(); }
  int get() const { return descriptor_; }
  bool close() {
    const int descriptor = std::exchange(descriptor_, -1);
    return descriptor < 0 || ::close(descriptor) == 0;
  }

 private:
  int descriptor_;
};

[[noreturn]] void fail_to_write(const std::filesystem::path& path) {
  throw RunError("cannot write " + path.string() + ": " + std::strerror(errno) +
                 "; free space or choose a writable folder (what was saved before is untouched)");
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : ".";
}

/// A folder or a device, which a rename would fail on or replace.
bool is_no_file(const std::filesystem::path& path) {
  std::error_code ignored;
  const std::filesystem::file_status status = std::filesystem::status(path, ignored);
  return std::filesystem::exists(status) && !std::filesystem::is_regular_file(status);
}

constexpr const char* kNoFile = " is a folder or a device and stays as it is; name a file";

}  // namespace

std::string_view name_of(DataType type) {
  return row_of(type).name;
}

std::string TensorFile::entry(const std::string& key) const {
  const auto found = metadata.find(key);
  return found == metadata.end() ? "" : found->second;
}

template <typename T>
std::vector<T> TensorFile::values(const std::string& name, std::span<const std::int64_t> shape) const {
  const auto found = tensors.find(name);
  const std::string expected = std::string(name_of(type_for<T>())) + " " + shape_text(shape);
  if (found == tensors.end()) {
    throw InputError(file.string() + ": tensor '" + name + "' is missing (expected " + expected +
                     "); is it a checkpoint of another network?");
  }
  const StoredTensor& tensor = found->second;
  if (tensor.type != type_for<T>() ||
      !std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) {
    throw InputError(file.string() + ": tensor '" + name + "' is " + std::string(name_of(tensor.type)) + " " +
                     shape_text(tensor.shape) + ", expected " + expected +
                     "; is it a checkpoint of another network?");
  }
  std::vector<T> values(tensor.bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  if constexpr (std::is_same_v<T, float>) {
    const auto bad = std::find_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
    if (bad != values.end()) {
      throw InputError(file.string() + ": tensor '" + name + "' has NaN or infinity at element " +
                       std::to_string(bad - values.begin()) +
                       ", expected finite numbers; use an earlier checkpoint");
    }
  }
  return values;
}

template <typename T>
void TensorFile::set(const std::string& name, std::span<const std::int64_t> shape,
                     std::span<const T> values) {
  StoredTensor tensor{
      type_for<T>(), {shape.begin(), shape.end()}, std::vector<std::byte>(values.size_bytes())};
  if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), values.size_bytes());
  tensors.insert_or_assign(name, std::move(tensor));
}

#define NIBBLE_TENSOR_TYPE(T)                                                                             \
  template std::vector<T> TensorFile::values<T>(const std::string&, std::span<const std::int64_t>) const; \
  template void TensorFile::set<T>(const std::string&, std::span<const std::int64_t>, std::span<const T>);
NIBBLE_TENSOR_TYPE(std::uint8_t)
NIBBLE_TENSOR_TYPE(std::int8_t)
NIBBLE_TENSOR_TYPE(std::int16_t)
NIBBLE_TENSOR_TYPE(std::int32_t)
NIBBLE_TENSOR_TYPE(std::int64_t)
NIBBLE_TENSOR_TYPE(std::uint64_t)
NIBBLE_TENSOR_TYPE(float)
#undef NIBBLE_TENSOR_TYPE

std::vector<std::byte> serialize(const TensorFile& file) {
  json header = json::object();
  json metadata = json::object();
  for (const auto& [key, value] : file.metadata) metadata[key] = value;
  metadata[std::string(kChecksumKey)] = kChecksumZeros;
  header["__metadata__"] = metadata;
  std::size_t end = 0;
  for (const auto& [name, tensor] : file.tensors) {
    const std::size_t begin = end;
    end += tensor.bytes.size();
    header[name] = {{"dtype", name_of(tensor.type)}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text =
      header.dump(-1, ' ', false, json::error_handler_t::replace);  // names of files are any bytes
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that tensors of the file start aligned

  std::vector<std::byte> bytes(8 + text.size() + end);
  const std::uint64_t length = text.size();
  std::memcpy(bytes.data(), &length, 8);
  std::memcpy(bytes.data() + 8, text.data(), text.size());
  std::size_t position = 8 + text.size();
  for (const auto& [name, tensor] : file.tensors) {
    if (!tensor.bytes.empty()) std::memcpy(bytes.data() + position, tensor.bytes.data(), tensor.bytes.size());
    position += tensor.bytes.size();
  }
  const std::string digits = hexadecimal(XXH64(bytes.data(), bytes.size(), 0));
  std::memcpy(bytes.data() + 8 + checksum_position(text), digits.data(), digits.size());
  return bytes;
}

TensorFile read_tensor_file(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    const bool absent = status.type() == std::filesystem::file_type::not_found;
    throw InputError(path.string() + ": " + (absent ? "there is no such file" : error.message()) +
                     "; train or quantize first, or name another checkpoint");
  }
  if (!std::filesystem::is_regular_file(status)) {
    throw InputError(path.string() + ": this is not a file; name a checkpoint, P.safetensors");
  }
  // The size is asked from the open file: a training may put a new one under this name at any moment.
  std::ifstream stream(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = stream ? static_cast<std::streamoff>(stream.tellg()) : 0;
  if (size > kMaximumFile)
    refuse(path, "it has " + std::to_string(size) + " bytes, more than any checkpoint");
  std::vector<std::byte> bytes(static_cast<std::size_t>(std::max<std::streamoff>(size, 0)));
  if (!stream.seekg(0) ||
      !stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
    throw InputError(path.string() + ": cannot be read; check its permissions and the disk");
  }
  if (bytes.size() < 8) refuse(path, "it has only " + std::to_string(bytes.size()) + " bytes");
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  if (length > kMaximumHeader || length > bytes.size() - 8) {
    refuse(path, "the header should have " + std::to_string(length) + " bytes, the file has " +
                     std::to_string(bytes.size()));
  }
  const std::string text(reinterpret_cast<const char*>(bytes.data()) + 8, length);
  const json header = parse_header(path, text);

  TensorFile file;
  file.file = path;
  const auto data = std::span<const std::byte>(bytes).subspan(8 + length);
  std::vector<std::tuple<std::size_t, std::size_t, std::string>> ranges;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) refuse(path, "the metadata entry '" + key + "' is not text");
        file.metadata[key] = value.get<std::string>();
      }
      continue;
    }
    std::pair<std::size_t, std::size_t> range;
    file.tensors[name] = parse_tensor(path, name, entry, data, range);
    ranges.emplace_back(range.first, range.second, name);
  }
  std::sort(ranges.begin(), ranges.end());
  std::size_t end = 0;
  for (const auto& [begin, next, name] : ranges) {
    if (begin != end) {
      refuse(path, "tensor '" + name + "' begins at byte " + std::to_string(begin) + ", expected " +
                       std::to_string(end) + " (a gap or an overlap)");
    }
    end = next;
  }
  if (end != data.size()) {
    refuse(path, "the tensors take " + std::to_string(end) + " bytes, the file holds " +
                     std::to_string(data.size()));
  }

  const auto stored = file.metadata.find(std::string(kChecksumKey));
  const std::size_t position = checksum_position(text);
  if (stored == file.metadata.end() || stored->second.size() != kChecksumZeros.size() ||
      position == std::string::npos || text.compare(position, kChecksumZeros.size(), stored->second) != 0) {
    refuse(path, "the metadata has no checksum '" + std::string(kChecksumKey) + "'");
  }
  std::memcpy(bytes.data() + 8 + position, kChecksumZeros.data(), kChecksumZeros.size());
  const std::string computed = hexadecimal(XXH64(bytes.data(), bytes.size(), 0));
  if (computed != stored->second)
    refuse(path, "the checksum is " + computed + ", expected " + stored->second);
  file.metadata.erase(stored);

  // Only now: entries that all name the same bytes would have taken them as often as there are entries.
  for (const auto& [begin, next, name] : ranges) {
    const auto tensor = data.subspan(begin, next - begin);
    file.tensors[name].bytes.assign(tensor.begin(), tensor.end());
  }
  return file;
}

void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  const std::filesystem::path folder = folder_of(path);
  std::error_code status;
  std::filesystem::create_directories(folder, status);
  if (is_no_file(path)) throw RunError(path.string() + kNoFile);
  std::filesystem::path temporary = path;
  temporary += "." + std::to_string(::getpid()) + ".tmp";
  try {
    Descriptor output(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (output.get() < 0) fail_to_write(path);
    for (std::size_t done = 0; done < bytes.size();) {
      const ssize_t written = ::write(output.get(), bytes.data() + done, bytes.size() - done);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail_to_write(path);
      done += static_cast<std::size_t>(written);
    }
    if (::fsync(output.get()) != 0 || !output.close()) fail_to_write(path);
    if (::rename(temporary.c_str(), path.c_str()) != 0) fail_to_write(path);
  } catch (...) {
    std::filesystem::remove(temporary, status);
    throw;
  }
  const Descriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) ::fsync(directory.get());
}

void require_writable(const std::filesystem::path& path) {
  const std::filesystem::path folder = folder_of(path);
  std::error_code ignored;
  std::filesystem::create_directories(folder, ignored);
  if (is_no_file(path)) throw InputError(path.string() + kNoFile);
  if (!std::filesystem::is_directory(folder, ignored) || ::access(folder.c_str(), W_OK) != 0) {
    throw InputError(path.string() + " cannot be written; name a file in a folder that is writable");
  }
}

void write_tensor_file(const std::filesystem::path& path, const TensorFile& file) {
  write_file_atomically(path, serialize(file));
}

}  // namespace nibble
