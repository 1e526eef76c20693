#include "graph/network/tensor_file.h"

#include <gmock/gmock.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/file_size_limit.h"
#include "tests/messages.h"
#include "tests/temporary_folder.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string content_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

TensorFile sample(float first) {
  TensorFile file;
  file.metadata["what"] = "sample";
  const std::int64_t shape[] = {2, 3};
  file.set<float>("a", shape, std::vector<float>{first, 2, 3, 4, 5, 6});
  const std::int64_t four[] = {4};
  file.set<std::uint8_t>("b", four, std::vector<std::uint8_t>{1, 2, 3, 4});
  return file;
}

class TensorFileTest : public testing::Test {
 protected:
  fs::path path() const { return folder_ / "f.safetensors"; }

  /// Writes a header as it stands, with `bytes` bytes behind it and, where it has an entry xxh64, the right
  /// sum.
  void write(std::string header, std::size_t bytes) const {
    std::string content(8, '\0');
    const std::uint64_t length = header.size();
    std::memcpy(content.data(), &length, 8);
    content += header + std::string(bytes, '\1');
    const std::size_t place = content.find("0000000000000000");
    if (place != std::string::npos) {
      char digits[17];
      std::snprintf(digits, sizeof digits, "%016llx",
                    static_cast<unsigned long long>(XXH64(content.data(), content.size(), 0)));
      content.replace(place, 16, digits);
    }
    std::ofstream(path(), std::ios::binary) << content;
  }
  std::string refusal() const {
    return message_of([&] { read_tensor_file(path()); });
  }

  TemporaryFolder folder_;
};

TEST_F(TensorFileTest, ComesBackAsItWasWritten) {
  write_tensor_file(path(), sample(1));
  const TensorFile file = read_tensor_file(path());
  const std::int64_t shape[] = {2, 3};
  EXPECT_EQ(file.values<float>("a", shape), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(file.metadata, (std::map<std::string, std::string>{{"what", "sample"}}));
  EXPECT_EQ(file.file, path());
  const std::int64_t other[] = {3, 2};
  EXPECT_THAT(message_of([&] { file.values<float>("a", other); }),
              HasSubstr("is F32 [2, 3], expected F32 [3, 2]"));
  EXPECT_THAT(message_of([&] { file.values<float>("c", shape); }), HasSubstr("tensor 'c' is missing"));
}

/// What safetensors written by others, or damaged ones, may hold. The checksum is right in all of them.
TEST_F(TensorFileTest, RefusesAHeaderThatDoesNotFitItsBytes) {
  const std::string sum = R"("__metadata__":{"xxh64":"0000000000000000"})";
  const auto tensor = [](const char* type, const char* shape, const char* offsets) {
    return std::string(R"({"dtype":")") + type + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}";
  };
  struct Wrong {
    std::string entries;
    std::size_t bytes;
    const char* said;
  };
  const Wrong cases[] = {
      {sum + R"(,"a":)" + tensor("F32", "[2]", "[0,8]") + R"(,"b":)" + tensor("U8", "[2]", "[9,11]"), 11,
       "tensor 'b' begins at byte 9, expected 8 (a gap or an overlap)"},
      {sum + R"(,"a":)" + tensor("F32", "[2]", "[0,8]") + R"(,"b":)" + tensor("U8", "[2]", "[7,9]"), 9,
       "tensor 'b' begins at byte 7, expected 8 (a gap or an overlap)"},
      {sum + R"(,"a":)" + tensor("F32", "[2]", "[0,8]"), 9, "the tensors take 8 bytes, the file holds 9"},
      {sum + R"(,"a":)" + tensor("F32", "[2]", "[4,12]"), 8, "its offsets say 4 to 12 of 8"},
      {sum + R"(,"a":)" + tensor("F32", "[2]", "[8,0]"), 8, "its offsets say 8 to 0 of 8"},
      {sum + R"(,"a":)" + tensor("F32", "[3]", "[0,8]"), 12, "needs 12 bytes"},
      {sum + R"(,"a":)" + tensor("F32", "[2]", "[0]"), 8, "has no data_offsets [begin, end]"},
      {sum + R"(,"a":)" + tensor("F32", "[2]", "[-8,0]"), 8, "has no data_offsets [begin, end]"},
      {sum + R"(,"a":)" + tensor("F8", "[2]", "[0,2]"), 2, "has the unknown type 'F8'"},
      {sum + R"(,"a":)" + tensor("F32", "[-2]", "[0,8]"), 8, "has an impossible shape"},
      {sum + R"(,"a":)" + tensor("F32", "[2.5]", "[0,8]"), 8, "has an impossible shape"},
      {sum + R"(,"a":)" + tensor("U8", "[4294967296,4294967296]", "[0,8]"), 8, "is larger than the file"},
      {sum + R"(,"a":{"dtype":"U8","shape":[2]})", 2, "the entry of tensor 'a' is malformed"},
      {sum + R"(,"a":)" + tensor("U8", "[2]", "[0,2]") + R"(,"a":)" + tensor("U8", "[2]", "[0,2]"), 2,
       "the name 'a' appears twice"},
      {R"("__metadata__":{"xxh64":"0000000000000000","n":3})", 0, "the metadata entry 'n' is not text"},
      {R"("__metadata__":{"what":"no sum"})", 0, "the metadata has no checksum"},
      {R"("a":)" + tensor("U8", "[2]", "[0,2]"), 2, "the metadata has no checksum"},
  };
  for (const Wrong& wrong : cases) {
    write("{" + wrong.entries + "}", wrong.bytes);
    EXPECT_THAT(refusal(), HasSubstr(wrong.said)) << wrong.entries;
    EXPECT_THAT(refusal(), HasSubstr(path().string())) << wrong.entries;
  }
  write("[1]", 0);
  EXPECT_THAT(refusal(), HasSubstr("the header is not a JSON object"));
  write("{", 0);
  EXPECT_THAT(refusal(), HasSubstr("the header is not JSON"));
  write("{" + sum + R"(,"a":)" + tensor("U8", "[2]", "[0,2]") + "}", 2);  // and this one is right
  EXPECT_EQ(refusal(), "no error");
}

/// 256 entries of the same 8 MB.
TEST_F(TensorFileTest, TakesNoMoreMemoryThanTheFileHas) {
  std::string header = R"({"__metadata__":{"xxh64":"0000000000000000"})";
  for (int i = 0; i < 256; ++i) {
    header += ",\"" + std::to_string(i) + R"(":{"dtype":"U8","shape":[8000000],"data_offsets":[0,8000000]})";
  }
  write(header + "}", 8000000);
  const auto megabytes = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss / 1024;
  };
  const long before = megabytes();
  EXPECT_THAT(refusal(), HasSubstr("(a gap or an overlap)"));
  EXPECT_LT(megabytes() - before, 500);
}

TEST_F(TensorFileTest, RefusesWhatIsNoFileOrTooLarge) {
  EXPECT_THAT(refusal(), HasSubstr("there is no such file"));
  std::filesystem::create_directory(path());
  EXPECT_THAT(refusal(), HasSubstr("this is not a file; name a checkpoint"));
  std::filesystem::remove(path());
  std::ofstream(path()).put(' ');
  std::filesystem::resize_file(path(), std::uintmax_t{200} << 30);  // a hole takes no room on the disk
  EXPECT_THAT(refusal(), HasSubstr("214748364800 bytes, more than any checkpoint"));
}

TEST_F(TensorFileTest, KeepsANameThatIsNotUtf8) {
  TensorFile file = sample(1);
  file.metadata["source"] = "caf\xe9.safetensors";
  write_tensor_file(path(), file);
  EXPECT_EQ(read_tensor_file(path()).metadata.at("source"), "caf\xef\xbf\xbd.safetensors");  // U+FFFD
}

TEST_F(TensorFileTest, RefusesAFileThatIsCutAnywhere) {
  write_tensor_file(path(), sample(1));
  const std::string whole = content_of(path());
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
    std::ofstream(path(), std::ios::binary) << whole.substr(0, bytes);
    EXPECT_NE(refusal(), "no error") << bytes;
  }
}

TEST_F(TensorFileTest, AFullDiskLeavesWhatWasSaved) {
  write_tensor_file(path(), sample(1));
  const std::string before = content_of(path());
  {
    const FileSizeLimit limit(before.size() - 1);
    EXPECT_THAT(message_of<RunError>([&] { write_tensor_file(path(), sample(7)); }),
                HasSubstr("cannot write " + path().string()));
  }
  EXPECT_EQ(content_of(path()), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()),
            1);  // nothing beside it
  write_tensor_file(path(), sample(7));
  EXPECT_NE(content_of(path()), before);
}

}  // namespace
}  // namespace nibble
