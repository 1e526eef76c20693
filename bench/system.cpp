#include "bench/system.h"

#include <fmt/format.h>

#include <fstream>
#include <oneapi/dnnl/dnnl.hpp>
#include <set>
#include <sstream>

namespace nibble {
namespace {

/// The value of the first line "key : value".
std::string line_value(const char* file, const std::string& key) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

int number_of(const std::string& text) {
  return text.empty() ? -1 : std::stoi(text);
}

}  // namespace

std::string cpu_name() {
  const std::string name = line_value("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown CPU" : name;
}

bool cpu_has(const std::string& feature) {
  static const std::set<std::string> features = [] {
    std::set<std::string> words;
    std::istringstream stream(line_value("/proc/cpuinfo", "flags"));
    for (std::string word; stream >> word;) words.insert(word);
    return words;
  }();
  return features.contains(feature);
}

Microarchitecture microarchitecture() {
  if (line_value("/proc/cpuinfo", "vendor_id") != "AuthenticAMD") return Microarchitecture::other;
  // Family 19h is Zen 3 and Zen 4; of the two, only Zen 4 has AVX-512.
  if (number_of(line_value("/proc/cpuinfo", "cpu family")) != 0x19) return Microarchitecture::other;
  const int model = number_of(line_value("/proc/cpuinfo", "model\t"));
  const bool zen4 = (model >= 0x10 && model <= 0x1f) || (model >= 0x60 && model <= 0x7f) ||
                    (model >= 0xa0 && model <= 0xaf);
  return zen4 ? Microarchitecture::zen4 : Microarchitecture::zen3;
}

std::optional<std::int64_t> peak_memory_bytes() {
  const std::string text = line_value("/proc/self/status", "VmHWM");  // "12345 kB"
  if (text.empty()) return std::nullopt;
  return std::stoll(text) * 1024;
}

std::string onednn_version() {
  const dnnl_version_t* version = dnnl::version();
  return fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
}

std::string onednn_isa() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41:
      return "sse41";
    case dnnl::cpu_isa::avx:
      return "avx";
    case dnnl::cpu_isa::avx2:
      return "avx2";
    case dnnl::cpu_isa::avx2_vnni:
      return "avx2_vnni";
    case dnnl::cpu_isa::avx2_vnni_2:
      return "avx2_vnni_2";
    case dnnl::cpu_isa::avx512_core:
      return "avx512_core";
    case dnnl::cpu_isa::avx512_core_vnni:
      return "avx512_core_vnni";
    case dnnl::cpu_isa::avx512_core_bf16:
      return "avx512_core_bf16";
    case dnnl::cpu_isa::avx512_core_fp16:
      return "avx512_core_fp16";
    case dnnl::cpu_isa::avx512_core_amx:
      return "avx512_core_amx";
    case dnnl::cpu_isa::avx512_core_amx_fp16:
      return "avx512_core_amx_fp16";
    default:
      return "other";
  }
}

}  // namespace nibble
