#include "cfg/configuration.h"

#include <gmock/gmock.h>

#include <fstream>
#include <random>
#include <sstream>

#include "cfg/keys.h"
#include "cfg/nearest.h"
#include "tests/messages.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Configuration parse(const std::string& text) {
  return parse_configuration(text, "my.json");
}

std::string refusal(const std::string& text) {
  return message_of([&] { parse(text); });
}

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

std::string read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class CurrentFolder {
 public:
  explicit CurrentFolder(const fs::path& folder) : before_(fs::current_path()) { fs::current_path(folder); }
  ~CurrentFolder() { fs::current_path(before_); }

 private:
  fs::path before_;
};

/// The reference system's own file, key for key.
constexpr const char* kReference = R"({
  "cfg": {"checkpoint_path": "./chkp/64_200"},
  "cfg_CIFAR": {"root": "./data", "download": true},
  "cfg_dataloader_train": {"batch_size": 64, "shuffle": true, "num_workers": 2, "pin_memory": true},
  "cfg_dataloader_test": {"batch_size": 1024, "shuffle": false, "num_workers": 2, "pin_memory": true},
  "cfg_train": {"n_epoches": 200}
})";

TEST(Configuration, DefaultsAreTheReferenceSystems) {
  EXPECT_EQ(json::parse(read(fs::path(CONFIGURATIONS) / "64_200.json")), json::parse(kReference));
  EXPECT_THAT(differing_keys(parse(kReference), Configuration{}), IsEmpty());
  EXPECT_THAT(differing_keys(parse("{}"), Configuration{}), IsEmpty());
  const Configuration reference = parse(kReference);
  EXPECT_EQ(reference.cfg_train.optimizer, "adamw");
  EXPECT_EQ(reference.cfg_train.learning_rate, 1e-2);
  EXPECT_EQ(reference.cfg_train.weight_decay, 1e-2);
  EXPECT_EQ(reference.cfg_train.loss_reduction, "sum");
  EXPECT_THAT(reference.cfg_train.milestones, ElementsAre(100, 150));
  EXPECT_EQ(reference.cfg_train.gamma, 0.1);
  EXPECT_FALSE(reference.trains_quantized());
}

TEST(Configuration, EveryFileInTheFolderLoads) {
  int files = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(CONFIGURATIONS)) {
    if (entry.path().extension() != ".json" || entry.path().filename() == "schema.json") continue;
    EXPECT_NO_THROW(load_configuration(entry.path())) << entry.path();
    ++files;
  }
  EXPECT_GE(files, 2);
}

TEST(Configuration, SkipsComments) {
  const Configuration configuration = parse(R"(
    // a line
    {"_comment": 1, "_comment_2": {"cfg_train": 0, "twice": 1, "twice": 2},
     "cfg_train": {"_comment": "not seeds", "_comment": "twice", "n_epoches": 7 /* inside */}})");
  EXPECT_THAT(differing_keys(configuration, Configuration{}), ElementsAre("cfg_train.n_epoches"));
  EXPECT_EQ(configuration.cfg_train.n_epoches, 7);
}

TEST(Configuration, IntegersMayBeSpelledAsJsonSchemaAllows) {
  EXPECT_EQ(parse(R"({"cfg_train": {"n_epoches": 2e2}})").cfg_train.n_epoches, 200);
  EXPECT_EQ(parse(R"({"cfg_train": {"n_epoches": 30.0}})").cfg_train.n_epoches, 30);
  EXPECT_EQ(parse(R"({"cfg_train": {"learning_rate": 1}})").cfg_train.learning_rate, 1.0);
}

TEST(Configuration, OneTeacherIsAListOfOne) {
  const auto teachers = [](const std::string& value) {
    return parse_configuration(R"({"cfg_train": {"distillation": {"teacher": )" + value + "}}}", "my.json")
        .cfg_train.distillation.teachers;
  };
  EXPECT_THAT(teachers(R"("")"), IsEmpty());
  EXPECT_THAT(teachers("[]"), IsEmpty());
  EXPECT_THAT(teachers(R"("a")"), ElementsAre("a"));
  EXPECT_THAT(teachers(R"(["a", "b"])"), ElementsAre("a", "b"));
}

struct Refused {
  const char* text;
  const char* message;
};

TEST(Configuration, RefusesWithFileKeyAndWhatWasFound) {
  const Refused cases[] = {
      {R"({"cfg_train": {"n_epoches": 1e9}})",
       "my.json: cfg_train.n_epoches is 1000000000.0; it must be an integer from 1 to 100000"},
      {R"({"cfg_train": {"n_epoches": 0}})",
       "my.json: cfg_train.n_epoches is 0; it must be an integer from 1 to 100000"},
      {R"({"cfg_train": {"n_epoches": 18446744073709551616}})",
       "my.json: cfg_train.n_epoches is 1.8446744073709552e+19; it must be an integer from 1 to 100000"},
      {R"({"cfg_train": {"n_epoches": 1.5}})",
       "my.json: cfg_train.n_epoches is 1.5; it must be an integer from 1 to 100000"},
      {R"({"cfg_train": {"n_epoches": "200"}})",
       "my.json: cfg_train.n_epoches is \"200\"; it must be an integer from 1 to 100000"},
      {R"({"cfg_train": {"n_epoches": true}})",
       "my.json: cfg_train.n_epoches is true; it must be an integer from 1 to 100000"},
      {R"({"cfg_dataloader_train": {"batch_size": 0}})",
       "my.json: cfg_dataloader_train.batch_size is 0; it must be an integer from 1 to 50000"},
      {R"({"cfg_dataloader_train": {"batch_size": -64}})",
       "my.json: cfg_dataloader_train.batch_size is -64; it must be an integer from 1 to 50000"},
      {R"({"cfg_dataloader_train": {"batch_size": 50001}})",
       "my.json: cfg_dataloader_train.batch_size is 50001; it must be an integer from 1 to 50000"},
      {R"({"cfg_dataloader_train": {"batch_size": 46000}, "cfg_train": {"validation": 5000}})",
       "my.json: cfg_dataloader_train.batch_size is 46000, but cfg_train.validation leaves 45000 images to "
       "train "
       "on"},
      {R"({"cfg_dataloader_test": {"batch_size": 10001}})",
       "my.json: cfg_dataloader_test.batch_size is 10001; it must be an integer from 1 to 10000"},
      {R"({"cfg_dataloader_test": {"shuffle": 0}})",
       "my.json: cfg_dataloader_test.shuffle is 0; it must be true or false"},
      {R"({"cfg_train": {"learning_rate": 0}})",
       "my.json: cfg_train.learning_rate is 0; it must be a number above 0 and at most 1000"},
      {R"({"cfg_train": {"seed": -1}})",
       "my.json: cfg_train.seed is -1; it must be an integer from 0 to 9007199254740992"},
      {R"({"cfg_train": {"optimizer": "adam"}})",
       "my.json: cfg_train.optimizer is \"adam\"; it must be one of \"adamw\", \"sgd\""},
      {R"({"cfg_train": {"milestones": [100, "150"]}})",
       "my.json: cfg_train.milestones is [100,\"150\"]; it must be a list of integers from 1 to 100000"},
      {R"({"cfg_train": {"distillation": {"teacher": ["a", 1]}}})",
       "my.json: cfg_train.distillation.teacher is [\"a\",1]; it must be a string or a list of strings"},
      {R"({"cfg_train": {"distillation": {"teacher": null}}})",
       "my.json: cfg_train.distillation.teacher is null; it must be a string or a list of strings"},
      {R"({"cfg_train": {"milestones": [150, 100]}})",
       "my.json: cfg_train.milestones is [150,100]; its epochs must ascend"},
      {R"({"cfg": {"checkpoint_path": null}})", "my.json: cfg.checkpoint_path is null; it must be a string"},
      {R"({"cfg": {"checkpoint_path": ""}})",
       "my.json: cfg.checkpoint_path is empty; give a path such as ./chkp/64_200"},
      {R"({"cfg_quant": {"bits": 5}})", "my.json: cfg_quant.bits is 5; it must be one of 0, 16, 8, 4, 2"},
      {R"({"cfg_quant": {"from": "chkp/64_200.safetensors"}})",
       "my.json: cfg_quant.from is given without cfg_quant.bits; add the width, 8, 4 or 2"},
      {R"({"cfg_network": {"variant": "he", "depth": 20}})",
       "my.json: cfg_network: there is no network 'he' of depth 20 with shortcut ''; choose resnet_344, or "
       "he with "
       "depth 8, 20, 32, 44 or 56 and shortcut A or B"},
      {R"({"cfg_train": {"n_epochs": 200}})",
       "my.json: unknown key cfg_train.n_epochs; did you mean cfg_train.n_epoches?"},
      {R"({"cfg_train": {"batch_size": 64}})",
       "my.json: unknown key cfg_train.batch_size; did you mean cfg_dataloader_train.batch_size?"},
      {R"({"n_epoches": 64})", "my.json: unknown key n_epoches; did you mean cfg_train.n_epoches?"},
      {R"({"cfg_trian": {}})", "my.json: unknown key cfg_trian; did you mean cfg_train?"},
      {R"({"cfg_train": {"augmentation": {"flipp": true}}})",
       "my.json: unknown key cfg_train.augmentation.flipp; did you mean cfg_train.augmentation.flip?"},
      {R"({"cfg_train": 5})", "my.json: cfg_train is a JSON number; it must be an object"},
      {R"({"cfg_train": {"augmentation": true}})",
       "my.json: cfg_train.augmentation is a JSON boolean; it must be an object"},
      {R"({"cfg_train": {"n_epoches": 1, "n_epoches": 1}})",
       "my.json: the key cfg_train.n_epoches is given twice; keep one of them"},
      {R"({"cfg_train": {}, "cfg": {}, "cfg_train": {}})",
       "my.json: the key cfg_train is given twice; keep one of them"},
      {"", "my.json is empty; a configuration is a JSON object, at least {}"},
      {" \n", "my.json holds nothing but comments; a configuration is a JSON object, at least {}"},
      {"// nothing\n/* here */",
       "my.json holds nothing but comments; a configuration is a JSON object, at least {}"},
      {"[]", "my.json holds a JSON array; a configuration is a JSON object"},
      {R"({"cfg_quant": {"bits": 8, "from": "a", "pair_safe": true}})",
       "my.json: trained quantization (cfg_quant.from) has no pair_safe, fuse or method; leave them out of "
       "cfg_quant"},
      {R"({"cfg_quant": {"bits": 4, "from": "a"}})",
       "my.json: trained quantization (cfg_quant.from) learns its scales by sgd: the first step of adamw, "
       "the "
       "whole learning rate, is larger than most of them; set cfg_train.optimizer to sgd"},
      {R"({"cfg_quant": {"bits": 4, "from": "a", "calibration_images": 45001},
           "cfg_train": {"optimizer": "sgd", "validation": 5000}})",
       "my.json: cfg_quant.calibration_images is 45001, but cfg_train.validation leaves 45000 images"},
      {R"({"cfg": {"checkpoint_path": "chkp/"}})",
       "my.json: cfg.checkpoint_path is the folder 'chkp/'; add the name of the checkpoint"},
      {"null", "my.json holds a JSON null; a configuration is a JSON object"},
  };
  for (const Refused& refused : cases) EXPECT_EQ(refusal(refused.text), refused.message) << refused.text;
}

TEST(Configuration, RefusesTextThatIsNotJsonWithLineAndColumn) {
  EXPECT_THAT(refusal("{\n  \"cfg_train\": {,}\n}"),
              HasSubstr("my.json is not valid JSON: parse error at line 2"));
  EXPECT_THAT(refusal("{} {}"), HasSubstr("my.json is not valid JSON: parse error at line 1"));
  EXPECT_THAT(refusal("{\"cfg\": {}"), HasSubstr("my.json is not valid JSON: parse error at line 1"));
  EXPECT_THAT(refusal("{\"cfg_train\": {\"gamma\": 1e999}}"), HasSubstr("my.json is not valid JSON: "));
  EXPECT_THAT(refusal("{\"cfg\": {\"checkpoint_path\": \"\xff\"}}"),
              HasSubstr("my.json is not valid JSON: "));
  EXPECT_THAT(refusal(std::string(100000, '[')), HasSubstr("my.json is not valid JSON: "));
}

TEST(Configuration, AnyDamagedFileIsLoadedOrRefusedInOneSentence) {
  const std::string whole = kReference;
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text = whole;
    const std::size_t place = random() % text.size();
    if (round % 3 == 0) text[place] = static_cast<char>(text[place] ^ (1 << random() % 8));
    if (round % 3 == 1) text.resize(place);
    if (round % 3 == 2) text.insert(place, 1, static_cast<char>(random() % 128));
    const std::string message = refusal(text);
    if (message == "no error") continue;
    ++refused;
    EXPECT_TRUE(message.starts_with("my.json")) << message;
  }
  EXPECT_GT(refused, 2000);
}

bool is_list_of_strings(const Key& key) {
  return std::holds_alternative<std::vector<std::string>& (*)(Configuration&)>(key.member);
}

/// A valid value that differs from `value`.
json another_value(const Key& key, const json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (!key.limits.choices.empty()) {
    return key.limits.choices[0] == value ? key.limits.choices[1] : key.limits.choices[0];
  }
  if (value.is_string()) return value.get<std::string>() + "x";
  if (is_list_of_strings(key)) return json::array({"a", "b"});
  if (value.is_array()) return json::array({3, 4, 5});
  return value == json(key.limits.maximum) ? json(key.limits.maximum / 2) : json(key.limits.maximum);
}

TEST(Keys, EachIsReadWrittenAndNamedWhenItDiffers) {
  EXPECT_GE(configuration_keys().size(), 50U);
  for (const Key& key : configuration_keys()) {
    Configuration changed;
    write_member(key, another_value(key, read_member(key, changed)), changed, "test");
    EXPECT_THAT(differing_keys(changed, Configuration{}), ElementsAre(key.path));
    json object = to_json(changed);
    std::string pointer = "/" + key.path;
    std::replace(pointer.begin(), pointer.end(), '.', '/');
    EXPECT_EQ(object.at(json::json_pointer(pointer)), another_value(key, read_member(key, Configuration{})));
    Configuration read_again;
    write_member(key, object.at(json::json_pointer(pointer)), read_again, "test");
    EXPECT_THAT(differing_keys(changed, read_again), IsEmpty()) << key.path;
  }
}

TEST(Keys, EachRefusesAnotherTypeAndWhatIsOutsideItsRange) {
  for (const Key& key : configuration_keys()) {
    Configuration configuration;
    std::vector<json> wrong = {nullptr, json::object()};
    const json value = read_member(key, configuration);
    if (!value.is_boolean()) wrong.push_back(true);
    if (!value.is_string() && !is_list_of_strings(key)) wrong.push_back("1");
    if (!value.is_array() || is_list_of_strings(key)) wrong.push_back(json::array({1}));
    if (!value.is_number()) wrong.push_back(1);
    if (value.is_number() && key.limits.choices.empty()) {
      wrong.push_back(key.limits.above_minimum ? json(key.limits.minimum) : json(key.limits.minimum - 1));
      wrong.push_back(key.limits.maximum * 1.5);
      wrong.push_back(-1e300);
    }
    if (!key.limits.choices.empty()) wrong.push_back(value.is_string() ? json("nonsense") : json(77));
    for (const json& element : wrong) {
      const std::string message = message_of([&] { write_member(key, element, configuration, "my.json"); });
      EXPECT_TRUE(message.starts_with("my.json: " + key.path + " is ")) << key.path << " " << element;
    }
    EXPECT_THAT(differing_keys(configuration, Configuration{}), IsEmpty()) << key.path;
  }
}

TEST(Configuration, SurvivesItsOwnJson) {
  const Configuration configuration =
      parse(R"({"cfg_train": {"optimizer": "sgd", "learning_rate": 0.1, "seed": 9007199254740991,
      "milestones": [], "weight_decay": 5e-4}, "cfg_quant": {"bits": 4, "from": "a"}})");
  const json stored = json::parse(to_json(configuration).dump());
  const Configuration read = nibble::from_json(stored, "stored");  // the library has one of the same name
  EXPECT_THAT(differing_keys(read, configuration), IsEmpty());
  EXPECT_TRUE(read.trains_quantized());
}

TEST(Configuration, NamesOnlyDifferencesThatChangeTraining) {
  Configuration a;
  Configuration b;
  b.cfg_CIFAR.root = "elsewhere";
  b.cfg_dataloader_train.num_workers = 0;
  b.cfg_quant.observer = "mse";
  EXPECT_THAT(differing_training_keys(a, b), IsEmpty());
  b.cfg_train.n_epoches = 10;
  EXPECT_THAT(differing_training_keys(a, b), ElementsAre("cfg_train.n_epoches"));
  a.cfg_quant.from = b.cfg_quant.from = "P";
  EXPECT_THAT(differing_training_keys(a, b), ElementsAre("cfg_train.n_epoches", "cfg_quant.observer"));
}

TEST(Configuration, ChecksWhatOptionsChanged) {
  Configuration configuration;
  configuration.cfg_train.n_epoches = 1000000000;
  EXPECT_EQ(message_of([&] { check_configuration(configuration, "command line"); }),
            "command line: cfg_train.n_epoches is 1000000000; it must be an integer from 1 to 100000");
}

TEST(FindConfiguration, LooksWhereItWasToldThenInCfgThenInTheCheckout) {
  const TemporaryFolder folder;
  const CurrentFolder current(folder.path());
  // The checkout's own, from any folder.
  EXPECT_EQ(fs::canonical(find_configuration("64_200.json")),
            fs::canonical(fs::path(CONFIGURATIONS) / "64_200.json"));
  write(folder / "cfg/64_200.json", R"({"cfg_train": {"n_epoches": 2}})");
  EXPECT_EQ(load_configuration("64_200.json").cfg_train.n_epoches, 2);
  write(folder / "64_200.json", R"({"cfg_train": {"n_epoches": 1}})");
  EXPECT_EQ(load_configuration("64_200.json").cfg_train.n_epoches, 1);
  EXPECT_EQ(load_configuration("cfg/64_200.json").cfg_train.n_epoches, 2);
  EXPECT_EQ(load_configuration("./cfg/64_200.json").file, "./cfg/64_200.json");
}

TEST(FindConfiguration, SaysWhereItLooked) {
  EXPECT_EQ(message_of([] { load_configuration("none.json"); }),
            "there is no configuration file none.json, nor is it in cfg/ here or beside the program; name an "
            "existing one with --cfg");
  EXPECT_EQ(message_of([] { load_configuration("/none/none.json"); }),
            "there is no configuration file /none/none.json; name an existing one with --cfg");
  EXPECT_EQ(message_of([] { load_configuration(""); }),
            "the name of the configuration file is empty; give one with --cfg");
  const TemporaryFolder folder;
  EXPECT_THAT(message_of([&] { load_configuration(folder.path()); }),
              HasSubstr("there is no configuration file"));
}

TEST(LoadConfiguration, NamesTheFile) {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.json";
  write(path, "// only this");
  EXPECT_THAT(message_of([&] { load_configuration(path); }), HasSubstr(path.string() + " holds nothing but"));
  write(path, std::string(2 << 20, ' '));
  EXPECT_THAT(message_of([&] { load_configuration(path); }),
              HasSubstr(path.string() + " has more than 1 MiB"));
}

TEST(Nearest, CountsEdits) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("abc", ""), 3);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("flaw", "lawn"), 2);
  EXPECT_EQ(nearest_name("epohcs", {"seed", "epochs", "threads"}), "epochs");
  EXPECT_EQ(nearest_name("x", {}), "");
}

}  // namespace
}  // namespace nibble
