# One room, one target. All of our own code is compiled with the same strict settings.

add_library(nibble_settings INTERFACE)
target_compile_features(nibble_settings INTERFACE cxx_std_20)
target_compile_options(nibble_settings INTERFACE
  -Wall -Wextra -Wconversion -Wshadow -Werror
  # GCC 12 sees overlapping copies in its own std::string (its bug 105651).
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict>
  # The requantization is one multiplication, one addition and one named fma: never contracted by the compiler.
  -ffp-contract=off)
if(NIBBLE_SANITIZE)
  target_compile_options(nibble_settings INTERFACE -fsanitize=${NIBBLE_SANITIZE} -fno-sanitize-recover=all
                                                   -fno-omit-frame-pointer)
  target_link_options(nibble_settings INTERFACE -fsanitize=${NIBBLE_SANITIZE})
endif()

# nibble_room(<target> SOURCES ... [NEEDS targets...]): a static library for one folder.
# Headers are included by their path from the root of the checkout: "graph/network/description.h".
function(nibble_room target)
  cmake_parse_arguments(ROOM "" "" "SOURCES;NEEDS" ${ARGN})
  add_library(${target} STATIC ${ROOM_SOURCES})
  target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(${target} PUBLIC ${ROOM_NEEDS} PRIVATE nibble_settings)
endfunction()

# nibble_program(<name> SOURCES ... NEEDS ...): an installed program; "nibble_version.h" is at hand.
function(nibble_program name)
  cmake_parse_arguments(PROGRAM "" "" "SOURCES;NEEDS" ${ARGN})
  add_executable(${name} ${PROGRAM_SOURCES})
  target_link_libraries(${name} PRIVATE ${PROGRAM_NEEDS} nibble_settings nibble_version)
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()
