#pragma once

#include <cstdint>
#include <span>

#include "kernels/format.h"
#include "kernels/shape.h"

namespace nibble {

// What surrounds the convolutions: pixels in, pool and linear layer out, shortcuts without weights. Mostly
// plain loops over lanes that compilers turn into vectors; together they take a few percent of the narrowest
// network.

/// Sums of a planar map over its positions. Value: uint8_t (kPlanar8) or uint16_t (kPlanar16).
/// map: [position][channel][lane]; sums: [channel][lane].
template <typename Value>
void pool_image_lanes(const Value* map, int positions, int channels, int lanes, std::int32_t* sums);

/// The same for one image in position lanes: the first `positions` values of planes that lie `plane_stride`
/// values apart; sums: [channel].
template <typename Value>
void pool_position_lanes(const Value* planes, int positions, int plane_stride, int channels,
                         std::int32_t* sums);

/// logits[lane][class] = float(sum over channels of sums * weights) * scale[class] + offset[class].
/// sums: [channel][lane] of `lanes` lanes, all of which are read and the first `images` wanted; weights:
/// [class][channel].
/// Accumulator: int32_t up to 8 bits, int64_t at 16 bits.
template <typename Accumulator>
void linear(const std::int32_t* sums, int channels, int lanes, int images,
            std::span<const std::int16_t> weights, std::span<const float> scale,
            std::span<const float> offset, float* logits);

/// Shortcut A of He et al. 2015 for one output position and one block of lanes: copies `input_channels`
/// channels behind (output_channels - input_channels) / 2 zero ones, and zeroes the others.
void pad_channels(const InputView& input, const OutputView& output, const ActivationFormat& format,
                  int input_channels, int output_channels, int lanes);

/// Spreads images over the lanes 0 .. count - 1. images: [image][row][column][3]; output: lane 0 of the map's
/// position (0, 0), position_stride is from column to column.
void load_pixels(const std::uint8_t* images, int count, int height, int width, const ActivationFormat& format,
                 const OutputView& output, std::ptrdiff_t row_stride);

}  // namespace nibble
