#pragma once

#include <cstddef>
#include <vector>

namespace nibble {

/// Places tensors of known sizes and lifetimes in one buffer: tensors that never live together share bytes.
class MemoryPlan {
 public:
  /// A tensor that is written at step `first` and read for the last time at step `last`. Returns its index.
  std::size_t add(std::size_t bytes, int first, int last);
  /// The tensor is used up to `last` too: what is computed in place continues it.
  void extend(std::size_t tensor, int last);

  /// Chooses the offsets, largest tensors first, each at the lowest free place; multiples of 64 bytes.
  void place();

  std::size_t offset(std::size_t tensor) const { return tensors_[tensor].offset; }
  std::size_t bytes() const { return bytes_; }  ///< of the whole buffer

 private:
  struct Tensor {
    std::size_t bytes;
    int first;
    int last;
    std::size_t offset;
  };
  std::vector<Tensor> tensors_;
  std::size_t bytes_ = 0;
};

}  // namespace nibble
