#include <fmt/format.h>

#include "bench/report.h"
#include "bench/table.h"

namespace nibble {
namespace {

constexpr const char* kStyle = R"(
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem;
       color: #1c2733; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d5dbe1; text-align: left; white-space: nowrap; }
th { background: #f0f3f6; position: sticky; top: 0; }
.number { text-align: right; }
footer { margin-top: 1.5rem; color: #56626e; font-size: .9rem; }
@media (prefers-color-scheme: dark) {
  body { color: #dde3e9; background: #14191f; } th { background: #1f2730; } th, td { border-color: #36424e; }
  footer { color: #9aa7b3; } }
)";

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

std::string to_html(const Table& table) {
  const auto line = [&](const std::vector<std::string>& cells, const char* tag) {
    std::string text = "<tr>";
    for (std::size_t i = 0; i < cells.size(); ++i) {
      text += fmt::format("<{0}{1}>{2}</{0}>", tag, table.right_aligned[i] ? " class=\"number\"" : "",
                          escaped(cells[i]));
    }
    return text + "</tr>\n";
  };
  std::string text =
      "<div class=\"wide\"><table>\n<thead>" + line(table.header, "th") + "</thead>\n<tbody>\n";
  for (const auto& row : table.rows) text += line(row, "td");
  return text + "</tbody></table></div>\n";
}

}  // namespace

/// One page that needs nothing else: no script, no font, no picture from elsewhere.
std::string format_html(const Report& report) {
  std::string text = fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>Nibble: measured networks</title>\n<style>{}</style>\n</head>\n<body>\n"
      "<h1>Nibble: measured networks</h1>\n",
      kStyle);
  text += to_html(summary_table(report));
  for (const ReportRow& row : report.rows) {
    if (row.layers.empty()) continue;
    text += fmt::format("<h2>{} ({}), {} images a batch</h2>\n", escaped(row.name), escaped(row.engine),
                        row.batch.value_or(0));
    text += to_html(profile_table(row));
  }
  text += "<footer><ul>\n";
  for (const std::string& line : footer_lines(report)) text += "<li>" + escaped(line) + "</li>\n";
  return text + "</ul></footer>\n</body>\n</html>\n";
}

}  // namespace nibble
