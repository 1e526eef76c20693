#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "bench/report.h"

namespace nibble {

/// Rows of other engines, measured by scripts/compare:
///
///   {"date": "2026-11-23", "cpu": "...", "versions": {"PyTorch": "2.13.0"}, "rows": [{"name", "engine",
///   ...}]}
///
/// A row has the keys of a report's row; those that it does not have were not measured. Throws InputError
/// naming the file and what is wrong with it.
std::vector<ReportRow> read_peers(const std::filesystem::path& file);

/// The rows that the table has for other engines: from `file`, else from bench/peers.json of the current
/// folder or of the source checkout; the ones that the file does not have say "not measured". Throws
/// InputError when a `file` that was given is missing.
std::vector<ReportRow> peer_rows(const std::optional<std::filesystem::path>& file);

/// A row of the table that this project answers: the original network, int2, int4, int8, fused int8.
bool is_of_replaced_system(const ReportRow& row);

/// The replaced system's rows go before our own, the other engines' after them; without their figures where
/// those are of another number of images than the report.
void insert_peers(Report& report, std::vector<ReportRow> peers);

}  // namespace nibble
