#pragma once

#include <fstream>
#include <nlohmann/json.hpp>

namespace nibble {

/// PyTorch's numbers; make_golden.py says how they were made.
inline const nlohmann::json& golden() {
  static const nlohmann::json json = [] {
    std::ifstream file(NIBBLE_GOLDEN);
    return nlohmann::json::parse(file);
  }();
  return json;
}

}  // namespace nibble
