#pragma once

#include <string>
#include <vector>

#include "bench/report.h"

namespace nibble {

/// The report as people read it: the same columns and words in Markdown and HTML.
struct Table {
  std::vector<std::string> header;
  std::vector<bool> right_aligned;  ///< as `header`
  std::vector<std::vector<std::string>> rows;
};

/// The main table; a value that was not measured reads "n/a", a row of another engine "not measured".
Table summary_table(const Report& report);

/// The layers of one row, with --profile.
Table profile_table(const ReportRow& row);

/// What the table was measured with, one statement a line, and the notes of rows.
std::vector<std::string> footer_lines(const Report& report);

}  // namespace nibble
