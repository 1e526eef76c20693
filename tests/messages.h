#pragma once

#include <string>

#include "graph/network/error.h"

namespace nibble {

/// What `work` refuses with; "no error" when it throws no Error.
template <typename Error = InputError, typename Work>
std::string message_of(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace nibble
