#include "graph/data/download.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <sstream>

#include "graph/network/error.h"
#include "tests/environment.h"
#include "tests/file_size_limit.h"
#include "tests/graph/data/small_data_set.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;
using testing::StartsWith;

/// server.py with a folder of its own.
class Server {
 public:
  Server() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
    process_ = fork();
    if (process_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(ends[1], 1);
      execl(PYTHON, PYTHON, SERVER, folder_.path().c_str(), nullptr);
      _exit(127);
    }
    close(ends[1]);
    FILE* output = fdopen(ends[0], "r");
    if (fscanf(output, "%d", &port_) != 1) throw std::runtime_error("the test server does not start");
    fclose(output);
  }
  ~Server() {
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
  }

  std::string url(const std::string& path) const {
    return "http://127.0.0.1:" + std::to_string(port_) + path;
  }
  fs::path file(const std::string& name) const { return folder_ / name; }

  /// "<path> <range>" of the requests since the last call.
  std::vector<std::string> requests() {
    std::vector<std::string> lines;
    std::ifstream stream(folder_ / "requests");
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    fs::remove(folder_ / "requests");
    return lines;
  }

 private:
  TemporaryFolder folder_;
  pid_t process_;
  int port_ = 0;
};

struct Entry {
  std::string name;
  std::string content;
  mode_t type = AE_IFREG;
  std::string link = {};  ///< target of a symbolic link, or of a hard link when the type is AE_IFREG
};

void write_archive(const fs::path& path, const std::vector<Entry>& entries) {
  archive* writer = archive_write_new();
  archive_write_add_filter_gzip(writer);
  archive_write_set_format_pax_restricted(writer);
  ASSERT_EQ(archive_write_open_filename(writer, path.c_str()), ARCHIVE_OK);
  for (const Entry& entry : entries) {
    archive_entry* header = archive_entry_new();
    archive_entry_set_pathname(header, entry.name.c_str());
    archive_entry_set_perm(header, 0644);
    archive_entry_set_filetype(header, entry.type);
    archive_entry_set_size(header, static_cast<la_int64_t>(entry.content.size()));
    if (!entry.link.empty() && entry.type == AE_IFREG) archive_entry_set_hardlink(header, entry.link.c_str());
    if (!entry.link.empty() && entry.type == AE_IFLNK) archive_entry_set_symlink(header, entry.link.c_str());
    ASSERT_EQ(archive_write_header(writer, header), ARCHIVE_OK);
    archive_write_data(writer, entry.content.data(), entry.content.size());
    archive_entry_free(header);
  }
  ASSERT_EQ(archive_write_close(writer), ARCHIVE_OK);
  archive_write_free(writer);
}

std::string read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

class Download : public testing::Test {
 protected:
  Download() : cache_variable_("XDG_CACHE_HOME", (temporary_ / "cache").c_str()), no_proxy_("no_proxy", "*") {
    options_.pause = std::chrono::milliseconds(1);
    options_.show_progress = false;
    write_archive(server_.file("good.tar.gz"), entries());
    archive_ = read(server_.file("good.tar.gz"));
    server_.requests();
  }

  std::vector<Entry> entries() const {
    std::vector<Entry> result = {{"cifar-10-batches-bin/", "", AE_IFDIR},
                                 {"cifar-10-batches-bin/readme.html", "not wanted"}};
    for (const auto& [name, content] : small_.bytes)
      result.push_back({"cifar-10-batches-bin/" + name, content});
    return result;
  }

  fs::path fetch(const std::string& path) {
    options_.url = server_.url(path);
    return fetch_data_files(root_, options_, small_.published);
  }

  template <typename Error>
  std::string failure(const std::string& path) {
    try {
      fetch(path);
    } catch (const Error& error) {
      return error.what();
    }
    return "not this error";
  }

  /// The six files and nothing else.
  void expect_complete() const {
    const fs::path folder = root_ / "cifar-10-batches-bin";
    for (const auto& [name, content] : small_.bytes) EXPECT_TRUE(read(folder / name) == content) << name;
    std::vector<fs::path> all;
    for (const auto& entry : fs::recursive_directory_iterator(temporary_ / "outside"))
      all.push_back(entry.path());
    EXPECT_THAT(all, SizeIs(small_.bytes.size() + 2));  // with the two folders
  }

  void expect_nothing_in_place() const { EXPECT_EQ(find_data_files(root_, small_.published), std::nullopt); }

  fs::path part() const { return root_ / "cifar-10-batches-bin.tar.gz.part"; }

  void write_part(const std::string& content) const {
    fs::create_directories(root_);
    std::ofstream(part(), std::ios::binary) << content;
  }

  TemporaryFolder temporary_;
  EnvironmentVariable cache_variable_;
  EnvironmentVariable no_proxy_;
  SmallDataSet small_;
  Server server_;
  DownloadOptions options_;
  std::string archive_;
  fs::path root_ = temporary_ / "outside/data";
};

TEST_F(Download, FetchesUnpacksAndTidiesUp) {
  EXPECT_EQ(fetch("/plain/good.tar.gz"), root_ / "cifar-10-batches-bin");
  expect_complete();
  EXPECT_THAT(server_.requests(), ElementsAre("/plain/good.tar.gz -"));
  EXPECT_EQ(read_cifar10(root_ / "cifar-10-batches-bin", Split::train, 0, small_.published).count(), 35);
}

TEST_F(Download, ShowsHowFarItIs) {
  options_.show_progress = true;
  write_part(archive_.substr(0, archive_.size() / 2));
  testing::internal::CaptureStderr();
  fetch("/plain/good.tar.gz");
  const std::string shown = testing::internal::GetCapturedStderr();
  // The whole size, although only its second half was sent: 0.1 of 0.1 MB.
  char whole[32];
  std::snprintf(whole, sizeof whole, "%.1f", static_cast<double>(archive_.size()) * 1e-6);
  EXPECT_THAT(shown, testing::EndsWith("fetching " + options_.url + ": " + whole + " of " + whole + " MB\n"));
}

TEST_F(Download, FollowsARedirection) {
  fetch("/redirect/good.tar.gz");
  expect_complete();
}

TEST_F(Download, ReadsALocalArchive) {
  options_.url = "file://" + server_.file("good.tar.gz").string();
  write_part("left over");
  fetch_data_files(root_, options_, small_.published);
  expect_complete();
}

TEST_F(Download, GoesOnWhereAConnectionWasCut) {
  fetch("/cut/30000/good.tar.gz");
  expect_complete();
  const std::vector<std::string> requests = server_.requests();
  const std::size_t expected = (archive_.size() + 29999) / 30000;
  ASSERT_EQ(requests.size(), expected);
  EXPECT_GT(expected, static_cast<std::size_t>(3));
  EXPECT_EQ(requests[0], "/cut/30000/good.tar.gz -");
  for (std::size_t i = 1; i < expected; ++i) {
    EXPECT_EQ(requests[i], "/cut/30000/good.tar.gz bytes=" + std::to_string(30000 * i) + "-");
  }
}

TEST_F(Download, GoesOnWhereAnEarlierRunStopped) {
  write_part(archive_.substr(0, 50000));
  fetch("/plain/good.tar.gz");
  expect_complete();
  EXPECT_THAT(server_.requests(), ElementsAre("/plain/good.tar.gz bytes=50000-"));
}

TEST_F(Download, UsesAnArchiveThatIsThereWhole) {
  write_part(archive_);
  fetch("/plain/good.tar.gz");
  expect_complete();
  EXPECT_THAT(server_.requests(), SizeIs(1));  // answered with 416
}

TEST_F(Download, BeginsAgainWhereTheServerIgnoresRanges) {
  write_part(archive_.substr(0, 50000));
  fetch("/norange/good.tar.gz");
  expect_complete();
  EXPECT_THAT(server_.requests(), ElementsAre("/norange/good.tar.gz bytes=50000-"));
}

TEST_F(Download, SurvivesCutsByAServerThatIgnoresRanges) {
  fetch("/cutnorange/40000/good.tar.gz");
  expect_complete();
  EXPECT_THAT(server_.requests(), SizeIs(3));
}

TEST_F(Download, BeginsAgainAfterAWrongRange) {
  write_part(archive_.substr(0, 50000));
  fetch("/wrongrange/good.tar.gz");
  expect_complete();
  EXPECT_THAT(server_.requests(),
              ElementsAre("/wrongrange/good.tar.gz bytes=50000-", "/wrongrange/good.tar.gz -"));
}

TEST_F(Download, BeginsAgainWhenTheBeginningIsOfAnotherArchive) {
  for (const std::string& wrong :
       {std::string(50000, 'x'), archive_ + "more", archive_.substr(0, 999) + "x" + archive_.substr(1000)}) {
    write_part(wrong);
    fetch("/plain/good.tar.gz");
    expect_complete();
    const std::vector<std::string> requests = server_.requests();
    EXPECT_EQ(requests.back(), "/plain/good.tar.gz -");
    fs::remove_all(root_);
  }
}

TEST_F(Download, GivesUpASilentConnection) {
  options_.stall = std::chrono::seconds(1);
  fetch("/stall/60000/good.tar.gz");
  expect_complete();
  EXPECT_THAT(server_.requests(),
              ElementsAre("/stall/60000/good.tar.gz -", "/stall/60000/good.tar.gz bytes=60000-"));
}

TEST_F(Download, WaitsForABusyServerButNotForever) {
  fetch("/busy/good.tar.gz");
  expect_complete();
  fs::remove_all(root_);
  server_.requests();
  options_.attempts = 3;
  EXPECT_THAT(failure<RunError>("/status/503/good.tar.gz"),
              HasSubstr("/status/503/good.tar.gz: the server answers 503; check the network"));
  EXPECT_THAT(server_.requests(), SizeIs(3));
  EXPECT_EQ(fs::file_size(part()), 0U);  // the page is not taken for the archive
}

TEST_F(Download, DoesNotInsistOnWhatIsNotThere) {
  EXPECT_THAT(failure<RunError>("/plain/none.tar.gz"),
              HasSubstr("the server answers 404; check the network, or put"));
  EXPECT_THAT(failure<RunError>("/status/403/good.tar.gz"), HasSubstr("the server answers 403"));
  EXPECT_THAT(server_.requests(), SizeIs(2));
}

TEST_F(Download, KeepsWhatItHasWhenTheServerStopsAnswering) {
  options_.attempts = 2;
  write_part(archive_.substr(0, 50000));
  EXPECT_THAT(failure<RunError>("/status/500/good.tar.gz"), HasSubstr("the server answers 500"));
  EXPECT_EQ(fs::file_size(part()), 50000U);
  fetch("/plain/good.tar.gz");
  expect_complete();
}

TEST_F(Download, SaysThatThereIsNoNetwork) {
  // A port that nobody listens to, and a name that never exists (RFC 2606).
  for (const char* url : {"http://127.0.0.1:1/a.tar.gz", "http://nowhere.invalid/a.tar.gz"}) {
    options_.url = url;
    options_.attempts = 2;
    try {
      fetch_data_files(root_, options_, small_.published);
      FAIL() << url;
    } catch (const RunError& error) {
      EXPECT_THAT(error.what(), StartsWith(std::string("cannot fetch ") + url + ": "));
      EXPECT_THAT(error.what(),
                  HasSubstr("; check the network, or put the files of the binary CIFAR-10 into a "
                            "folder and set CIFAR10_ROOT to it"));
    }
  }
}

TEST_F(Download, RefusesContentWithAnotherSum) {
  std::vector<Entry> wrong = entries();
  wrong[4].content[100] = static_cast<char>(wrong[4].content[100] ^ 1);
  write_archive(server_.file("wrong.tar.gz"), wrong);
  const std::string message = failure<InputError>("/plain/wrong.tar.gz");
  EXPECT_THAT(message, StartsWith("what " + options_.url + " gives is not the data set"));
  EXPECT_THAT(message, HasSubstr("data_batch_3.bin in it has the SHA-256 " + sha256_of(wrong[4].content)));
  expect_nothing_in_place();
  EXPECT_FALSE(fs::exists(part()));  // so the next run does not go on with it
  EXPECT_THAT(server_.requests(), SizeIs(1));
  fetch("/plain/good.tar.gz");
  expect_complete();
}

TEST_F(Download, RefusesFilesOfAnotherSize) {
  for (const std::string& content : {std::string(), small_.bytes["test_batch.bin"].substr(1),
                                     small_.bytes["test_batch.bin"] + std::string(1 << 20, 'x')}) {
    std::vector<Entry> wrong = entries();
    wrong.back().content = content;
    write_archive(server_.file("wrong.tar.gz"), wrong);
    EXPECT_THAT(failure<InputError>("/plain/wrong.tar.gz"), HasSubstr("test_batch.bin in it has "));
    expect_nothing_in_place();
  }
}

TEST_F(Download, RefusesWhatIsNotAWholeArchive) {
  std::ofstream(server_.file("page.tar.gz")) << "<html>Log in first</html>";
  std::ofstream(server_.file("cut.tar.gz"), std::ios::binary) << archive_.substr(0, archive_.size() / 2);
  std::ofstream(server_.file("empty.tar.gz"));
  for (const char* name : {"page.tar.gz", "cut.tar.gz", "empty.tar.gz"}) {
    EXPECT_THAT(failure<InputError>(std::string("/plain/") + name), HasSubstr("gives is not the data set"))
        << name;
    expect_nothing_in_place();
  }
}

TEST_F(Download, WritesNothingOutsideItsFolder) {
  const std::string evil = "evil";
  const fs::path absolute = temporary_ / "outside/absolute";
  std::vector<Entry> all = {{"../evil", evil},
                            {"../../evil", evil},
                            {"cifar-10-batches-bin/../../evil", evil},
                            {"cifar-10-batches-bin/../evil", evil},
                            {"cifar-10-batches-bin/sub/test_batch.bin", evil},
                            {"test_batch.bin", evil},
                            {absolute.string(), evil},
                            {"/cifar-10-batches-bin/test_batch.bin", evil},
                            {"cifar-10-batches-bin", "", AE_IFLNK, temporary_ / "outside"},
                            {"cifar-10-batches-bin/link", "", AE_IFLNK, absolute},
                            {"cifar-10-batches-bin/test_batch.bin", "", AE_IFLNK, absolute},
                            {"cifar-10-batches-bin/test_batch.bin", "", AE_IFREG, "../evil"},
                            {"cifar-10-batches-bin/test_batch.bin", "", AE_IFIFO}};
  for (const Entry& entry : entries()) all.push_back(entry);
  all.push_back({"cifar-10-batches-bin/data_batch_1.bin", "", AE_IFLNK, absolute});
  write_archive(server_.file("evil.tar.gz"), all);
  fetch("/plain/evil.tar.gz");
  expect_complete();
  for (const auto& [name, content] : small_.bytes) {
    EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(root_ / "cifar-10-batches-bin" / name)));
  }
}

TEST_F(Download, TakesNoLinkForAFile) {
  for (const mode_t type : {mode_t{AE_IFLNK}, mode_t{AE_IFREG}}) {
    std::vector<Entry> links = entries();
    links.back() = {"cifar-10-batches-bin/test_batch.bin", "", type, "data_batch_1.bin"};
    write_archive(server_.file("links.tar.gz"), links);
    EXPECT_THAT(failure<InputError>("/plain/links.tar.gz"),
                HasSubstr("does not hold the file cifar-10-batches-bin/test_batch.bin"));
    expect_nothing_in_place();
  }
}

TEST_F(Download, RefusesAFileThatIsThereTwice) {
  std::vector<Entry> twice = entries();
  twice.push_back(twice.back());
  write_archive(server_.file("twice.tar.gz"), twice);
  EXPECT_THAT(failure<InputError>("/plain/twice.tar.gz"), HasSubstr("holds test_batch.bin twice"));
  expect_nothing_in_place();
}

TEST_F(Download, StopsOnAFullDiskAndGoesOnLater) {
  {
    const FileSizeLimit limit(40000);
    EXPECT_THAT(
        failure<RunError>("/plain/good.tar.gz"),
        StartsWith("cannot write " + part().string() + ": File too large; make room there and start again"));
  }
  EXPECT_EQ(fs::file_size(part()), 40000U);
  expect_nothing_in_place();
  fetch("/plain/good.tar.gz");
  expect_complete();
  EXPECT_THAT(server_.requests(), ElementsAre("/plain/good.tar.gz -", "/plain/good.tar.gz bytes=40000-"));
}

TEST_F(Download, StopsOnADiskThatIsFullWhileUnpacking) {
  // Black images: the archive is much smaller than any of its files.
  for (DataFile& file : small_.published.files) {
    small_.bytes[file.name] = std::string(small_.bytes[file.name].size(), '\0');
    file.sha256 = sha256_of(small_.bytes[file.name]);
  }
  write_archive(server_.file("black.tar.gz"), entries());
  {
    const FileSizeLimit limit(20000);
    EXPECT_THAT(failure<RunError>("/plain/black.tar.gz"),
                HasSubstr("data_batch_1.bin: File too large; make room"));
  }
  expect_nothing_in_place();
  EXPECT_FALSE(fs::exists(root_ / "cifar-10-batches-bin.part"));  // gives its space back
  EXPECT_GT(fs::file_size(part()), 0U);                           // fetched already
  fetch("/plain/black.tar.gz");
  expect_complete();
}

TEST_F(Download, RefusesAFolderThatCannotBeMade) {
  fs::create_directories(root_.parent_path());
  std::ofstream(root_) << "a file";
  EXPECT_THAT(failure<RunError>("/plain/good.tar.gz"), HasSubstr("cannot make the folder " + root_.string()));
}

TEST_F(Download, TwoProgramsDoNotFetchAtOnce) {
  write_part("");
  const int other = open(part().c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(flock(other, LOCK_EX), 0);
  EXPECT_THAT(failure<RunError>("/plain/good.tar.gz"),
              StartsWith("another program is fetching " + part().string()));
  close(other);
  fetch("/plain/good.tar.gz");
  expect_complete();
}

TEST_F(Download, RemovesWhatAStoppedRunLeft) {
  fs::create_directories(root_ / "cifar-10-batches-bin.part/sub");
  fs::create_directories(root_ / "cifar-10-batches-bin");
  std::ofstream(root_ / "cifar-10-batches-bin.part/test_batch.bin") << "half";
  fetch("/plain/good.tar.gz");
  expect_complete();
}

TEST_F(Download, KeepsOtherFilesOfTheFolder) {
  fs::create_directories(root_ / "cifar-10-batches-bin");
  std::ofstream(root_ / "cifar-10-batches-bin/notes") << "mine";
  fetch("/plain/good.tar.gz");
  EXPECT_EQ(read(root_ / "cifar-10-batches-bin/notes"), "mine");
  EXPECT_EQ(find_data_files(root_, small_.published), root_ / "cifar-10-batches-bin");
  EXPECT_FALSE(fs::exists(root_ / "cifar-10-batches-bin.part"));
}

TEST_F(Download, RefusesOtherSchemes) {
  for (const char* url : {"", "ftp://host/a.tar.gz", "a.tar.gz", "https:/host/a"}) {
    options_.url = url;
    try {
      fetch_data_files(root_, options_, small_.published);
      FAIL() << url;
    } catch (const InputError& error) {
      EXPECT_EQ(error.what(), std::string("cfg_CIFAR.url is '") + url +
                                  "'; it must begin with https://, http:// or file://");
    }
  }
}

class PrepareCifar10 : public Download {
 protected:
  fs::path prepare(bool download) {
    options_.url = server_.url("/plain/good.tar.gz");
    return prepare_cifar10(root_, download, options_, small_.published);
  }
  std::string refusal(bool download) {
    try {
      prepare(download);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  }
  EnvironmentVariable unset_{"CIFAR10_ROOT", nullptr};
};

TEST_F(PrepareCifar10, FetchesOnlyWhatIsNotThere) {
  EXPECT_EQ(prepare(true), root_ / "cifar-10-batches-bin");
  EXPECT_THAT(server_.requests(), SizeIs(1));
  EXPECT_EQ(prepare(true), root_ / "cifar-10-batches-bin");
  EXPECT_EQ(prepare(false), root_ / "cifar-10-batches-bin");
  EXPECT_THAT(server_.requests(), SizeIs(0));
}

TEST_F(PrepareCifar10, SaysWhatToDoWhenItMayNotFetch) {
  EXPECT_EQ(refusal(false),
            "CIFAR-10 is not in " + root_.string() +
                "; put the six files of its binary version there, set CIFAR10_ROOT to their folder, "
                "or set cfg_CIFAR.download to true");
  EXPECT_FALSE(fs::exists(root_));
}

TEST_F(PrepareCifar10, NamesTheMissingFileOfFiveAndFetchesNothing) {
  small_.write(root_);
  fs::remove(root_ / "data_batch_2.bin");
  EXPECT_THAT(refusal(true), HasSubstr("holds 5 of the 6 files of the data set, without data_batch_2.bin"));
  EXPECT_THAT(server_.requests(), SizeIs(0));
}

TEST_F(PrepareCifar10, TheVariableGoesFirst) {
  const fs::path elsewhere = temporary_ / "elsewhere";
  small_.write(elsewhere);
  const EnvironmentVariable variable("CIFAR10_ROOT", elsewhere.c_str());
  EXPECT_EQ(prepare(true), elsewhere);
  fs::remove_all(elsewhere);
  EXPECT_EQ(refusal(true),
            "CIFAR10_ROOT is " + elsewhere.string() +
                ", which is no folder; set it to the folder of the binary CIFAR-10, or unset it");
  fs::create_directories(elsewhere);
  EXPECT_THAT(refusal(false), StartsWith("CIFAR-10 is not in " + elsewhere.string()));
  EXPECT_EQ(prepare(true), elsewhere / "cifar-10-batches-bin");
}

}  // namespace
}  // namespace nibble
