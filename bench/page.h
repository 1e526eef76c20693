#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "bench/figures.h"
#include "bench/report.h"

namespace nibble {

/// Where distributions put Chart.js (https://www.chartjs.org, MIT): Debian's and Ubuntu's libjs-chart.js.
std::vector<std::filesystem::path> plotting_library_files();

/// The text of the first of `files` that is there; nothing when none is.
std::optional<std::string> read_plotting_library(const std::vector<std::filesystem::path>& files);

/// One page that needs nothing else: no script, font or picture from elsewhere, so it works offline. Light or
/// dark as the reader's system is, narrow on a phone. `library` is put into the page and draws the charts;
/// without it a sentence says so, and the tables, the confusion matrix and the images are there all the same.
std::string format_page(const Report& report, const Figures& figures,
                        const std::optional<std::string>& library);

}  // namespace nibble
