#pragma once

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "graph/network/convolution_shape.h"
#include "graph/network/description.h"
#include "graph/network/first_failure.h"
#include "graph/onednn/primitives.h"

// How a batch runs on oneDNN
//
// Threads take groups of a few images from a queue and run the whole network on a group; every primitive is
// made for one thread, so nothing is shared and there are no barriers. Within a group the blocks of one
// resolution
// ("stage") run on tiles of images that fit the core's own cache, all layers of a tile before the next tile:
//
//   FP32, group of 8:   32x32 x 16: 8 tiles of 1    16x16 x 32: 4 tiles of 2    8x8 x 64: 2 tiles of 4
//   BF16, group of 8:               4 tiles of 2                2 tiles of 4              1 tile of 8
//   int8, group of 16:              4 tiles of 4                2 tiles of 8              1 tile of 16
//
// so that the wide layers' weights are read once for several images and the narrow layers' maps never leave
// the cache. Images that do not fill a tile run one by one, on primitives for one image.

namespace nibble {

/// What a primitive is made for: the images of a tile, or one.
enum class Form { tile, image };
inline constexpr std::size_t kForms = 2;

/// A block needs two or three maps of a tile beside its weights: 64 KB each. In FP32 the direct kernels take
/// a third more time for 16 channels where a tile is of two images.
template <typename Value>
int tile_images(const Convolution& convolution, int group) {
  constexpr int values = 64 * 1024 / static_cast<int>(sizeof(Value));
  const int image = convolution.output_channels * convolution.output_height() * convolution.output_width();
  return std::clamp(values / image, 1, group);
}

/// Consecutive blocks whose outputs have one resolution.
struct Stage {
  std::size_t first_block, end_block;
  int tile;
};

template <typename Value>
std::vector<Stage> divide_into_stages(const NetworkDescription& network, int group) {
  std::vector<Stage> stages;
  int height = 0;
  for (std::size_t number = 0; number < network.blocks.size(); ++number) {
    const Convolution& shape = network.convolutions[static_cast<std::size_t>(network.blocks[number].conv2)];
    if (stages.empty() || shape.output_height() != height) {
      stages.push_back({number, number, tile_images<Value>(shape, group)});
      height = shape.output_height();
    }
    stages.back().end_block = number + 1;
  }
  return stages;
}

/// step(form, first image, images) for full tiles, then for the images left.
template <typename Step>
void for_tiles(int count, int tile, const Step& step) {
  int image = 0;
  for (; image + tile <= count && tile > 1; image += tile) step(Form::tile, image, tile);
  for (; image < count; ++image) step(Form::image, image, 1);
}

/// work(thread, first image, images) for the groups of a batch, none larger than `largest`. Throws what one
/// of them threw.
template <typename Work>
void for_groups(int threads, int largest, int count, const Work& work) {
  const int group = std::clamp((count + threads - 1) / threads, 1, largest);
  const int groups = (count + group - 1) / group;
  FirstFailure failure;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int number = 0; number < groups; ++number) {
    failure.guard([&] {
      const int first = number * group;
      work(omp_get_thread_num(), first, std::min(group, count - first));
    });
  }
  failure.rethrow();
}

/// A thread's maps.
template <typename T>
struct GroupMaps {
  AlignedBuffer<T> x, next_x;  ///< a group's stream before and after a stage
  AlignedBuffer<T> inner;      ///< a tile's map between a block's convolutions

  void reset(const NetworkDescription& network, int group) {
    std::size_t largest = 0;
    for (const Convolution& shape : network.convolutions) largest = std::max(largest, output_size(shape));
    for (AlignedBuffer<T>* map : {&x, &next_x, &inner}) map->reset(static_cast<std::size_t>(group) * largest);
  }
};

/// All blocks on a group of `count` images, whose stream is in maps.x; returns where the last one's is.
/// convolve(convolution, form, images, from, to) adds a conv2 to the shortcut, which lies in `to` already;
/// pad(block, images, from, to) makes shortcut A.
template <typename T, typename Convolve, typename Pad>
const T* run_blocks(const NetworkDescription& network, const std::vector<Stage>& stages, int count,
                    const GroupMaps<T>& maps, const Convolve& convolve, const Pad& pad) {
  const auto convolution = [&](int number) -> const Convolution& {
    return network.convolutions[static_cast<std::size_t>(number)];
  };
  T* x = maps.x.data();
  T* next = maps.next_x.data();
  T* const inner = maps.inner.data();
  for (const Stage& stage : stages) {
    const Block& first = network.blocks[stage.first_block];
    const std::size_t input_image = input_size(convolution(first.conv1));
    const std::size_t output_image = output_size(convolution(first.conv2));
    // Behind the first block, and in it where the shortcut is its input, a stage works in place.
    T* const to = first.shortcut == Shortcut::identity ? x : next;
    for_tiles(count, stage.tile, [&](Form form, int image, int images) {
      const T* from = x + static_cast<std::size_t>(image) * input_image;
      T* const output = to + static_cast<std::size_t>(image) * output_image;
      for (std::size_t number = stage.first_block; number < stage.end_block; ++number) {
        const Block& block = network.blocks[number];
        convolve(block.conv1, form, images, from, inner);
        if (block.shortcut == Shortcut::projection) convolve(block.projection, form, images, from, output);
        if (block.shortcut == Shortcut::pad_channels) pad(block, images, from, output);
        convolve(block.conv2, form, images, inner, output);
        from = output;
      }
    });
    if (to != x) std::swap(x, next);
  }
  return x;
}

}  // namespace nibble
