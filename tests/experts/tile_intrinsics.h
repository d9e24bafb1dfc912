// The tile instructions of AMX in plain C++, as Intel's manual (SDM, volume 2, TILELOADD to
// TDPBF16PS) defines them. What a processor would refuse is counted and has no other effect.

#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

namespace imitated {

struct Configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Configuration) == 64);

struct Tile {
  uint8_t data[16][64];
};

inline thread_local Configuration configuration = {};
inline thread_local Tile tiles[8] = {};
inline std::atomic<long> faults{0}, products{0};

inline bool is_usable(int tile) {
  const bool is = configuration.palette == 1 && configuration.rows[tile] &&
                  configuration.bytes[tile];
  faults += !is;
  return is;
}

inline void loadconfig(const void* from) {
  Configuration all;
  std::memcpy(&all, from, sizeof all);
  bool is_right = all.palette <= 1;
  for (int tile = 0; tile < 16; ++tile) {
    is_right &= all.rows[tile] <= 16 && all.bytes[tile] <= 64 && all.bytes[tile] % 4 == 0;
    is_right &= !all.rows[tile] == !all.bytes[tile] && (tile < 8 || !all.rows[tile]);
  }
  if (!is_right) {
    ++faults;
    return;
  }
  configuration = all.palette ? all : Configuration{};
  std::memset(tiles, 0, sizeof tiles);
}

inline void storeconfig(void* to) { std::memcpy(to, &configuration, sizeof configuration); }

inline void load(int tile, const void* base, int64_t stride) {
  if (!is_usable(tile)) return;
  std::memset(&tiles[tile], 0, sizeof tiles[tile]);
  for (int row = 0; row < configuration.rows[tile]; ++row)
    std::memcpy(tiles[tile].data[row], (const char*)base + row * stride,
                configuration.bytes[tile]);
}

inline void store(int tile, void* base, int64_t stride) {
  if (!is_usable(tile)) return;
  for (int row = 0; row < configuration.rows[tile]; ++row)
    std::memcpy((char*)base + row * stride, tiles[tile].data[row], configuration.bytes[tile]);
}

// The element of a tile of bf16 numbers.
inline float number(const Tile& tile, int row, int column) {
  uint16_t half;
  std::memcpy(&half, tile.data[row] + 2 * column, sizeof half);
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void multiply(int sums, int left, int right) {
  if (!is_usable(sums) || !is_usable(left) || !is_usable(right)) return;
  const auto& [palette, start, reserved, bytes, rows] = configuration;
  if (rows[sums] != rows[left] || bytes[sums] != bytes[right] || bytes[left] != 4 * rows[right] ||
      sums == left || sums == right || left == right) {
    ++faults;
    return;
  }
  ++products;
  for (int m = 0; m < rows[sums]; ++m)
    for (int n = 0; n < bytes[sums] / 4; ++n) {
      float sum;
      std::memcpy(&sum, tiles[sums].data[m] + 4 * n, sizeof sum);
      for (int k = 0; k < bytes[left] / 4; ++k)
        for (int i = 0; i < 2; ++i)
          sum += number(tiles[left], m, 2 * k + i) * number(tiles[right], k, 2 * n + i);
      std::memcpy(tiles[sums].data[m] + 4 * n, &sum, sizeof sum);
    }
}

}  // namespace imitated

extern "C" {
long tile_faults() { return imitated::faults; }
long tile_products() { return imitated::products; }
void load_tile_configuration(const void* from) { imitated::loadconfig(from); }
void store_tile_configuration(void* to) { imitated::storeconfig(to); }
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadd imitated::load
#define _tile_stored imitated::store
#define _tile_dpbf16ps imitated::multiply
#define _tile_loadconfig imitated::loadconfig
#define _tile_storeconfig imitated::storeconfig
