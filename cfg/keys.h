#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "cfg/configuration.h"

namespace nibble {

/// The member that a key sets; the type of the member is the type of the key.
using Member =
    std::variant<bool& (*)(Configuration&), int& (*)(Configuration&), std::uint64_t& (*)(Configuration&),
                 double& (*)(Configuration&), std::string& (*)(Configuration&),
                 std::vector<int>& (*)(Configuration&), std::vector<std::string>& (*)(Configuration&)>;

/// What a value may be beyond its type. A list's range and choices hold for its elements.
struct Limits {
  double minimum = 0;
  double maximum = 0;
  bool above_minimum = false;           ///< the minimum itself is excluded
  std::vector<nlohmann::json> choices;  ///< when not empty, nothing else is allowed
};

enum class Effect { weights, none };  ///< whether the key changes the weights that training gives

/// One key of a configuration file.
struct Key {
  std::string path;  ///< "cfg_train.augmentation.flip"
  Member member;
  Limits limits;
  Effect effect;
  std::string description;  ///< one line for cfg/schema.json
};

/// Every key, in the order of the files.
const std::vector<Key>& configuration_keys();

/// The objects that hold them: "cfg_train", "cfg_train.augmentation", ...
const std::vector<std::string>& configuration_sections();

nlohmann::json read_member(const Key& key, const Configuration& configuration);

/// Checks type and limits, then sets the member. Throws InputError: "<source>: <path> is <found>; it must be
/// ...".
void write_member(const Key& key, const nlohmann::json& value, Configuration& configuration,
                  const std::string& source);

}  // namespace nibble
