#include <fmt/format.h>

#include <algorithm>

#include "bench/report.h"
#include "bench/table.h"

namespace nibble {
namespace {

/// Columns of a terminal that UTF-8 text takes: continuation bytes take none.
std::size_t display_width(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

std::string padded(const std::string& text, std::size_t width, bool right) {
  const std::string spaces(width - std::min(width, display_width(text)), ' ');
  return right ? spaces + text : text + spaces;
}

std::string to_markdown(const Table& table) {
  std::vector<std::size_t> column_widths;
  for (std::size_t i = 0; i < table.header.size(); ++i) {
    std::size_t width = std::max<std::size_t>(3, display_width(table.header[i]));
    for (const auto& row : table.rows) width = std::max(width, display_width(row[i]));
    column_widths.push_back(width);
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text = "|";
    for (std::size_t i = 0; i < cells.size(); ++i) {
      text += " " + padded(cells[i], column_widths[i], table.right_aligned[i]) + " |";
    }
    return text + "\n";
  };
  std::string text = line(table.header) + "|";
  for (std::size_t i = 0; i < table.header.size(); ++i) {
    text += std::string(column_widths[i] + 1, '-') + (table.right_aligned[i] ? ":|" : "-|");
  }
  text += "\n";
  for (const auto& row : table.rows) text += line(row);
  return text;
}

}  // namespace

std::string format_markdown(const Report& report) {
  std::string text = to_markdown(summary_table(report));
  for (const ReportRow& row : report.rows) {
    if (row.layers.empty()) continue;
    text += fmt::format("\n{} ({}), {} images a batch:\n\n", row.name, row.engine, row.batch.value_or(0)) +
            to_markdown(profile_table(row));
  }
  text += "\n";
  for (const std::string& line : footer_lines(report)) text += "- " + line + "\n";
  return text;
}

}  // namespace nibble
