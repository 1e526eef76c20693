#pragma once

#include <stdexcept>
#include <string>

namespace nibble {

/// Something the user can mend: a wrong option, configuration, file or data set. Programs exit with 2.
/// The message is one sentence that names what is wrong and what to do.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Something failed while running: no space, no memory, no network. Programs exit with 1.
struct RunError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace nibble
