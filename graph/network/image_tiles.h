#pragma once

#include <cstdint>
#include <vector>

#include "graph/network/integer_plan.h"
#include "graph/network/tensor_plan.h"
#include "kernels/geometry.h"

namespace nibble {

/// Where the time of tiles went, in seconds; each run adds its own.
struct TileTimes {
  double images = 0;                 ///< pixels into lanes
  std::vector<double> convolutions;  ///< as IntegerPlan::convolutions
  double shortcuts = 0;              ///< padded ones
  double classes = 0;                ///< pool and linear layer
};

/// Runs a network with lanes = images: all layers of a tile of plan.lanes images before the next tile. Every
/// map is [row][column][group][lane]; borders and small maps waste nothing.
class ImageTiles {
 public:
  explicit ImageTiles(const IntegerPlan& plan);

  std::size_t scratch_bytes() const { return tensors_.memory.bytes(); }

  /// The logits of `count` <= plan.lanes images. scratch: scratch_bytes(), of this thread alone. `times`, if
  /// any, has an element for each convolution.
  void run(const IntegerPlan& plan, const std::uint8_t* pixels, int count, float* logits,
           std::uint8_t* scratch, TileTimes* times = nullptr) const;

 private:
  /// A tile's map seen from lane 0 of position (0, 0).
  struct TileMap {
    std::uint8_t* data;
    int width;
    std::ptrdiff_t position_bytes;
    std::ptrdiff_t group_bytes;
  };
  TileMap map_of(const IntegerPlan& plan, std::size_t tensor, int width, int channels,
                 const ActivationFormat& format, std::uint8_t* scratch) const;
  void load_images(const IntegerPlan& plan, const std::uint8_t* pixels, int count,
                   std::uint8_t* scratch) const;
  void run_layer(const IntegerPlan& plan, std::size_t index, std::size_t input, std::size_t output,
                 std::size_t residual, std::size_t derived, std::uint8_t* scratch) const;
  void pad_shortcut(const IntegerPlan& plan, std::size_t block, std::uint8_t* scratch) const;
  template <typename Value, typename Accumulator>
  void classify(const IntegerPlan& plan, int count, float* logits, std::uint8_t* scratch) const;

  TensorPlan tensors_;
  std::vector<ConvolutionGeometry> geometries_;  ///< as plan.convolutions
  std::vector<std::uint8_t> border_;             ///< one position of the images' border
};

}  // namespace nibble
