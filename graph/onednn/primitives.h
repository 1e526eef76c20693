#pragma once

#include <cstddef>
#include <cstdint>
#include <dnnl.hpp>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graph/network/description.h"
#include "graph/onednn/elementwise.h"

namespace nibble {

/// The one CPU engine.
const dnnl::engine& cpu_engine();

/// Whether oneDNN may use `isa` here: the CPU has it and ONEDNN_MAX_CPU_ISA allows it.
bool onednn_has(dnnl::cpu_isa isa);

/// Memory that starts at a cache line, zero at first.
template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t count) { reset(count); }
  void reset(std::size_t count) {
    constexpr std::size_t line = 64;
    const std::size_t bytes = (count * sizeof(T) + line - 1) / line * line;
    values_.reset(static_cast<T*>(::operator new (bytes, std::align_val_t{line})));
    __builtin_memset(static_cast<void*>(values_.get()), 0, bytes);
    count_ = count;
  }
  T* data() const { return values_.get(); }
  std::size_t size() const { return count_; }

 private:
  struct Release {
    void operator()(T* values) const { ::operator delete (values, std::align_val_t{64}); }
  };
  std::unique_ptr<T[], Release> values_;
  std::size_t count_ = 0;
};

template <typename T>
constexpr dnnl::memory::data_type onednn_type();
template <>
constexpr dnnl::memory::data_type onednn_type<float>() {
  return dnnl::memory::data_type::f32;
}
template <>
constexpr dnnl::memory::data_type onednn_type<Bfloat16>() {
  return dnnl::memory::data_type::bf16;
}

/// What oneDNN wants to know of a convolution of `images` images, activations in nhwc.
struct OnednnConvolution {
  OnednnConvolution(const Convolution& shape, int images, dnnl::memory::data_type type);

  /// Leaves of one image's output the rows from `first` to before `end`. Returns the first row of the input
  /// that they are computed from, where the source then begins.
  int take_rows(const Convolution& shape, int first, int end);

  dnnl::memory::desc source;
  dnnl::memory::desc destination;
  dnnl::memory::dims weight_dims;
  dnnl::memory::desc weight;         ///< of `type`, layout for oneDNN to choose
  dnnl::memory::desc master_weight;  ///< FP32, [output channel][row][column][input channel]
  dnnl::memory::dims strides, padding_before, padding_after;
};

/// Whether a convolution of this implementation has a `direct` one of the same instructions that is quicker
/// here: both are names that oneDNN gives.
bool is_quicker(const std::string& direct, const std::string& chosen);

/// The description that make() returns, or one of another implementation.
///
/// On AVX-512 oneDNN's first choice is brgconv. On these networks' layers its direct kernels, in nhwc too,
/// take 2 to 15 % less time, forward and data gradient, whole images and rows, in FP32, BF16 and int8; the
/// data gradient of stride 2 takes 25 to 65 % less (Zen 4, one thread on a tile). Of the AMX kernels the
/// direct one takes 10 to 45 % less in the data gradient of stride 2, but up to a third more in 64 channels
/// (Emerald Rapids).
template <typename Make>
auto quickest(const Make& make) {
  auto chosen = make();
  // next_impl() would also move copies of `chosen` on.
  auto other = make();
  do {
    if (is_quicker(other.impl_info_str(), chosen.impl_info_str())) return other;
  } while (other.next_impl());
  return chosen;
}

/// A convolution's weights in the layouts that its primitives chose, each layout once.
class WeightCopies {
 public:
  /// `plain`: how `values` lie.
  const std::byte* in(const dnnl::memory::desc& layout, const dnnl::memory::desc& plain, const void* values);

 private:
  struct Copy {
    dnnl::memory::desc layout;
    AlignedBuffer<std::byte> values;
  };
  std::vector<Copy> copies_;
};

/// Scratchpads come from us, so that a primitive may run on many threads at once.
dnnl::primitive_attr user_scratchpad();

/// A primitive that many threads execute at the same time, each on data of its own and with a scratchpad of
/// its own. Executing allocates nothing here.
class SharedPrimitive {
 public:
  using Arguments = std::vector<std::pair<int, dnnl::memory::desc>>;

  SharedPrimitive() = default;
  /// `arguments`: what run() gets addresses for, in this order.
  SharedPrimitive(const dnnl::primitive& primitive, const Arguments& arguments, int threads);

  explicit operator bool() const { return static_cast<bool>(primitive_); }
  /// Throws dnnl::error.
  void run(int thread, const dnnl::stream& stream, std::initializer_list<const void*> data) const;

 private:
  dnnl::primitive primitive_;
  std::vector<int> kinds_;
  std::vector<dnnl::memory> memories_;  // [thread][argument]
};

/// Primitives made while this lives are for one thread: the work is divided over images outside of oneDNN.
class SingleThreadedCreation {
 public:
  SingleThreadedCreation();
  ~SingleThreadedCreation();
  SingleThreadedCreation(const SingleThreadedCreation&) = delete;
  SingleThreadedCreation& operator=(const SingleThreadedCreation&) = delete;

 private:
  int threads_;
};

}  // namespace nibble
