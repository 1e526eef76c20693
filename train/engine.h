#pragma once

#include <string>

namespace nibble {

/// The library that computes, for logs: "oneDNN 3.2.0, AVX2".
std::string engine_name();

}  // namespace nibble
