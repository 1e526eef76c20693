#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "graph/network/description.h"
#include "quant/simulation.h"
#include "quant/weight_quantization.h"

namespace nibble {

/// Covariance of what the taps of a convolution read, [taps][taps], over pixels of all images that are spread
/// evenly, 65,536 or up to twice as many. Taps in the order of the weights, zeros outside of the map.
/// `inputs`: integers of at most 8 bits, [image][row][column][channel]; their products are summed exactly, so
/// that the number of threads does not matter.
std::vector<double> tap_covariance(const Convolution& shape, const Integers& inputs);

/// Mean square of what rounding adds to a channel's output: error^T covariance error, where
/// error = weights - scale * integers.
double output_error(std::span<const float> weights, double scale, std::span<const std::int16_t> integers,
                    std::span<const double> covariance);

/// Moves one weight after the other to a neighbouring level, always the one that lessens output_error most,
/// until no single move does, and fits the scale; in turn until neither helps. Returns the scale. This is the
/// rounding problem of AdaRound (Nagel et al. 2020, arXiv:2004.10568, section 3.1), which the paper relaxes
/// and solves by gradients; descent over single weights needs neither a rate nor a number of steps.
double search_rounding(std::span<const float> weights, double scale, std::span<const double> covariance,
                       const WeightRule& rule, std::span<std::int16_t> integers);

}  // namespace nibble
