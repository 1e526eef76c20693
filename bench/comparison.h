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

/// Speed without the loader (median of the runs) of each row that both reports have: same name, engine,
/// instruction set and batch. Fails when one is slower by more than the fraction `fail_above`. Throws
/// InputError when the reports are of different CPUs or thread counts, or have no row in common.
Comparison compare_speed(const Report& base, const Report& current, double fail_above);

/// Whether `current` gives what `base` states, row by row: bytes of the file, signatures, top-1. Networks of
/// integers must agree exactly, on whatever instruction set; where rounding depends on the instruction set
/// (FP32, BF16), top-1 by kRoundingImages images. Rows that saturate, and those that the base measured on
/// other images, are compared only where they can be.
Comparison verify(const Report& base, const Report& current);

/// Images of all measured that another order of float additions may bring into another class.
inline constexpr int kRoundingImages = 3;

}  // namespace nibble
