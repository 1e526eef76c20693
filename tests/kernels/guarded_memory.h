#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace nibble {

/// Memory whose last (or first) byte touches a page that may not be accessed: a kernel that reads or writes
/// outside is stopped at once. The other side is filled up to its page's edge and checked by intact().
class GuardedMemory {
 public:
  enum class Guard { behind, before };

  GuardedMemory(std::size_t size, Guard guard) : size_(size), guard_(guard) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    inner_ = (size + page - 1) / page * page;
    mapped_ = inner_ + 2 * page;
    void* memory = ::mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<std::uint8_t*>(memory);
    if (inner_ != 0 && ::mprotect(base_ + page, inner_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    inside_ = base_ + page;
    std::memset(inside_, kFill, inner_);
    std::memset(data(), 0, size);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() { ::munmap(base_, mapped_); }

  std::uint8_t* data() const { return guard_ == Guard::behind ? inside_ + inner_ - size_ : inside_; }
  std::size_t size() const { return size_; }

  /// Whether nobody wrote between the data and the page's other edge.
  bool intact() const {
    const std::uint8_t* slack = guard_ == Guard::behind ? inside_ : inside_ + size_;
    for (std::size_t i = 0; i < inner_ - size_; ++i) {
      if (slack[i] != kFill) return false;
    }
    return true;
  }

 private:
  static constexpr std::uint8_t kFill = 0xA5;
  std::size_t size_;
  Guard guard_;
  std::size_t inner_ = 0;
  std::size_t mapped_ = 0;
  std::uint8_t* base_ = nullptr;
  std::uint8_t* inside_ = nullptr;
};

}  // namespace nibble
