#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "cfg/configuration.h"
#include "cfg/keys.h"

namespace nibble {
namespace {

TEST(Schema, TheCommittedFileIsTheTableOfKeys) {
  std::ostringstream committed;
  committed << std::ifstream(CONFIGURATIONS "/schema.json").rdbuf();
  EXPECT_EQ(committed.str(), configuration_schema().dump(2) + "\n")
      << "cfg/schema.json is old: build write_schema and run build/release/write_schema > cfg/schema.json";
}

TEST(Schema, HasEveryKeyWithItsDefaultAndDescription) {
  const nlohmann::ordered_json schema = configuration_schema();
  std::size_t keys = 0;
  for (const Key& key : configuration_keys()) {
    std::string pointer = "/properties/" + key.path;
    for (std::size_t dot; (dot = pointer.find('.')) != std::string::npos;) {
      pointer.replace(dot, 1, "/properties/");
    }
    const auto& entry = schema.at(nlohmann::ordered_json::json_pointer(pointer));
    EXPECT_EQ(entry.at("default"), nlohmann::ordered_json(read_member(key, Configuration{}))) << key.path;
    EXPECT_FALSE(entry.at("description").get<std::string>().empty()) << key.path;
    ++keys;
  }
  EXPECT_GE(keys, 50U);
  for (const std::string& section : configuration_sections()) {
    std::string pointer = "/properties/" + section;
    for (std::size_t dot; (dot = pointer.find('.')) != std::string::npos;) {
      pointer.replace(dot, 1, "/properties/");
    }
    EXPECT_EQ(schema.at(nlohmann::ordered_json::json_pointer(pointer + "/additionalProperties")), false);
  }
}

}  // namespace
}  // namespace nibble
