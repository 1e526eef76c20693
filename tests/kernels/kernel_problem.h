#pragma once

#include <cstdint>
#include <string>

#include "kernels/convolution_kernel.h"
#include "tests/kernels/lane_map.h"

namespace nibble {

/// What the weights and activations are.
enum class Data {
  random,       ///< uniform over the whole range
  small,        ///< weights near zero, as trained ones are: longer proven runs
  maximum,      ///< largest weights, largest activations
  minimum,      ///< smallest weights, largest activations
  alternating,  ///< weights change sign from channel to channel, activations between 0 and the largest
  largest_sum,  ///< activations largest where one channel's weights are positive, else 0
  lines,        ///< along lines of taps all patterns of signs, along rows or columns of six 0 and largest
                ///< activations
  far_outputs   ///< scales from 0 to 1e22, offsets and residuals that are far beyond the range
};
inline constexpr int kDataKinds = 8;

/// One comparison of a kernel with the scalar reference, as text: what NIBBLE_KERNEL_PROBLEM takes.
struct KernelProblem {
  std::string kernel;
  ConvolutionShape shape{16, 16, 3, 1, 1, 8, 8};
  Data data = Data::random;
  Lanes lanes = Lanes::images;
  int lane_blocks = 1;   ///< image lanes only: tile = lane_blocks * kernel's lanes
  int residual = 0;      ///< 0 none, 1 unsigned, 2 signed
  int derived_bits = 0;  ///< 0, 4 or 2: needs an unsigned 8-bit output
  int output_bits = 8;   ///< 16, 8, 4 or 2; with output_signed: s8 or s16
  bool output_signed = false;
  int split = 0;  ///< channels and positions in how many calls more
  bool far_levels =
      true;  ///< 2-bit weights may have levels so far apart that some kernels refuse some layers
  std::uint64_t seed = 1;

  std::string text() const;
};

KernelProblem parse_problem(const std::string& text);

/// A problem that `seed` determines, of a shape that the kernel's widths can have.
KernelProblem random_problem(const ConvolutionKernel& kernel, std::uint64_t seed);

/// Position lanes halve only even maps: makes the map of such a problem even.
void make_even(KernelProblem& problem);

/// Runs it in guarded memory. "" when every byte is what the scalar reference says; else what differs, or
/// that the kernel does not support the layer, with the line that repeats it. With `supported` an unsupported
/// layer gives "" and *supported = false.
std::string check_kernel(const ConvolutionKernel& kernel, const KernelProblem& problem,
                         bool* supported = nullptr);

}  // namespace nibble
