#pragma once

#include <atomic>

namespace nibble {

/// Calls of operator new so far, of all threads; link count_allocations.cpp.
extern std::atomic<long> allocations;

}  // namespace nibble
