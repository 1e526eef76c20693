#pragma once

#include <sys/types.h>

#include <cstdio>
#include <map>
#include <string>
#include <vector>

namespace nibble {

/// This program again, as a child process that one talks to line by line.
class Child {
 public:
  /// Starts the running program with these arguments and variables added to the environment; messages of the
  /// child go where this process's go. Throws RunError.
  Child(const std::vector<std::string>& arguments, const std::map<std::string, std::string>& environment);
  ~Child();  ///< ends a child that is still running
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  void send(const std::string& line);  ///< to its standard input
  std::string receive();               ///< the next line of its standard output; RunError when it has ended
  std::string receive_all();           ///< until its end
  int wait();                          ///< its exit code; -1 when a signal ended it

 private:
  pid_t process_ = -1;
  std::FILE* to_ = nullptr;
  std::FILE* from_ = nullptr;
};

}  // namespace nibble
