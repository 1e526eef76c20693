#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "bench/report.h"

namespace nibble {

/// A JSON report of bench from a file. Throws InputError.
Report read_report(const std::filesystem::path& file);

/// "3%" or "3 %" as 0.03, "0.03" too. Throws InputError.
double parse_fraction(const std::string& text);

struct Comparison {
  std::vector<std::string> lines;  ///< one for each row, readable
  bool failed = false;
};

/// Time, accuracy and size of each row of ours that both reports have: same name, engine, instruction set and
/// batch. A row fails when
///
///   - its median time (without the loader) is longer by more than the fraction `fail_above`,
///     and the rank-sum test over the runs finds it slower at p <= 0.05; the median alone decides
///     where the runs are too few for that p, that is fewer than three on each side;
///   - it has fewer images right and McNemar's test over the images has p <= 0.05; where a report does not
///     have its right images, when the intervals do not meet;
///   - its file is larger by more than `fail_above`.
///
/// A row of ours that only the base has is named; where `all_rows` were measured and something is gated, it
/// fails.
///
/// An infinite `fail_above` gates nothing. Throws InputError when the reports are of different CPUs, thread
/// counts or numbers of images, or have no row in common.
Comparison compare(const Report& base, const Report& current, double fail_above, bool all_rows = true);

/// Throws the InputError of different CPUs or thread counts before anything is measured.
void require_same_machine(const ReportContext& base, const std::string& cpu, int threads);

/// Whether `current` gives what `base` states, row by row: bytes of the file, signatures, top-1. Networks of
/// integers must agree exactly, on whatever instruction set; where rounding depends on the instruction set
/// (FP32, BF16), top-1 by kRoundingImages images. Rows that saturate, and those that the base measured on
/// other images, are compared only where they can be.
Comparison verify(const Report& base, const Report& current);

/// Images of all measured that another order of float additions may bring into another class.
inline constexpr int kRoundingImages = 3;

}  // namespace nibble
