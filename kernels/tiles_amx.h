#pragma once

// AMX's tiles of 16 rows of 64 bytes. GCC's intrinsics want the tiles' numbers as literals, these take
// template arguments. Only files compiled for AMX include this; internal linkage.

#include <cstddef>
#include <cstdint>

namespace nibble {
namespace {

inline constexpr int kTiles = 8;
inline constexpr int kTileRows = 16;
inline constexpr int kTileRowBytes = 64;

/// What LDTILECFG reads: palette 1, sizes of the tiles.
struct alignas(64) TileConfiguration {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  void set(int tile, int tile_rows, int tile_row_bytes) {
    rows[tile] = static_cast<std::uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<std::uint16_t>(tile_row_bytes);
  }
};

/// Also zeroes all tiles.
inline void configure_tiles(const TileConfiguration& configuration) {
  asm volatile("ldtilecfg %0" : : "m"(configuration));
}
/// To be called before anything else runs on this thread: a core whose tiles are in use costs more.
inline void release_tiles() {
  asm volatile("tilerelease");
}

template <int Tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
/// The rows lie `stride` bytes apart.
template <int Tile>
inline void load_tile(const void* from, std::ptrdiff_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
inline void store_tile_rows(void* to, std::ptrdiff_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
}
/// sums[m][n] += signed_bytes[m][4 k + i] * unsigned_bytes[k][4 n + i] over k and i, s32.
template <int Sums, int SignedBytes, int UnsignedBytes>
inline void multiply_add_tiles() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(SignedBytes), "i"(UnsignedBytes));
}
/// sums[m][n] += a[m][2 k + i] * b[k][2 n + i] over k and i, BF16 to FP32.
template <int Sums, int A, int B>
inline void multiply_add_bf16_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(A), "i"(B));
}

}  // namespace
}  // namespace nibble
