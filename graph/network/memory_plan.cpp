#include "graph/network/memory_plan.h"

#include <algorithm>
#include <numeric>

namespace nibble {

std::size_t MemoryPlan::add(std::size_t bytes, int first, int last) {
  tensors_.push_back({(bytes + 63) / 64 * 64, first, last, 0});
  return tensors_.size() - 1;
}

void MemoryPlan::extend(std::size_t tensor, int last) {
  tensors_[tensor].last = std::max(tensors_[tensor].last, last);
}

void MemoryPlan::place() {
  std::vector<std::size_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return tensors_[a].bytes > tensors_[b].bytes; });
  std::vector<const Tensor*> placed;  // by ascending offset
  for (const std::size_t index : order) {
    Tensor& tensor = tensors_[index];
    std::size_t offset = 0;
    for (const Tensor* other : placed) {
      const bool together = tensor.first <= other->last && other->first <= tensor.last;
      if (!together) continue;
      if (offset + tensor.bytes <= other->offset) break;
      offset = std::max(offset, other->offset + other->bytes);
    }
    tensor.offset = offset;
    bytes_ = std::max(bytes_, offset + tensor.bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), &tensor,
                                   [](const Tensor* a, const Tensor* b) { return a->offset < b->offset; }),
                  &tensor);
  }
}

}  // namespace nibble
