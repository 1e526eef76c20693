#include "graph/onednn/primitives.h"

#include <omp.h>

#include <algorithm>
#include <array>

#include "graph/network/error.h"
#include "graph/onednn/precision.h"

namespace nibble {

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

bool onednn_has(dnnl::cpu_isa isa) {
  // An instruction set's number has the bits of those it contains.
  const auto bits = static_cast<unsigned>(isa);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & bits) == bits;
}

void require_precision(Precision precision) {
  if (precision == Precision::fp32 || onednn_has(dnnl::cpu_isa::avx512_core_bf16)) return;
  throw InputError(
      "this CPU has no BF16 instructions (AVX512_BF16) that oneDNN may use; choose precision fp32");
}

OnednnConvolution::OnednnConvolution(const Convolution& shape, int images, dnnl::memory::data_type type) {
  using dnnl::memory;
  source = memory::desc({images, shape.input_channels, shape.input_height, shape.input_width}, type,
                        memory::format_tag::nhwc);
  destination = memory::desc({images, shape.output_channels, shape.output_height(), shape.output_width()},
                             type, memory::format_tag::nhwc);
  weight_dims = {shape.output_channels, shape.input_channels, shape.kernel, shape.kernel};
  weight = memory::desc(weight_dims, type, memory::format_tag::any);
  master_weight = memory::desc(weight_dims, memory::data_type::f32, memory::format_tag::ohwi);
  strides = {shape.stride, shape.stride};
  padding_before = {shape.padding, shape.padding};
  // Exactly the padding that is used: a stride of 2 leaves the last row and column out.
  const auto after = [&](int input, int output) {
    return (output - 1) * shape.stride + shape.kernel - shape.padding - input;
  };
  padding_after = {after(shape.input_height, shape.output_height()),
                   after(shape.input_width, shape.output_width())};
}

int OnednnConvolution::take_rows(const Convolution& shape, int first, int end) {
  using dnnl::memory;
  const int top = first * shape.stride - shape.padding;
  const int bottom = (end - 1) * shape.stride - shape.padding + shape.kernel;
  const int first_input = std::max(top, 0);
  const int end_input = std::min(bottom, shape.input_height);
  source = memory::desc({1, shape.input_channels, end_input - first_input, shape.input_width},
                        source.get_data_type(), memory::format_tag::nhwc);
  destination = memory::desc({1, shape.output_channels, end - first, shape.output_width()},
                             destination.get_data_type(), memory::format_tag::nhwc);
  padding_before[0] = first_input - top;
  padding_after[0] = bottom - end_input;
  return first_input;
}

bool is_quicker(const std::string& direct, const std::string& chosen) {
  const std::string instructions = chosen.substr(chosen.rfind(':') + 1);
  if (chosen == "brgconv_strided:avx512_core_amx") return direct == "jit:avx512_core_amx";
  return chosen.starts_with("brg") && direct.starts_with("jit") && direct.ends_with(':' + instructions) &&
         (instructions == "avx512_core" || instructions == "avx512_core_vnni" ||
          instructions == "avx512_core_bf16");
}

const std::byte* WeightCopies::in(const dnnl::memory::desc& layout, const dnnl::memory::desc& plain,
                                  const void* values) {
  for (const Copy& copy : copies_) {
    if (copy.layout == layout) return copy.values.data();
  }
  Copy& copy = copies_.emplace_back(layout, AlignedBuffer<std::byte>(layout.get_size()));
  dnnl::memory from(plain, cpu_engine(), const_cast<void*>(values));
  dnnl::memory to(layout, cpu_engine(), copy.values.data());
  dnnl::stream order(cpu_engine());
  dnnl::reorder(from, to).execute(order, from, to);
  order.wait();
  return copy.values.data();
}

dnnl::primitive_attr user_scratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

SharedPrimitive::SharedPrimitive(const dnnl::primitive& primitive, const Arguments& arguments, int threads)
    : primitive_(primitive) {
  for (const auto& [kind, description] : arguments) kinds_.push_back(kind);
  for (int thread = 0; thread < threads; ++thread) {
    for (const auto& [kind, description] : arguments) {
      memories_.push_back(dnnl::memory(description, cpu_engine(), DNNL_MEMORY_NONE));
    }
  }
}

void SharedPrimitive::run(int thread, const dnnl::stream& stream,
                          std::initializer_list<const void*> data) const {
  constexpr std::size_t most = 8;
  std::array<dnnl_exec_arg_t, most> arguments;
  const std::size_t count = kinds_.size();
  const dnnl::memory* memory = memories_.data() + static_cast<std::size_t>(thread) * count;
  const void* const* address = data.begin();
  for (std::size_t i = 0; i < count; ++i) {
    // The C interface: the C++ one allocates a map and a vector for each call.
    dnnl_memory_set_data_handle(memory[i].get(), const_cast<void*>(address[i]));
    arguments[i] = {kinds_[i], memory[i].get()};
  }
  dnnl::error::wrap_c_api(
      dnnl_primitive_execute(primitive_.get(), stream.get(), static_cast<int>(count), arguments.data()),
      "oneDNN could not execute a primitive");
}

SingleThreadedCreation::SingleThreadedCreation() : threads_(omp_get_max_threads()) {
  omp_set_num_threads(1);
}

SingleThreadedCreation::~SingleThreadedCreation() {
  omp_set_num_threads(threads_);
}

}  // namespace nibble
