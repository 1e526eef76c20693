#include "bench/rows.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <tuple>

#include "cfg/nearest.h"
#include "graph/data/sha256.h"
#include "graph/network/checkpoint_path.h"
#include "graph/network/error.h"
#include "graph/network/float_parameters.h"
#include "graph/network/quantized_parameters.h"
#include "graph/network/tensor_file.h"
#include "graph/onednn/int8_unfused_parameters.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kExtension = ".safetensors";

/// A checkpoint and how it came to its name: base "64_200", suffix "_int2", remainder "a8_trained".
struct Candidate {
  fs::path file;
  std::string base;
  std::string remainder;
  std::vector<std::size_t> kinds;  // indices of row_kinds()
  std::string float_sha256;        // of the FP32 file that it is or was made from; empty: not recorded
};

std::string stem_of(const fs::path& file) {
  std::string name = file.filename().string();
  if (name.ends_with(kExtension)) name.resize(name.size() - std::string(kExtension).size());
  return name;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

/// What the file is, from its metadata; its name only divides the rows into groups.
std::optional<Candidate> inspect(const fs::path& file) {
  const TensorFile tensors = read_tensor_file(file);
  const std::string format = tensors.entry("format");
  const bool mixed = !tensors.entry(std::string("provenance.") + kMixedWidths).empty();
  const std::string bits = mixed ? std::to_string(kMixedKind) : tensors.entry("weight_bits");
  Candidate candidate{file, stem_of(file), "", {}, ""};
  for (const char* key : {"provenance.from_sha256", "provenance.source_sha256"}) {
    if (candidate.float_sha256.empty()) candidate.float_sha256 = tensors.entry(key);
  }
  std::string suffix;
  for (std::size_t i = 0; i < row_kinds().size(); ++i) {
    const RowKind& kind = row_kinds()[i];
    if (format != kind.format) continue;
    if (format == kIntegerFormat && bits != std::to_string(kind.weight_bits)) continue;
    const bool on_onednn = kind.runner == Runner::int8_fused || kind.runner == Runner::int8_saturating;
    if (on_onednn && tensors.entry("activation_bits") != "8") continue;
    candidate.kinds.push_back(i);
    suffix = kind.suffix;
  }
  if (candidate.kinds.empty()) return std::nullopt;
  const std::size_t place = suffix.empty() ? std::string::npos : candidate.base.rfind(suffix);
  if (place != std::string::npos) {
    candidate.remainder = candidate.base.substr(place + suffix.size());
    candidate.base.resize(place);
  }
  return candidate;
}

/// P.best and the like: files that stand behind another name, or were put aside.
bool is_secondary(const std::string& stem) {
  return stem.find(".best") != std::string::npos || stem.find(".old") != std::string::npos;
}

class Folder {
 public:
  explicit Folder(const std::string& checkpoint_path)
      : folder_(CheckpointPaths(checkpoint_path).last.parent_path()),
        own_base_(stem_of(CheckpointPaths(checkpoint_path).last)) {
    std::error_code error;
    std::vector<fs::path> files;
    for (const fs::directory_entry& entry :
         fs::directory_iterator(folder_.empty() ? fs::path(".") : folder_, error)) {
      if (entry.is_regular_file(error) && entry.path().extension() == kExtension) {
        files.push_back(folder_ / entry.path().filename());
      }
    }
    std::sort(files.begin(), files.end());
    for (const fs::path& file : files) {
      if (!is_secondary(stem_of(file))) add(file, false);
    }
  }

  /// `demanded`: a file that cannot be read is an error, not a remark.
  void add(const fs::path& file, bool demanded) {
    const bool own = stem_of(file).starts_with(own_base_);
    std::optional<Candidate> candidate;
    try {
      candidate = inspect(file);
    } catch (const InputError& error) {
      if (own || demanded) throw;
      remarks_.push_back(std::string("passed over: ") + error.what());
      return;
    }
    if (!candidate) {
      const std::string sentence = file.string() + " is not a network that bench can run";
      if (demanded) throw InputError(sentence + "; name a checkpoint of train or quant");
      remarks_.push_back("passed over: " + sentence);
      return;
    }
    if (is_float(*candidate) && !demanded) {
      const ChosenCheckpoint chosen = choose_checkpoint((file.parent_path() / candidate->base).string());
      candidate->file = chosen.file;
      if (!chosen.ignored_best.empty()) {
        remarks_.push_back(chosen.ignored_best.string() + " is left from an older training and is ignored");
      }
    }
    if (is_float(*candidate)) candidate->float_sha256 = sha256_of_file(candidate->file);
    candidates_.push_back(*candidate);
  }

  std::vector<RowRequest> rows() const {
    std::vector<std::pair<std::tuple<int, std::string, std::size_t, std::string>, RowRequest>> sorted;
    for (const Candidate& candidate : candidates_) {
      const bool own = candidate.base == own_base_;
      for (const std::size_t index : candidate.kinds) {
        const RowKind& kind = row_kinds()[index];
        const int group = !own ? 2 : candidate.remainder.empty() ? 0 : 1;
        sorted.push_back({{group, candidate.base, index, candidate.file.string()},
                          {kind, name(candidate, kind), candidate.file, reference(candidate)}});
      }
    }
    std::stable_sort(sorted.begin(), sorted.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<RowRequest> rows;
    for (auto& [key, row] : sorted) rows.push_back(std::move(row));
    return rows;
  }

  /// The kinds of which P has no file, as remarks.
  std::vector<std::string> missing() const {
    std::vector<std::string> sentences;
    for (const RowKind& kind : row_kinds()) {
      if (kind.weight_bits == kMixedKind) continue;  // for whoever has a budget
      const fs::path file = folder_ / (own_base_ + kind.suffix + kExtension);
      const bool there = std::any_of(candidates_.begin(), candidates_.end(), [&](const Candidate& c) {
        return c.base == own_base_ && c.remainder.empty() &&
               std::any_of(c.kinds.begin(), c.kinds.end(),
                           [&](std::size_t i) { return std::string(row_kinds()[i].suffix) == kind.suffix; });
      });
      std::string sentence = "there is no " + file.string() + "; `" + kind.made_by + "` makes it";
      if (!there && (sentences.empty() || sentences.back() != sentence)) sentences.push_back(sentence);
    }
    return sentences;
  }

  const fs::path& path() const { return folder_; }
  const std::vector<std::string>& remarks() const { return remarks_; }

 private:
  std::string name(const Candidate& candidate, const RowKind& kind) const {
    std::string text = kind.name + candidate.remainder;
    std::replace(text.begin(), text.end(), '_', ' ');
    if (!is_here(candidate))
      return text + " (" + (candidate.file.parent_path() / candidate.base).string() + ")";
    return candidate.base == own_base_ ? text : text + " (" + candidate.base + ")";
  }

  bool is_here(const Candidate& candidate) const { return candidate.file.parent_path() == folder_; }

  static bool is_float(const Candidate& candidate) {
    return row_kinds()[candidate.kinds.front()].format == std::string(kFloatFormat);
  }

  /// The FP32 file that `candidate` was made from, as it says; else the one of its base beside it, else P's
  /// own.
  fs::path reference(const Candidate& candidate) const {
    if (is_float(candidate)) return candidate.file;
    fs::path own;
    fs::path beside;
    for (const Candidate& other : candidates_) {
      if (!is_float(other)) continue;
      if (!candidate.float_sha256.empty() && other.float_sha256 == candidate.float_sha256) return other.file;
      const bool same_folder = other.file.parent_path() == candidate.file.parent_path();
      if (same_folder && other.base == candidate.base) beside = other.file;
      if (is_here(other) && other.base == own_base_) own = other.file;
    }
    return beside.empty() ? own : beside;
  }

  fs::path folder_;
  std::string own_base_;
  std::vector<Candidate> candidates_;
  std::vector<std::string> remarks_;
};

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code error;
  return fs::equivalent(a, b, error);
}

/// The file that an entry of --models names, with or without its extension. An entry with a folder is a path
/// and nothing else: InputError when there is no such file.
std::optional<fs::path> file_named(const std::string& model) {
  std::error_code error;
  for (const std::string& name : {model, model + kExtension}) {
    if (fs::is_regular_file(name, error)) return name;
  }
  if (fs::path(model).has_parent_path()) {
    throw InputError("there is no file " + model +
                     "; name a checkpoint of train or quant, or a row of the table");
  }
  return std::nullopt;
}

}  // namespace

const std::vector<RowKind>& row_kinds() {
  static const std::vector<RowKind> kinds = {
      {"FP32", "", "train", kFloatFormat, 32, Runner::fp32},
      {"BF16", "", "train", kFloatFormat, 16, Runner::bf16},
      {"int16", "_int16", "quant --bits 16", kIntegerFormat, 16, Runner::integer},
      {"int8 unfused", "_int8_unfused", "quant --bits 8 --no-fuse", unfused_format, 8, Runner::int8_unfused},
      {"int8 fused", "_int8", "quant --bits 8 --fuse", kIntegerFormat, 8, Runner::int8_fused},
      {"int8 fused", "_int8", "quant --bits 8 --fuse", kIntegerFormat, 8, Runner::int8_saturating},
      {"int8", "_int8", "quant --bits 8 --fuse", kIntegerFormat, 8, Runner::integer},
      {"int4", "_int4", "quant --bits 4", kIntegerFormat, 4, Runner::integer},
      {"int2", "_int2", "quant --bits 2", kIntegerFormat, 2, Runner::integer},
      {"mixed", "_mixed", "quant --budget-bytes N", kIntegerFormat, kMixedKind, Runner::integer},
  };
  return kinds;
}

RowSelection select_rows(const std::string& checkpoint_path, const std::vector<std::string>& models) {
  Folder folder(checkpoint_path);
  std::map<std::string, fs::path> paths;  // of the models that are files
  for (const std::string& model : models) {
    const std::optional<fs::path> path = file_named(model);
    if (!path) continue;
    paths[model] = *path;
    const std::vector<RowRequest> known = folder.rows();
    const bool listed = std::any_of(known.begin(), known.end(),
                                    [&](const RowRequest& row) { return same_file(row.file, *path); });
    if (!listed) folder.add(*path, true);
  }

  const std::vector<RowRequest> rows = folder.rows();
  if (rows.empty()) {
    throw InputError("there is no checkpoint " + CheckpointPaths(checkpoint_path).last.string() +
                     " and nothing else to measure beside it: run `train`, then `quant --bits 8 --fuse`");
  }
  if (models.empty()) {
    RowSelection selection{rows, folder.remarks()};
    for (const std::string& sentence : folder.missing()) selection.remarks.push_back(sentence);
    return selection;
  }

  RowSelection selection;
  std::vector<bool> taken(rows.size(), false);
  for (const std::string& model : models) {
    bool found = false;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const RowRequest& row = rows[i];
      const auto path = paths.find(model);
      const bool matches = path != paths.end()
                               ? same_file(row.file, path->second)
                               : lower(row.name) == lower(model) || stem_of(row.file) == stem_of(model);
      found = found || matches;
      if (!matches || taken[i]) continue;
      taken[i] = true;
      selection.rows.push_back(row);
    }
    if (found) continue;
    std::vector<std::string> names;
    std::string listed;
    for (const RowRequest& row : rows) {
      if (std::find(names.begin(), names.end(), row.name) == names.end()) {
        listed += (listed.empty() ? "" : ", ") + row.name;
      }
      names.push_back(row.name);
      names.push_back(stem_of(row.file));
    }
    throw InputError("there is no model '" + model + "' in " +
                     (folder.path().empty() ? "." : folder.path().string()) + " (" + listed +
                     "); did you mean '" + nearest_name(model, names) + "'?");
  }
  return selection;
}

}  // namespace nibble
