#include "bench/peers.h"

#include <gmock/gmock.h>

#include <fstream>

#include "graph/network/error.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

std::filesystem::path write(const TemporaryFolder& folder, const std::string& text) {
  const std::filesystem::path file = folder / "peers.json";
  std::ofstream(file) << text;
  return file;
}

TEST(Peers, CarryTheirProvenance) {
  const TemporaryFolder folder;
  const std::vector<ReportRow> rows =
      peer_rows(write(folder, R"({"date": "2026-11-23", "cpu": "Some CPU", "versions": {"PyTorch": "2.13.0"},
                 "settings": {"checkpoint": "p.safetensors", "images": 10000, "threads": 2}, "rows": [
                 {"name": "PyTorch int8", "engine": "pytorch", "weight_bits": 8, "top1": 0.881},
                 {"name": "OpenVINO int8", "engine": "openvino", "images_per_second": 5727.0}]})"));
  ASSERT_EQ(rows.size(), 6U);
  EXPECT_EQ(rows[0].name, "Original");
  EXPECT_EQ(rows[1].name, "PyTorch int2");
  EXPECT_FALSE(rows[1].measured);
  EXPECT_EQ(rows[3].name, "PyTorch int8");
  EXPECT_EQ(rows[3].top1, 0.881);
  EXPECT_EQ(rows[3].measured->date, "2026-11-23");
  EXPECT_EQ(rows[3].measured->versions.at("PyTorch"), "2.13.0");
  EXPECT_EQ(rows[3].measured->checkpoint, "p.safetensors");
  EXPECT_EQ(rows[3].measured->images, 10000);
  EXPECT_EQ(rows[3].measured->threads, 2);
  EXPECT_EQ(rows[5].name, "OpenVINO int8");
}

TEST(Peers, AreRefusedWithTheFileNamed) {
  const TemporaryFolder folder;
  for (const char* text :
       {"", "[]", "{\"date\": \"x\"}", "{\"date\": 1, \"cpu\": \"\", \"versions\": {}, \"rows\": []}",
        R"({"date": "", "cpu": "", "versions": {}, "rows": [{"name": "x"}]})"}) {
    try {
      read_peers(write(folder, text));
      ADD_FAILURE() << text;
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("peers.json"));
    }
  }
  EXPECT_THROW(peer_rows(folder / "missing.json"), InputError);
}

}  // namespace
}  // namespace nibble
