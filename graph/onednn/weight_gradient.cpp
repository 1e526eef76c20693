#include "graph/onednn/weight_gradient.h"

namespace nibble {

void unblock_weight_gradient(const WeightGradientShape& shape, const WeightGradientBlock& block,
                             const float* gradient, float* master) {
  constexpr int block_outputs = 16;
  const int inputs = shape.input_channels;
  const int outputs = shape.output_channels;
  for (int row = 0; row < 3; ++row) {
    for (int input = 0; input < inputs; input += block.inputs) {
      for (int output = 0; output < outputs; output += block_outputs) {
        for (int column = 0; column < 3; ++column) {
          for (int o = 0; o < block_outputs; ++o) {
            for (int i = 0; i < block.inputs; ++i) {
              master[((output + o) * 9 + row * 3 + column) * inputs + input + i] =
                  gradient[i * block.input_step + o * block.output_step];
            }
          }
          gradient += block.inputs * block_outputs;
        }
      }
    }
  }
}

}  // namespace nibble
