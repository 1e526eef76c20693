#include "cfg/configuration.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

#include "cfg/keys.h"
#include "cfg/nearest.h"
#include "graph/network/description.h"
#include "graph/network/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uintmax_t kLargestFile = 1 << 20;
constexpr int kTrainingImages = 50000;

bool is_comment(std::string_view key) {
  return key.starts_with("_comment");
}

bool is_section(const std::string& path) {
  const std::vector<std::string>& sections = configuration_sections();
  return std::find(sections.begin(), sections.end(), path) != sections.end();
}

const Key* find_key(const std::string& path) {
  for (const Key& key : configuration_keys()) {
    if (key.path == path) return &key;
  }
  return nullptr;
}

std::string last_name(const std::string& path) {
  return path.substr(path.rfind('.') + 1);
}

/// What was probably meant: the same name in another section, else the path that is spelled most like it.
std::string nearest_path(const std::string& path) {
  std::vector<std::string> paths;
  std::vector<std::string> namesakes;
  for (const Key& key : configuration_keys()) {
    paths.push_back(key.path);
    if (last_name(key.path) == last_name(path)) namesakes.push_back(key.path);
  }
  if (!namesakes.empty()) return nearest_name(path, namesakes);
  const std::vector<std::string>& sections = configuration_sections();
  paths.insert(paths.end(), sections.begin(), sections.end());
  return nearest_name(path, paths);
}

/// Refuses a second key of the same name in one object while the text is parsed; the JSON value itself keeps
/// only one of them.
class DuplicateKeys {
 public:
  explicit DuplicateKeys(std::string source) : source_(std::move(source)) {}

  bool operator()(int, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
        objects_.emplace_back();
        break;
      case json::parse_event_t::object_end:
        objects_.pop_back();
        break;
      case json::parse_event_t::key:
        add(parsed.get_ref<const std::string&>());
        break;
      default:
        break;
    }
    return true;
  }

 private:
  struct Object {
    std::set<std::string> names;
    std::string current;
  };

  void add(const std::string& name) {
    objects_.back().current = name;
    std::string path;
    for (const Object& object : objects_) {
      if (is_comment(object.current)) return;
      path += (path.empty() ? "" : ".") + object.current;
    }
    if (!objects_.back().names.insert(name).second) {
      throw InputError(source_ + ": the key " + path + " is given twice; keep one of them");
    }
  }

  std::string source_;
  std::vector<Object> objects_;
};

/// The position behind white space and comments, or text.size().
std::size_t first_token(const std::string& text) {
  std::size_t i = 0;
  while (i < text.size()) {
    if (std::isspace(static_cast<unsigned char>(text[i]))) {
      ++i;
    } else if (text.compare(i, 2, "//") == 0) {
      i = std::min(text.find('\n', i), text.size());
    } else if (text.compare(i, 2, "/*") == 0) {
      const std::size_t end = text.find("*/", i + 2);
      i = end == std::string::npos ? text.size() : end + 2;
    } else {
      break;
    }
  }
  return i;
}

/// nlohmann's "[json.exception.parse_error.101] parse error at line 3, column 5: ..." as the end of a
/// sentence.
std::string without_exception_name(const std::string& what) {
  const std::size_t bracket = what.find("] ");
  return bracket == std::string::npos ? what : what.substr(bracket + 2);
}

json parse_json(const std::string& text, const std::string& source) {
  if (text.empty()) throw InputError(source + " is empty; a configuration is a JSON object, at least {}");
  if (first_token(text) == text.size()) {
    throw InputError(source + " holds nothing but comments; a configuration is a JSON object, at least {}");
  }
  json parsed;
  try {
    // A std::function holds a copy of what it is given: the state must live in the one that the parser calls.
    parsed = json::parse(text, DuplicateKeys(source), true, true);
  } catch (const json::exception& error) {
    throw InputError(source + " is not valid JSON: " + without_exception_name(error.what()));
  }
  if (!parsed.is_object()) {
    throw InputError(source + " holds a JSON " + parsed.type_name() + "; a configuration is a JSON object");
  }
  return parsed;
}

void read_object(const json& object, const std::string& prefix, Configuration& configuration,
                 const std::string& source) {
  for (const auto& [name, value] : object.items()) {
    if (is_comment(name)) continue;
    const std::string path = prefix + name;
    if (const Key* key = find_key(path)) {
      write_member(*key, value, configuration, source);
    } else if (!is_section(path)) {
      throw InputError(source + ": unknown key " + path + "; did you mean " + nearest_path(path) + "?");
    } else if (!value.is_object()) {
      throw InputError(source + ": " + path + " is a JSON " + value.type_name() + "; it must be an object");
    } else {
      read_object(value, path + ".", configuration, source);
    }
  }
}

fs::path program_folder() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  return error ? fs::path() : program.parent_path();
}

bool is_file(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  return !error && fs::exists(status) && !fs::is_directory(status);
}

}  // namespace

fs::path find_configuration(const fs::path& name) {
  if (name.empty()) throw InputError("the name of the configuration file is empty; give one with --cfg");
  std::vector<fs::path> places = {name};
  if (name.is_relative()) {
    places.push_back("cfg" / name);
    places.push_back(program_folder() / "../share/nibble/cfg" / name);
    places.push_back(fs::path(NIBBLE_SOURCE_CONFIGURATIONS) / name);
  }
  for (const fs::path& place : places) {
    if (is_file(place)) return place;
  }
  std::string message = "there is no configuration file " + name.string();
  if (name.is_relative()) message += ", nor is it in cfg/ here or beside the program";
  throw InputError(message + "; name an existing one with --cfg");
}

Configuration parse_configuration(const std::string& text, const std::string& source) {
  return from_json(parse_json(text, source), source);
}

Configuration load_configuration(const fs::path& name) {
  const fs::path path = find_configuration(name);
  std::ifstream stream(path, std::ios::binary);
  std::string text;
  char buffer[4096];
  while (stream.read(buffer, sizeof buffer) || stream.gcount() > 0) {
    text.append(buffer, static_cast<std::size_t>(stream.gcount()));
    if (text.size() > kLargestFile) {
      throw InputError(path.string() + " has more than 1 MiB; that is not a configuration");
    }
  }
  if (!stream.eof()) throw InputError(path.string() + " cannot be read; check its permissions");
  Configuration configuration = parse_configuration(text, path.string());
  configuration.file = path;
  return configuration;
}

void check_configuration(const Configuration& configuration, const std::string& source) {
  Configuration copy;
  for (const Key& key : configuration_keys()) {
    write_member(key, read_member(key, configuration), copy, source);
  }

  const auto refuse = [&](const std::string& sentence) { throw InputError(source + ": " + sentence); };
  if (configuration.cfg.checkpoint_path.empty()) {
    refuse("cfg.checkpoint_path is empty; give a path such as ./chkp/64_200");
  }
  if (configuration.cfg.checkpoint_path.ends_with('/')) {
    refuse("cfg.checkpoint_path is the folder '" + configuration.cfg.checkpoint_path +
           "'; add the name of the checkpoint");
  }
  try {
    describe_network(configuration.cfg_network.variant, configuration.cfg_network.depth,
                     configuration.cfg_network.shortcut);
  } catch (const InputError& error) {
    refuse(std::string("cfg_network: ") + error.what());
  }
  const int images = kTrainingImages - configuration.cfg_train.validation;
  if (configuration.cfg_dataloader_train.batch_size > images) {
    refuse("cfg_dataloader_train.batch_size is " +
           std::to_string(configuration.cfg_dataloader_train.batch_size) +
           ", but cfg_train.validation leaves " + std::to_string(images) + " images to train on");
  }
  const std::vector<int>& milestones = configuration.cfg_train.milestones;
  if (std::adjacent_find(milestones.begin(), milestones.end(), std::greater_equal<>()) != milestones.end()) {
    refuse("cfg_train.milestones is " + json(milestones).dump() + "; its epochs must ascend");
  }
  if (!configuration.cfg_quant.from.empty() && configuration.cfg_quant.bits == 0) {
    refuse("cfg_quant.from is given without cfg_quant.bits; add the width, 8, 4 or 2");
  }
  if (configuration.trains_quantized()) {
    if (configuration.cfg_quant.bits == 16 || configuration.cfg_quant.activation_bits == 16) {
      refuse("trained quantization (cfg_quant.from) has 8, 4 or 2 bits, not 16; quantize without training");
    }
    const QuantConfiguration& quant = configuration.cfg_quant;
    if (quant.pair_safe || !quant.fuse || quant.method != "auto") {
      refuse(
          "trained quantization (cfg_quant.from) has no pair_safe, fuse or method; leave them out of "
          "cfg_quant");
    }
    if (configuration.cfg_train.optimizer != "sgd") {
      refuse(
          "trained quantization (cfg_quant.from) learns its scales by sgd: the first step of "
          "adamw, the whole learning rate, is larger than most of them; set cfg_train.optimizer to sgd");
    }
    if (quant.calibration_images > images) {
      refuse("cfg_quant.calibration_images is " + std::to_string(quant.calibration_images) +
             ", but cfg_train.validation leaves " + std::to_string(images) + " images");
    }
    if (configuration.cfg_train.weight_average > 0) {
      refuse("cfg_train.weight_average does not go with trained quantization (cfg_quant.from); set it to 0");
    }
  }
}

json to_json(const Configuration& configuration) {
  json result = json::object();
  for (const Key& key : configuration_keys()) {
    std::string pointer = "/" + key.path;
    std::replace(pointer.begin(), pointer.end(), '.', '/');
    result[json::json_pointer(pointer)] = read_member(key, configuration);
  }
  return result;
}

Configuration from_json(const json& object, const std::string& source) {
  Configuration configuration;
  read_object(object, "", configuration, source);
  check_configuration(configuration, source);
  return configuration;
}

std::vector<std::string> differing_keys(const Configuration& a, const Configuration& b) {
  std::vector<std::string> paths;
  for (const Key& key : configuration_keys()) {
    if (read_member(key, a) != read_member(key, b)) paths.push_back(key.path);
  }
  return paths;
}

std::vector<std::string> differing_training_keys(const Configuration& a, const Configuration& b) {
  const bool quantized = a.trains_quantized() || b.trains_quantized();
  std::vector<std::string> paths = differing_keys(a, b);
  std::erase_if(paths, [&](const std::string& path) {
    return find_key(path)->effect == Effect::none || (path.starts_with("cfg_quant.") && !quantized);
  });
  return paths;
}

}  // namespace nibble
