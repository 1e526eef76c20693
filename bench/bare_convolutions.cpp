#include "bench/bare_convolutions.h"

#include <algorithm>
#include <dnnl.hpp>
#include <unordered_map>

#include "graph/network/convolution_shape.h"
#include "graph/network/error.h"
#include "graph/onednn/primitives.h"
#include "kernels/convolution_kernel.h"

namespace nibble {
namespace {

using Tag = dnnl::memory::format_tag;
using Type = dnnl::memory::data_type;
using Arguments = std::unordered_map<int, dnnl::memory>;

bool same_shape(const Convolution& a, const Convolution& b) {
  return a.input_channels == b.input_channels && a.output_channels == b.output_channels &&
         a.kernel == b.kernel && a.stride == b.stride && a.padding == b.padding &&
         a.input_height == b.input_height && a.input_width == b.input_width;
}

Convolution as_executed(const DistinctLayer& layer, BareKind kind) {
  return kind == BareKind::int8 && layer.reads_pixels ? with_border(layer.convolution) : layer.convolution;
}

/// Memory of one map; the address stays the same, so that layers can share it.
struct Buffer {
  AlignedVector<std::byte> bytes;
  void* data() { return bytes.data(); }
  void grow(std::size_t size) { bytes.resize(std::max(bytes.size(), size)); }
};

struct Layer {
  dnnl::convolution_forward primitive;
  dnnl::convolution_forward::primitive_desc description;
  dnnl::memory weights;
  dnnl::memory bias;
  dnnl::memory scale;
  Buffer* source = nullptr;
  Buffer* destination = nullptr;
  Arguments arguments;
};

}  // namespace

const char* name_of(BareKind kind) {
  switch (kind) {
    case BareKind::f32_nhwc:
      return "onednn_f32";
    case BareKind::f32_any:
      return "onednn_f32_any";
    case BareKind::int8:
      return "onednn_int8";
  }
  return "";
}

std::vector<ConvolutionRole> roles(const NetworkDescription& network) {
  std::vector<ConvolutionRole> result(network.convolutions.size(), ConvolutionRole::relu);
  for (const Block& block : network.blocks) {
    result[static_cast<std::size_t>(block.conv2)] = ConvolutionRole::residual;
    if (block.projection >= 0) {
      result[static_cast<std::size_t>(block.projection)] = ConvolutionRole::projection;
    }
  }
  return result;
}

std::vector<DistinctLayer> distinct_layers(const NetworkDescription& network) {
  const std::vector<ConvolutionRole> all_roles = roles(network);
  std::vector<DistinctLayer> layers;
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    const Convolution& convolution = network.convolutions[i];
    const bool known = std::any_of(layers.begin(), layers.end(), [&](const DistinctLayer& layer) {
      return layer.role == all_roles[i] && same_shape(layer.convolution, convolution);
    });
    if (!known) layers.push_back({convolution, all_roles[i], i == 0});
  }
  return layers;
}

struct BareConvolutions::Implementation {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  BareKind kind;
  int batch;
  double macs = 0;
  // As in a network: a block's stream, what lies between its convolutions, its projection; the pixels.
  Buffer pixels;
  Buffer stream_map;
  Buffer middle;
  Buffer projected;
  std::vector<Layer> layers;

  Implementation(BareKind bare_kind, int images) : kind(bare_kind), batch(images) {}

  void add(const DistinctLayer& layer, Buffer& source, Buffer& destination) {
    const Convolution c = as_executed(layer, kind);
    const bool int8 = kind == BareKind::int8;
    const Type source_type = int8 ? Type::u8 : Type::f32;
    const Type destination_type = !int8                                       ? Type::f32
                                  : layer.role == ConvolutionRole::projection ? Type::s8
                                                                              : Type::u8;
    const Tag tag = kind == BareKind::f32_any ? Tag::any : Tag::nhwc;
    const dnnl::memory::desc source_md({batch, c.input_channels, c.input_height, c.input_width}, source_type,
                                       layer.reads_pixels && kind == BareKind::f32_any ? Tag::nhwc : tag);
    const dnnl::memory::desc weights_md({c.output_channels, c.input_channels, c.kernel, c.kernel},
                                        int8 ? Type::s8 : Type::f32, Tag::any);
    const dnnl::memory::desc bias_md({c.output_channels}, Type::f32, Tag::x);
    const dnnl::memory::desc destination_md({batch, c.output_channels, c.output_height(), c.output_width()},
                                            destination_type, tag);
    dnnl::primitive_attr attributes;
    dnnl::post_ops operations;
    if (layer.role == ConvolutionRole::residual) {
      // Behind a projection the residual is s8; read as u8 it takes the same time.
      operations.append_sum(int8 ? 0.75F : 1.0F, 0, int8 ? Type::u8 : Type::undef);
    }
    // What saturates to u8 needs no ReLU, as in Int8Network.
    if (layer.role != ConvolutionRole::projection && !int8) {
      operations.append_eltwise(dnnl::algorithm::eltwise_relu, 0.0F, 0.0F);
    }
    attributes.set_post_ops(operations);
    if (int8) attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1);

    Layer made;
    const auto describe = [&] {
      return dnnl::convolution_forward::primitive_desc(
          engine, dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct, source_md,
          weights_md, bias_md, destination_md, {c.stride, c.stride}, {c.padding, c.padding},
          {c.padding, c.padding}, attributes);
    };
    made.description = quickest(describe);
    made.primitive = dnnl::convolution_forward(made.description);
    fill(made, c, int8);
    made.source = &source;
    made.destination = &destination;
    source.grow(made.description.src_desc().get_size());
    destination.grow(made.description.dst_desc().get_size());
    layers.push_back(std::move(made));
    macs += static_cast<double>(layer.convolution.multiply_accumulates()) * batch;
  }

  /// Weights of both signs and small size, so that sums neither vanish nor grow from layer to layer.
  void fill(Layer& layer, const Convolution& c, bool int8) {
    const auto count = static_cast<std::size_t>(c.weight_count());
    dnnl::memory plain(dnnl::memory::desc({c.output_channels, c.input_channels, c.kernel, c.kernel},
                                          int8 ? Type::s8 : Type::f32, Tag::oihw),
                       engine);
    for (std::size_t i = 0; i < count; ++i) {
      const int value = static_cast<int>(i * 7919 % 61) - 30;
      if (int8) {
        static_cast<std::int8_t*>(plain.get_data_handle())[i] = static_cast<std::int8_t>(value);
      } else {
        static_cast<float*>(plain.get_data_handle())[i] = static_cast<float>(value) * 1e-3F;
      }
    }
    layer.weights = dnnl::memory(layer.description.weights_desc(), engine);
    dnnl::reorder(plain, layer.weights).execute(stream, plain, layer.weights);
    const dnnl::memory::desc channels({c.output_channels}, Type::f32, Tag::x);
    layer.bias = dnnl::memory(channels, engine);
    layer.scale = dnnl::memory(channels, engine);
    for (int i = 0; i < c.output_channels; ++i) {
      static_cast<float*>(layer.bias.get_data_handle())[i] = 0.125F;
      static_cast<float*>(layer.scale.get_data_handle())[i] = 0.001F;
    }
    stream.wait();
  }

  /// Buffers have their final addresses only when all layers are known.
  void connect() {
    for (Layer& layer : layers) {
      layer.arguments = {
          {DNNL_ARG_SRC, dnnl::memory(layer.description.src_desc(), engine, layer.source->data())},
          {DNNL_ARG_WEIGHTS, layer.weights},
          {DNNL_ARG_BIAS, layer.bias},
          {DNNL_ARG_DST, dnnl::memory(layer.description.dst_desc(), engine, layer.destination->data())}};
      if (kind == BareKind::int8) layer.arguments[DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS] = layer.scale;
    }
    for (Buffer* buffer : {&pixels, &stream_map, &middle, &projected}) {
      std::fill(buffer->bytes.begin(), buffer->bytes.end(),
                static_cast<std::byte>(kind == BareKind::int8 ? 17 : 0));
    }
  }
};

BareConvolutions::BareConvolutions(const NetworkDescription& network, BareKind kind, int batch)
    : implementation_(std::make_unique<Implementation>(kind, batch)) {
  Implementation& self = *implementation_;
  const auto layer = [&](int index, ConvolutionRole role) {
    return DistinctLayer{network.convolutions[static_cast<std::size_t>(index)], role, index == 0};
  };
  try {
    self.add(layer(0, ConvolutionRole::relu), self.pixels, self.stream_map);
    Buffer* current = &self.stream_map;
    for (const Block& block : network.blocks) {
      self.add(layer(block.conv1, ConvolutionRole::relu), *current, self.middle);
      // The sum goes where the residual is: in the stream, or in what the projection wrote.
      if (block.projection >= 0) {
        Buffer* projected = current == &self.stream_map ? &self.projected : &self.stream_map;
        self.add(layer(block.projection, ConvolutionRole::projection), *current, *projected);
        current = projected;
      }
      self.add(layer(block.conv2, ConvolutionRole::residual), self.middle, *current);
    }
    self.connect();
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN cannot make a convolution: ") + error.what());
  }
}

BareConvolutions::BareConvolutions(const DistinctLayer& layer, BareKind kind, int batch)
    : implementation_(std::make_unique<Implementation>(kind, batch)) {
  try {
    implementation_->add(layer, implementation_->pixels, implementation_->stream_map);
    implementation_->connect();
  } catch (const dnnl::error& error) {
    throw RunError(std::string("oneDNN cannot make a convolution: ") + error.what());
  }
}

BareConvolutions::BareConvolutions(BareConvolutions&&) noexcept = default;
BareConvolutions::~BareConvolutions() = default;

void BareConvolutions::run() {
  for (const Layer& layer : implementation_->layers) {
    layer.primitive.execute(implementation_->stream, layer.arguments);
  }
  implementation_->stream.wait();
}

double BareConvolutions::multiply_accumulates() const {
  return implementation_->macs;
}

std::string BareConvolutions::implementation() const {
  return implementation_->layers.front().description.impl_info_str();
}

}  // namespace nibble
