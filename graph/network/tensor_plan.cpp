#include "graph/network/tensor_plan.h"

namespace nibble {

TensorPlan plan_tensors(const IntegerPlan& plan, std::size_t pixel_bytes, std::size_t sum_bytes, bool phased,
                        const MapBytes& map_bytes) {
  const NetworkDescription& network = plan.network;
  TensorPlan tensors;
  MemoryPlan& memory = tensors.memory;
  // Steps: 0 first convolution; of block b: 4 b + 1 phases, + 2 conv1, + 3 shortcut, + 4 conv2; then the
  // pool.
  const auto conv2_step = [](std::size_t block) { return static_cast<int>(4 * block) + 4; };
  const int pool_step = conv2_step(network.blocks.size());
  tensors.pixels = memory.add(pixel_bytes, 0, 0);

  const Convolution& first = network.convolutions[0];
  const ActivationFormat first_format = plan.blocks.empty() ? plan.features : plan.blocks[0].stream;
  std::size_t stream = memory.add(map_bytes(first.output_width(), first.output_channels, first_format), 0, 0);
  const auto add_input = [&](std::size_t block, int step) {
    if (block >= plan.blocks.size() || !plan.blocks[block].derives_input) return stream;
    const Convolution& conv1 = network.convolutions[static_cast<std::size_t>(network.blocks[block].conv1)];
    return memory.add(map_bytes(conv1.input_width, conv1.input_channels, plan.blocks[block].input), step,
                      step);
  };
  std::size_t input = add_input(0, 0);

  for (std::size_t b = 0; b < network.blocks.size(); ++b) {
    const Block& block = network.blocks[b];
    const PlannedBlock& formats = plan.blocks[b];
    const Convolution& conv1 = network.convolutions[static_cast<std::size_t>(block.conv1)];
    const int last = conv2_step(b);
    const auto output_map = [&](const ActivationFormat& format) {
      return map_bytes(conv1.output_width(), conv1.output_channels, format);
    };
    TensorPlan::BlockTensors t{};
    t.stream = stream;
    t.input = input;
    memory.extend(t.input, last - 1);
    t.phases = t.input;
    if (phased && conv1.stride == 2) {
      // ColumnCopies of the input's even and of its odd rows.
      t.phases = memory.add(2 * map_bytes(conv1.output_width(), conv1.input_channels, formats.input),
                            last - 3, last - 1);
    }
    t.middle = memory.add(output_map(formats.middle), last - 2, last);
    t.shortcut = stream;
    if (block.shortcut != Shortcut::identity) {
      const int step = block.shortcut == Shortcut::pad_channels ? last - 2 : last - 1;
      t.shortcut = memory.add(output_map(formats.shortcut), step, last);
    }
    if (block.shortcut == Shortcut::pad_channels) memory.extend(stream, last - 1);
    memory.extend(t.shortcut, last);
    const ActivationFormat residual =
        block.shortcut == Shortcut::identity ? formats.stream : formats.shortcut;
    t.output = residual == formats.output ? t.shortcut : memory.add(output_map(formats.output), last, last);
    stream = t.output;
    input = add_input(b + 1, last);
    t.next_input = input;
    tensors.blocks.push_back(t);
  }
  tensors.features = stream;
  memory.extend(stream, pool_step + 1);
  tensors.sums = memory.add(sum_bytes, pool_step + 1, pool_step + 1);
  memory.place();
  return tensors;
}

}  // namespace nibble
