#include "bench/child.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "graph/network/error.h"

extern char** environ;

namespace nibble {
namespace {

/// The environment with `changes`, as posix_spawn takes it.
std::vector<std::string> changed_environment(const std::map<std::string, std::string>& changes) {
  std::vector<std::string> entries;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (!changes.contains(text.substr(0, text.find('=')))) entries.push_back(text);
  }
  for (const auto& [name, value] : changes) entries.push_back(name + "=" + value);
  return entries;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

RunError spawn_error(const char* what, int code) {
  return RunError(std::string("cannot start a child process (") + what + ": " + std::strerror(code) + ")");
}

}  // namespace

Child::Child(const std::vector<std::string>& arguments,
             const std::map<std::string, std::string>& environment) {
  int in[2];
  int out[2];
  // Closed on exec, so that no child holds another child's pipes open.
  if (pipe2(in, O_CLOEXEC) != 0) throw spawn_error("pipe", errno);
  if (pipe2(out, O_CLOEXEC) != 0) {
    const int code = errno;
    close(in[0]);
    close(in[1]);
    throw spawn_error("pipe", code);
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
  std::vector<std::string> words = {"bench"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<std::string> variables = changed_environment(environment);
  const int error = posix_spawn(&process_, "/proc/self/exe", &actions, nullptr, pointers(words).data(),
                                pointers(variables).data());
  posix_spawn_file_actions_destroy(&actions);
  std::signal(SIGPIPE, SIG_IGN);  // send() reports a child that has ended
  close(in[0]);
  close(out[1]);
  to_ = fdopen(in[1], "w");
  from_ = fdopen(out[0], "r");
  if (error != 0) {
    process_ = -1;
    std::fclose(to_);
    std::fclose(from_);
    throw spawn_error("posix_spawn", error);
  }
}

Child::~Child() {
  if (process_ > 0) {
    kill(process_, SIGTERM);
    wait();
  }
  if (to_ != nullptr) std::fclose(to_);
  if (from_ != nullptr) std::fclose(from_);
}

void Child::send(const std::string& line) {
  if (std::fprintf(to_, "%s\n", line.c_str()) < 0 || std::fflush(to_) != 0) {
    throw RunError("a child process ended before its work was done; its message is above");
  }
}

std::string Child::receive() {
  std::string line;
  for (int c = std::fgetc(from_); c != EOF; c = std::fgetc(from_)) {
    if (c == '\n') return line;
    line += static_cast<char>(c);
  }
  throw RunError("a child process ended before its work was done; its message is above");
}

std::string Child::receive_all() {
  std::string text;
  for (int c = std::fgetc(from_); c != EOF; c = std::fgetc(from_)) text += static_cast<char>(c);
  return text;
}

int Child::wait() {
  if (process_ <= 0) return -1;
  int status = 0;
  while (waitpid(process_, &status, 0) < 0 && errno == EINTR) {
  }
  process_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace nibble
