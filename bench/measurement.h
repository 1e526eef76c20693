#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/model.h"
#include "bench/report.h"
#include "graph/data/cifar10.h"
#include "graph/data/loader.h"

namespace nibble {

struct MeasurementOptions {
  int batch = 1024;
  int num_workers = 2;  ///< of the loader
  bool profile = false;
  bool latency = true;      ///< of single images, beside the batches
  bool first_logit = true;  ///< start the program anew for each row and time it to the first logit
};

/// Rows being measured: opened and classified at first, then timed round by round.
///
/// A round times every row once, with the loader inside and without, one row after the other, so that what
/// disturbs the machine for a while disturbs all rows alike.
class Measurement {
 public:
  /// `images` has labels, or is generated: then accuracy and signature are not measured.
  Measurement(const std::vector<RowRequest>& requests, Dataset images, MeasurementOptions options);
  ~Measurement();

  void round();

  const Dataset& images() const { return images_; }

  /// The class that each row gives to each image, by the row's name (of one name the first).
  std::map<std::string, std::vector<int>> predictions() const;

  /// Rows and context; the peers' rows are not among them.
  Report finish();

 private:
  struct Row;
  void classify();
  void time_with_loader(Row& row);
  void time_without_loader(Row& row);
  void time_single_images(Row& row);

  MeasurementOptions options_;
  Dataset images_;
  std::unique_ptr<Loader> loader_;
  std::vector<std::unique_ptr<Row>> rows_;
};

/// The work of a child that is timed to its first logit: opens `file`, classifies one generated image and
/// prints the time on the steady clock.
int print_first_logit_time(const std::string& kind_and_file);

}  // namespace nibble
