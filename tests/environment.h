#pragma once

#include <cstdlib>
#include <string>

namespace nibble {

/// Sets an environment variable (nullptr: removes it) for its own lifetime.
class EnvironmentVariable {
 public:
  EnvironmentVariable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) {
      was_set_ = true;
      before_ = before;
    }
    set(value);
  }
  ~EnvironmentVariable() { set(was_set_ ? before_.c_str() : nullptr); }
  EnvironmentVariable(const EnvironmentVariable&) = delete;
  EnvironmentVariable& operator=(const EnvironmentVariable&) = delete;

 private:
  void set(const char* value) {
    if (value == nullptr) {
      unsetenv(name_);
    } else {
      setenv(name_, value, 1);
    }
  }

  const char* name_;
  bool was_set_ = false;
  std::string before_;
};

}  // namespace nibble
