#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "bench/page.h"
#include "bench/report.h"
#include "bench/table.h"
#include "page_text.h"

namespace nibble {
namespace {

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

/// JSON inside a script element: no "</script>", no "<!--".
std::string data_text(const nlohmann::ordered_json& json) {
  std::string text;
  const auto any_bytes = nlohmann::json::error_handler_t::replace;
  for (const char c : json.dump(-1, ' ', false, any_bytes))
    text += c == '<' ? std::string("\\u003c") : std::string(1, c);
  return text;
}

std::string fact(const std::string& value, const std::string& meaning) {
  return fmt::format("<div class=\"fact\"><b>{}</b>{}</div>\n", escaped(value), escaped(meaning));
}

const ReportRow* find_row(const Report& report, const char* name, const char* engine) {
  const auto found = std::find_if(report.rows.begin(), report.rows.end(), [&](const ReportRow& row) {
    return row.name == name && row.engine == engine;
  });
  return found == report.rows.end() ? nullptr : &*found;
}

/// The narrowest network beside FP32, in four numbers.
std::string facts(const Report& report) {
  const ReportRow* fp32 = find_row(report, "FP32", "onednn");
  const ReportRow* narrow = nullptr;
  for (const char* name : {"int2", "int4", "int8"}) {
    if (narrow == nullptr) narrow = find_row(report, name, "nibble");
  }
  if (fp32 == nullptr || narrow == nullptr) return "";
  std::string text;
  if (narrow->top1 && fp32->top1) {
    text += fact(fmt::format("{:.2f} %", *narrow->top1 * 100),
                 fmt::format("top-1 of {}; FP32 {:.2f} %", narrow->name, *fp32->top1 * 100));
  } else if (narrow->agreement) {
    text += fact(fmt::format("{:.2f} %", *narrow->agreement * 100),
                 fmt::format("{} agrees with FP32 (no data set)", narrow->name));
  }
  if (narrow->images_per_second && fp32->images_per_second) {
    text += fact(fmt::format("{:.1f} x", *narrow->images_per_second / *fp32->images_per_second),
                 fmt::format("images a second of FP32: {:.0f} to {:.0f}", *fp32->images_per_second,
                             *narrow->images_per_second));
  }
  if (narrow->payload_bytes && fp32->payload_bytes) {
    text += fact(
        fmt::format("1 / {:.1f}",
                    static_cast<double>(*fp32->payload_bytes) / static_cast<double>(*narrow->payload_bytes)),
        fmt::format("of FP32's bytes: {:.3f} to {:.3f} MB", static_cast<double>(*fp32->payload_bytes) / 1e6,
                    static_cast<double>(*narrow->payload_bytes) / 1e6));
  }
  if (narrow->bits_per_parameter) {
    text += fact(fmt::format("{:.2f}", *narrow->bits_per_parameter),
                 fmt::format("bits a parameter in {}, scales and biases included", narrow->name));
  }
  return text.empty() ? "" : "<div class=\"facts\">\n" + text + "</div>\n";
}

std::string canvas(const char* id, const char* description, const char* size = "") {
  return fmt::format(
      "<div class=\"chart{}\"><canvas id=\"{}\" role=\"img\" aria-label=\"{}\"></canvas></div>\n", size, id,
      description);
}

std::string card(const std::string& title, const std::string& hint, const std::string& content,
                 const char* width = "") {
  return fmt::format("<section class=\"card{}\"><h2>{}</h2>\n{}{}</section>\n", width, escaped(title),
                     hint.empty() ? "" : "<p class=\"hint\">" + escaped(hint) + "</p>\n", content);
}

std::string selection(const char* id, const char* title) {
  return fmt::format("<label>{} <select id=\"{}\"></select></label>\n", title, id);
}

bool has_layers(const Report& report) {
  return std::any_of(report.rows.begin(), report.rows.end(),
                     [](const ReportRow& row) { return !row.layers.empty(); });
}

std::string charts(const Report& report, const Figures& figures) {
  std::string text = "<div class=\"grid\">\n";
  text += card("Accuracy against time", "Left and up is better; the broken line is the Pareto front.",
               canvas("accuracy-time", "Accuracy against time of each network"));
  text += card("Accuracy against size", "", canvas("accuracy-size", "Accuracy against size of each network"));
  if (has_layers(report)) {
    text += card("Time by kernel",
                 "Each network's layers added up; the mark is the time that the "
                 "multiply-accumulates would take at the measured instruction peak.",
                 canvas("kernels", "Time of each network by kernel"));
    text +=
        card("Time of each layer", "",
             selection("layers-row", "network") + canvas("layers", "Time of each layer beside its floor"));
  } else {
    text += card("Time of each layer", "Not measured; run bench with --profile.", "", " full");
  }
  if (figures.contains("sensitivity")) {
    text += card("Sensitivity of each layer",
                 fmt::format("Signal to quantization noise of each layer's output, FP32 as the signal, all "
                             "layers quantized, on {} images. 6 dB are one bit.",
                             figures.at("sensitivity").at("images").get<int>()),
                 canvas("sensitivity", "Signal to noise of each layer"), " full");
  }
  if (figures.contains("histograms")) {
    text += card("Weights and activations with their scales",
                 "Left: FP32 weights in steps of their channel's scale, and the integers that they became. "
                 "Right: the FP32 output of the layer; a vertical line is the largest value that a network "
                 "can express, what lies beyond is clipped.",
                 selection("histogram-layer", "layer") + selection("histogram-network", "network") +
                     "<div class=\"grid\">" + canvas("weights", "Histogram of weights") +
                     canvas("activations", "Histogram of activations") + "</div>",
                 " full");
  }
  return text + "</div>\n";
}

std::string classification(const Figures& figures) {
  std::string text;
  if (figures.contains("confusion")) {
    text += card("Confusion", "Rows: the label; columns: what the network said.",
                 selection("confusion-row", "network") +
                     "<div class=\"wide\"><table id=\"confusion\" class=\"confusion\"></table></div>\n");
  }
  if (figures.contains("lost")) {
    const Figures& lost = figures.at("lost");
    text += card(fmt::format("Right in FP32, wrong in {}", lost.at("name").get<std::string>()),
                 fmt::format("{} images; the first {} are shown, with the label, the wrong answer and the "
                             "image's number.",
                             lost.at("total").get<int>(), lost.at("images").size()),
                 "<div id=\"images\" class=\"images\"></div>\n");
  }
  return text.empty() ? "" : "<div class=\"grid\">\n" + text + "</div>\n";
}

std::string training(const Figures& figures) {
  if (!figures.contains("curves")) return "";
  return card("Training", "",
              selection("curves-log", "log") + "<div class=\"grid\">\n" +
                  canvas("curve-loss", "Loss by epoch", " small") +
                  canvas("curve-top1", "Accuracy by epoch", " small") +
                  canvas("curve-rate", "Learning rate by epoch", " small") +
                  canvas("curve-speed", "Images a second by epoch", " small") + "</div>\n");
}

}  // namespace

std::vector<std::filesystem::path> plotting_library_files() {
  return {"/usr/share/javascript/chart.js/chart.min.js", "/usr/share/javascript/chart.js/Chart.min.js",
          "/usr/share/nodejs/chart.js/dist/chart.min.js", "/usr/share/nodejs/chart.js/dist/chart.umd.js"};
}

std::optional<std::string> read_plotting_library(const std::vector<std::filesystem::path>& files) {
  for (const std::filesystem::path& file : files) {
    std::ifstream stream(file);
    if (!stream) continue;
    std::ostringstream text;
    text << stream.rdbuf();
    // Inside a script element; no release has had this, but the page would end there.
    if (text.str().find("</script") == std::string::npos) return text.str();
  }
  return std::nullopt;
}

std::string format_page(const Report& report, const Figures& figures,
                        const std::optional<std::string>& library) {
  std::string text = fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>Nibble: measured networks</title>\n<style>\n{}</style>\n</head>\n<body>\n"
      "<h1>Nibble: measured networks</h1>\n",
      page_style);
  text += facts(report);
  text += card("All networks", "", to_html(summary_table(report)));
  if (library) {
    text += charts(report, figures);
  } else {
    text += card("Charts",
                 "They are drawn by Chart.js, which is not installed: run scripts/setup (package "
                 "libjs-chart.js) and write this page again. Everything measured is in the tables.",
                 "");
  }
  text += classification(figures);
  if (library) text += training(figures);
  std::string profiles;
  for (const ReportRow& row : report.rows) {
    if (row.layers.empty()) continue;
    profiles += fmt::format("<details><summary>{} ({}), {} images a batch</summary>\n{}</details>\n",
                            escaped(row.name), escaped(row.engine), row.batch.value_or(0),
                            to_html(profile_table(row)));
  }
  if (!profiles.empty()) text += card("Layers in numbers", "", profiles);
  text += "<footer><ul>\n";
  for (const std::string& line : footer_lines(report)) text += "<li>" + escaped(line) + "</li>\n";
  text += "</ul></footer>\n";
  text += "<script type=\"application/json\" id=\"data\">" +
          data_text({{"report", to_json(report)}, {"figures", figures}}) + "</script>\n";
  if (library) text += "<script>\n" + *library + "\n</script>\n";
  return text + "<script>\n" + page_script + "</script>\n</body>\n</html>\n";
}

std::string format_html(const Report& report) {
  return format_page(report, Figures::object(), read_plotting_library(plotting_library_files()));
}

}  // namespace nibble
