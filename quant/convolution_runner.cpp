#include "quant/convolution_runner.h"

#include <dnnl.hpp>
#include <map>

#include "graph/network/error.h"

namespace nibble {

namespace {

using Tag = dnnl::memory::format_tag;
constexpr auto kFloat = dnnl::memory::data_type::f32;

/// The primitive for one number of images.
struct Prepared {
  dnnl::convolution_forward primitive;
  dnnl::memory source;
  dnnl::memory weights;
  dnnl::memory destination;
  dnnl::memory scratchpad;
};

}  // namespace

struct ConvolutionRunner::Implementation {
  Convolution shape;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::vector<float> weights;
  std::map<int, Prepared> prepared;

  Prepared& prepare(int count) {
    const auto found = prepared.find(count);
    if (found != prepared.end()) return found->second;
    const dnnl::memory::desc source({count, shape.input_channels, shape.input_height, shape.input_width},
                                    kFloat, Tag::nhwc);
    const dnnl::memory::desc destination(
        {count, shape.output_channels, shape.output_height(), shape.output_width()}, kFloat, Tag::nhwc);
    const dnnl::memory::desc any({shape.output_channels, shape.input_channels, shape.kernel, shape.kernel},
                                 kFloat, Tag::any);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const dnnl::convolution_forward::primitive_desc description(
        engine, dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct, source, any,
        destination, {shape.stride, shape.stride}, {shape.padding, shape.padding},
        {shape.padding, shape.padding}, attributes);
    Prepared entry{dnnl::convolution_forward(description), dnnl::memory(source, engine, nullptr),
                   dnnl::memory(description.weights_desc(), engine),
                   dnnl::memory(destination, engine, nullptr),
                   dnnl::memory(description.scratchpad_desc(), engine)};
    load(entry);
    return prepared.emplace(count, std::move(entry)).first->second;
  }

  void load(Prepared& entry) {
    if (weights.empty()) return;
    dnnl::memory plain(
        {{shape.output_channels, shape.input_channels, shape.kernel, shape.kernel}, kFloat, Tag::ohwi},
        engine, weights.data());
    dnnl::reorder(plain, entry.weights).execute(stream, plain, entry.weights);
    stream.wait();
  }
};

ConvolutionRunner::ConvolutionRunner(const Convolution& shape, int chunk)
    : implementation_(std::make_unique<Implementation>()) {
  implementation_->shape = shape;
  try {
    implementation_->prepare(chunk);
  } catch (const dnnl::error& error) {
    throw RunError("oneDNN has no float convolution for '" + shape.name + "': " + error.what());
  }
}

ConvolutionRunner::ConvolutionRunner(ConvolutionRunner&&) noexcept = default;
ConvolutionRunner& ConvolutionRunner::operator=(ConvolutionRunner&&) noexcept = default;
ConvolutionRunner::~ConvolutionRunner() = default;

void ConvolutionRunner::set_weights(std::span<const float> weights) {
  implementation_->weights.assign(weights.begin(), weights.end());
  for (auto& [count, entry] : implementation_->prepared) implementation_->load(entry);
}

void ConvolutionRunner::run(std::span<const float> input, int count, std::span<float> output) {
  Prepared& entry = implementation_->prepare(count);
  entry.source.set_data_handle(const_cast<float*>(input.data()));
  entry.destination.set_data_handle(output.data());
  entry.primitive.execute(implementation_->stream, {{DNNL_ARG_SRC, entry.source},
                                                    {DNNL_ARG_WEIGHTS, entry.weights},
                                                    {DNNL_ARG_DST, entry.destination},
                                                    {DNNL_ARG_SCRATCHPAD, entry.scratchpad}});
  implementation_->stream.wait();
}

}  // namespace nibble
