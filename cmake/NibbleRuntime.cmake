# The run-time library and its CMake package.

include(CMakePackageConfigHelpers)

# nibble_runtime_library(SOURCES files... HEADERS folder NEEDS rooms...): the shared library nibble::runtime.
# SOURCES define the functions that HEADERS/nibble/*.h marks with NIBBLE_API; nothing else is exported, and only what
# they call is taken from the rooms.
function(nibble_runtime_library)
  cmake_parse_arguments(RUNTIME "" "HEADERS" "SOURCES;NEEDS" ${ARGN})
  add_library(nibble_runtime SHARED ${RUNTIME_SOURCES})
  add_library(nibble::runtime ALIAS nibble_runtime)
  set_target_properties(nibble_runtime PROPERTIES
    EXPORT_NAME runtime
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
  target_compile_features(nibble_runtime PUBLIC cxx_std_20)
  target_include_directories(nibble_runtime PUBLIC $<BUILD_INTERFACE:${RUNTIME_HEADERS}>
                                                   $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(nibble_runtime PRIVATE ${RUNTIME_NEEDS} nibble_settings)
  target_link_options(nibble_runtime PRIVATE -Wl,--exclude-libs,ALL -Wl,--gc-sections -Wl,--as-needed)
  if(NOT NIBBLE_SANITIZE)  # a sanitizer's functions are in the program
    target_link_options(nibble_runtime PRIVATE -Wl,--no-undefined)
  endif()

  set(package ${CMAKE_INSTALL_LIBDIR}/cmake/nibble)
  install(TARGETS nibble_runtime EXPORT nibble_targets
          LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(DIRECTORY ${RUNTIME_HEADERS}/nibble DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
  install(EXPORT nibble_targets NAMESPACE nibble:: FILE nibble-targets.cmake DESTINATION ${package})
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/nibble-config.cmake @ONLY
       CONTENT "include(\${CMAKE_CURRENT_LIST_DIR}/nibble-targets.cmake)\n")
  write_basic_package_version_file(${CMAKE_BINARY_DIR}/nibble-config-version.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${CMAKE_BINARY_DIR}/nibble-config.cmake ${CMAKE_BINARY_DIR}/nibble-config-version.cmake
          DESTINATION ${package})
  install(FILES ${CMAKE_SOURCE_DIR}/LICENSE ${CMAKE_SOURCE_DIR}/THIRD_PARTY_NOTICES.md
          DESTINATION ${CMAKE_INSTALL_DOCDIR})
endfunction()
