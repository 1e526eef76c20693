// A translation unit of its own: the compiler warns of mismatched pairs where it can see into only one of
// them.
#include "tests/count_allocations.h"

#include <cstdlib>
#include <new>

namespace nibble {
std::atomic<long> allocations{0};
}

void* operator new(std::size_t size) {
  ++nibble::allocations;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}

// std::stable_sort asks in this way.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++nibble::allocations;
  return std::malloc(size == 0 ? 1 : size);
}

void operator delete(void* memory) noexcept {
  std::free(memory);
}

void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
