#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "graph/network/description.h"
#include "graph/onednn/training_layer.h"

namespace nibble {

/// Images that go through a network together, one group a thread.
inline constexpr std::size_t kGroupImages = 4;

/// A training layer for groups of images; its own normalization is not used. Throws RunError where oneDNN has
/// no convolution of the shape.
std::unique_ptr<TrainingLayer<float>> make_group_layer(const Convolution& shape,
                                                       std::vector<TrainingWorker<float>>& workers);

/// Shortcut A of a group: rows and columns 0, 2, 4, ... of `small`, [images][rows][columns][channels] as
/// conv1 reads it, into the middle channels of `large`, as it writes. The other channels stay.
void pad_group(const Convolution& conv1, const float* small, float* large);

/// Its gradient: adds the middle channels of `large` to `small`.
void add_padded_group(const Convolution& conv1, const float* large, float* small);

}  // namespace nibble
