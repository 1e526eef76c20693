#include "train/engine.h"

#include <fmt/format.h>

#include <oneapi/dnnl/dnnl.hpp>

namespace nibble {

std::string engine_name() {
  const dnnl_version_t& version = *dnnl_version();
  const auto isa = dnnl::get_effective_cpu_isa();
  const char* name = isa == dnnl::cpu_isa::sse41              ? "SSE4.1"
                     : isa == dnnl::cpu_isa::avx              ? "AVX"
                     : isa == dnnl::cpu_isa::avx2             ? "AVX2"
                     : isa == dnnl::cpu_isa::avx2_vnni        ? "AVX2 VNNI"
                     : isa == dnnl::cpu_isa::avx512_core      ? "AVX-512"
                     : isa == dnnl::cpu_isa::avx512_core_vnni ? "AVX-512 VNNI"
                     : isa == dnnl::cpu_isa::avx512_core_bf16 ? "AVX-512 BF16"
                     : isa == dnnl::cpu_isa::avx512_core_amx  ? "AMX"
                                                              : "newer than AVX-512 BF16";
  return fmt::format("oneDNN {}.{}.{}, {}", version.major, version.minor, version.patch, name);
}

}  // namespace nibble
