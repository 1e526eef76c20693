#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/rows.h"
#include "graph/data/cifar10.h"

namespace nibble {

/// What the page of --report html draws beside the table's own figures (page/page.js reads it):
///
///   {"sensitivity": {"images", "layers": [name], "networks": [{"name", "sqnr": [decibels]}]},
///    "histograms": [{"layer", "weights": [{"name", "low", "width", "fp32": [count], "integers": [count]}],
///                    "activations": {"width", "counts", "clips": [{"name", "scale", "levels"}]}}],
///    "confusion": [{"name", "counts": [truth][said]}],
///    "lost": {"name", "total", "images": [{"index", "truth", "said", "pixels": base64 of 32x32 RGB}]},
///    "curves": [{"name", "epochs": [the log's lines]}]}
///
/// A part for which there is no file or no data set is missing.
using Figures = nlohmann::ordered_json;

/// The class that each row gives to each image, by the row's name.
using Predictions = std::map<std::string, std::vector<int>>;

/// `requests`: the rows that are measured; the FP32 checkpoint and the networks of 8, 4 and 2 bits among them
/// are looked into on some of `images`. Unreadable logs are left out.
Figures collect_figures(const std::vector<RowRequest>& requests, const Dataset& images,
                        const Predictions& predictions, const std::filesystem::path& log_folder);

}  // namespace nibble
