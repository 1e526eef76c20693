#include "bench/peak_runs.h"
#include "kernels/tiles_amx.h"

namespace nibble {
namespace {

constexpr int kSums = 6;  ///< tiles of sums; a tile of each factor

/// Tiles of zeros: no instruction takes longer for other values.
template <typename Step>
inline __attribute__((always_inline)) void tile_loop(std::int64_t steps, Step step) {
  TileConfiguration configuration;
  for (int tile = 0; tile < kTiles; ++tile) configuration.set(tile, kTileRows, kTileRowBytes);
  configure_tiles(configuration);
  for (std::int64_t i = 0; i < steps; i += kSums) step();
  release_tiles();
}

}  // namespace

void run_int8_avx512_amx(std::int64_t steps) {
  tile_loop(steps, [] {
    multiply_add_tiles<0, 6, 7>();
    multiply_add_tiles<1, 6, 7>();
    multiply_add_tiles<2, 6, 7>();
    multiply_add_tiles<3, 6, 7>();
    multiply_add_tiles<4, 6, 7>();
    multiply_add_tiles<5, 6, 7>();
  });
}

void run_bf16_avx512_amx(std::int64_t steps) {
  tile_loop(steps, [] {
    multiply_add_bf16_tiles<0, 6, 7>();
    multiply_add_bf16_tiles<1, 6, 7>();
    multiply_add_bf16_tiles<2, 6, 7>();
    multiply_add_bf16_tiles<3, 6, 7>();
    multiply_add_bf16_tiles<4, 6, 7>();
    multiply_add_bf16_tiles<5, 6, 7>();
  });
}

}  // namespace nibble
