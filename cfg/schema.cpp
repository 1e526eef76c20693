#include "cfg/keys.h"

namespace nibble {
namespace {

using nlohmann::ordered_json;

/// Of the value, or of an array's elements.
const char* scalar_type(const Member& member) {
  static constexpr const char* kTypes[] = {"boolean", "integer", "integer", "number",
                                           "string",  "integer", "string"};
  return kTypes[member.index()];
}

ordered_json bound(double value, bool integer) {
  return integer ? ordered_json(static_cast<std::int64_t>(value)) : ordered_json(value);
}

void add_limits(ordered_json& schema, const Limits& limits, bool integer) {
  if (!limits.choices.empty()) {
    schema["enum"] = limits.choices;
  } else if (limits.maximum > 0) {
    schema[limits.above_minimum ? "exclusiveMinimum" : "minimum"] = bound(limits.minimum, integer);
    schema["maximum"] = bound(limits.maximum, integer);
  }
}

ordered_json key_schema(const Key& key) {
  ordered_json schema;
  schema["description"] = key.description;
  const bool integer = !std::holds_alternative<double& (*)(Configuration&)>(key.member);
  const bool integers = std::holds_alternative<std::vector<int>& (*)(Configuration&)>(key.member);
  const bool strings = std::holds_alternative<std::vector<std::string>& (*)(Configuration&)>(key.member);
  if (strings) {
    schema["type"] = {"string", "array"};
  } else {
    schema["type"] = integers ? "array" : scalar_type(key.member);
  }
  ordered_json& values = integers || strings ? schema["items"] : schema;
  if (integers || strings) values["type"] = scalar_type(key.member);
  add_limits(values, key.limits, integer);
  schema["default"] = read_member(key, Configuration{});
  return schema;
}

ordered_json empty_object() {
  return {{"type", "object"},
          {"additionalProperties", false},
          {"patternProperties", {{"^_comment", true}}},
          {"properties", ordered_json::object()}};
}

}  // namespace

ordered_json configuration_schema() {
  ordered_json schema = {
      {"$schema", "https://json-schema.org/draft/2020-12/schema"},
      {"title", "Configuration of train, quant and bench"},
      {"description",
       "Every key may be left out. Keys that begin with _comment are skipped; // comments are accepted."}};
  schema.update(empty_object());
  for (const Key& key : configuration_keys()) {
    ordered_json* object = &schema;
    std::size_t begin = 0;
    for (std::size_t dot; (dot = key.path.find('.', begin)) != std::string::npos; begin = dot + 1) {
      ordered_json& child = (*object)["properties"][key.path.substr(begin, dot - begin)];
      if (child.is_null()) child = empty_object();
      object = &child;
    }
    (*object)["properties"][key.path.substr(begin)] = key_schema(key);
  }
  return schema;
}

}  // namespace nibble
