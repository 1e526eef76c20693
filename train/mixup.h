#pragma once

#include <cstdint>
#include <span>

namespace nibble {

/// How a batch is mixed with itself (Zhang et al. 2018, arXiv:1710.09412): image i becomes
/// weight * image i + (1 - weight) * image (i + shift) mod size, and the loss is mixed alike.
struct Mixup {
  double weight = 1;
  int shift = 0;
};

/// `weight` from Beta(alpha, alpha), `shift` uniform; a pure function of the arguments.
Mixup draw_mixup(double alpha, std::uint64_t seed, std::uint64_t epoch, int batch, int size);

/// Mixes [size][values of an image] raw bytes into `mixed`, rounded to whole bytes.
void mix_images(const Mixup& mixup, int size, std::span<const std::uint8_t> pixels,
                std::span<std::uint8_t> mixed);

}  // namespace nibble
