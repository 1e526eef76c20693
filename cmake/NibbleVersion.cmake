# Target nibble_version: the header nibble_version.h with the version and the commit that is being built.
# The commit is looked up at every build; the header changes, and what includes it is compiled again, only with it.
# As a script (cmake -P) this file writes the header.

if(CMAKE_SCRIPT_MODE_FILE)
  # No optional locks: a build must not disturb a commit that is made at the same time.
  set(ENV{GIT_OPTIONAL_LOCKS} 0)
  execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --match=
                  OUTPUT_VARIABLE COMMIT ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(COMMIT STREQUAL "")
    set(COMMIT unknown)
  endif()
  file(CONFIGURE OUTPUT ${HEADER} @ONLY CONTENT [[
#pragma once

namespace nibble {

inline constexpr char version[] = "@VERSION@";
/// The commit of the build, "-dirty" appended if files were changed since; "unknown" outside a checkout.
inline constexpr char commit[] = "@COMMIT@";
/// What --version prints.
inline constexpr char version_and_commit[] = "@VERSION@ (@COMMIT@)";

}  // namespace nibble
]])
  return()
endif()

set(NIBBLE_VERSION_HEADER ${CMAKE_BINARY_DIR}/generated/nibble_version.h)
add_custom_target(nibble_write_version
  COMMAND ${CMAKE_COMMAND} -DSOURCE=${CMAKE_SOURCE_DIR} -DVERSION=${PROJECT_VERSION} -DHEADER=${NIBBLE_VERSION_HEADER}
          -P ${CMAKE_CURRENT_LIST_FILE}
  BYPRODUCTS ${NIBBLE_VERSION_HEADER}
  COMMENT "")
add_library(nibble_version INTERFACE)
add_dependencies(nibble_version nibble_write_version)
target_include_directories(nibble_version INTERFACE ${CMAKE_BINARY_DIR}/generated)
