#include "bench/peers.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "graph/data/cifar10.h"
#include "graph/network/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

struct ExpectedPeer {
  const char* name;
  const char* other_name;  ///< a file may spell it so, too
  int bits;
  bool fused;
};

/// The system that this one replaces, row by row; its 4 and 2 bits are values stored and computed as int8.
constexpr ExpectedPeer kExpected[] = {
    {"Original", "PyTorch FP32", 32, false},
    {"PyTorch int2", "PyTorch int2", 2, false},
    {"PyTorch int4", "PyTorch int4", 4, false},
    {"PyTorch int8", "PyTorch int8", 8, false},
    {"Fused PyTorch int8", "PyTorch fused int8", 8, true},
};

std::optional<fs::path> default_file() {
  std::error_code ignored;
  for (const fs::path& file : {fs::path("bench/peers.json"), fs::path(NIBBLE_SOURCE_BENCH) / "peers.json"}) {
    if (fs::is_regular_file(file, ignored)) return file;
  }
  return std::nullopt;
}

/// Figures of other images would stand in columns that they are not of.
ReportRow without_figures(const ReportRow& peer) {
  ReportRow row;
  row.name = peer.name;
  row.engine = peer.engine;
  row.weight_bits = peer.weight_bits;
  row.activation_bits = peer.activation_bits;
  row.fused = peer.fused;
  row.note = "was measured on " + std::to_string(peer.measured->images) + " test images, not on these";
  return row;
}

}  // namespace

std::vector<ReportRow> read_peers(const fs::path& file) {
  std::ifstream stream(file);
  if (!stream) {
    throw InputError("the peers' file " + file.string() +
                     " cannot be read; name one that scripts/compare wrote");
  }
  std::vector<ReportRow> rows;
  try {
    const nlohmann::json json = nlohmann::json::parse(stream);
    const nlohmann::json settings = json.value("settings", nlohmann::json::object());
    const Provenance provenance{json.at("date").get<std::string>(),
                                json.at("cpu").get<std::string>(),
                                json.at("versions").get<std::map<std::string, std::string>>(),
                                settings.value("checkpoint", ""),
                                settings.value("images", 0),
                                settings.value("threads", 0)};
    for (const nlohmann::json& entry : json.at("rows")) {
      rows.push_back(row_from_json(entry, file.string()));
      rows.back().measured = provenance;
    }
  } catch (const nlohmann::json::exception& error) {
    throw InputError(file.string() + ": this is not a peers' file (" + error.what() +
                     "); write it again with scripts/compare");
  }
  return rows;
}

std::vector<ReportRow> peer_rows(const std::optional<fs::path>& file) {
  const std::optional<fs::path> source = file ? file : default_file();
  std::vector<ReportRow> measured;
  if (source) measured = read_peers(*source);

  std::vector<ReportRow> rows;
  for (const ExpectedPeer& expected : kExpected) {
    const auto found = std::find_if(measured.begin(), measured.end(), [&](const ReportRow& row) {
      return row.name == expected.name || row.name == expected.other_name;
    });
    if (found != measured.end()) {
      rows.push_back(*found);
      rows.back().name = expected.name;
      measured.erase(found);
      continue;
    }
    ReportRow row;
    row.name = expected.name;
    row.engine = "pytorch";
    row.weight_bits = expected.bits;
    row.activation_bits = expected.bits;
    row.fused = expected.fused;
    rows.push_back(std::move(row));
  }
  rows.insert(rows.end(), measured.begin(), measured.end());
  return rows;
}

bool is_of_replaced_system(const ReportRow& row) {
  return row.engine == "pytorch" &&
         std::any_of(std::begin(kExpected), std::end(kExpected),
                     [&](const ExpectedPeer& expected) { return row.name == expected.name; });
}

void insert_peers(Report& report, std::vector<ReportRow> peers) {
  const DatasetReport& here = report.context.dataset;
  for (ReportRow& peer : peers) {
    if (!peer.measured || peer.measured->images == 0) continue;
    const bool same_images = here.name == dataset_name(Split::test) && peer.measured->images == here.images;
    if (!same_images) peer = without_figures(peer);
  }
  auto place = report.rows.begin();
  for (const ReportRow& peer : peers) {
    place = is_of_replaced_system(peer) ? report.rows.insert(place, peer) + 1 : place;
  }
  std::copy_if(peers.begin(), peers.end(), std::back_inserter(report.rows),
               [](const ReportRow& peer) { return !is_of_replaced_system(peer); });
}

}  // namespace nibble
