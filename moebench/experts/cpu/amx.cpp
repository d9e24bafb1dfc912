// Products in bf16 on a processor with AMX: a tile is 16 rows of up to 16 words.
//
// Rows and weights come as `ragged.h` has them: 16 steps of 16 of a block's outputs are a tile of
// weights as they lie. Nobody has run this file on such a processor: tests compile it against
// definitions of the tile instructions in plain C++, which TILE_INTRINSICS names.

#include <asm/prctl.h>
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels.h"

#ifdef TILE_INTRINSICS
#include TILE_INTRINSICS
#endif

namespace {

constexpr int TILE = 16;  // rows, and words of a row

// What the instruction ldtilecfg reads.
struct alignas(64) Configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];  // of a row of each tile
  uint8_t rows[16];
};

// Rows of the upper and of the lower tile of inputs, 0 if there is none, and steps of both.
struct Shape {
  int upper = 0, lower = 0, steps = 0;

  bool operator==(const Shape& other) const {
    return upper == other.upper && lower == other.lower && steps == other.steps;
  }
};

thread_local Shape configured;

// GCC's intrinsics do not say which memory they read and write. Behind this, whatever it knows of
// is in its place.
void settle(const void* memory = nullptr) { asm volatile("" : : "r"(memory) : "memory"); }

// Tiles 0 to 3 are sums. Of two tiles of rows, 4 and 5, they meet two of weights, 6 and 7; of one,
// 4, it meets four in turn, 5 to 7.
void configure(Shape shape) {
  if (shape == configured) return;
  configured = shape;
  Configuration all = {};
  const auto set = [&](int tile, int rows, int words) {
    all.rows[tile] = rows;
    all.bytes[tile] = 4 * words;
  };
  all.palette = 1;
  for (int tile = 0; tile < 4; ++tile)
    set(tile, shape.lower && tile >= 2 ? shape.lower : shape.upper, TILE);
  set(4, shape.upper, shape.steps);
  for (int tile = 5; tile < 8; ++tile) set(tile, shape.steps, TILE);
  if (shape.lower) set(5, shape.lower, shape.steps);
  settle(&all);
  _tile_loadconfig(&all);
}

struct Tiles : BFloat16 {
  static constexpr bool NEEDS_DENSE = true;

  // Others in this process may rely on the tiles that they have configured for this thread.
  struct Session {
    Configuration before;

    Session() {
      _tile_storeconfig(&before);
      settle(&before);
      configured = {};
    }
    ~Session() {
      settle(&before);
      _tile_loadconfig(&before);
    }
  };

  // Up to 16 rows and all outputs of a block, over `number` tiles of steps: a stream from one end
  // of it to the other.
  static void narrow(const Element* x, int64_t stride, const Element* weights, int64_t number,
                     const Ahead& ahead, float* sums) {
    constexpr int64_t row = BLOCK * sizeof(float), step = BLOCK * DEPTH * sizeof(Element);
    constexpr int next = TILE * DEPTH;  // elements from tile to tile
    _tile_loadd(0, sums, row);
    _tile_loadd(1, sums + TILE, row);
    _tile_loadd(2, sums + 2 * TILE, row);
    _tile_loadd(3, sums + 3 * TILE, row);
    for (int64_t i = 0; i < number; ++i, x += next, weights += TILE * BLOCK * DEPTH) {
      _tile_loadd(4, x, stride);
      _tile_loadd(5, weights, step);
      _tile_loadd(6, weights + next, step);
      _tile_loadd(7, weights + 2 * next, step);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(5, weights + 3 * next, step);
      _tile_dpbf16ps(1, 4, 6);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 4, 5);
      for (int s = 0; s < TILE; ++s) ahead.fetch(i * TILE + s);
    }
    _tile_stored(0, sums, row);
    _tile_stored(1, sums + TILE, row);
    _tile_stored(2, sums + 2 * TILE, row);
    _tile_stored(3, sums + 3 * TILE, row);
  }

  // 17 to 32 rows and half of a block's outputs.
  static void wide(const Element* x, int64_t stride, const Element* weights, int64_t number,
                   const Ahead& ahead, float* sums) {
    constexpr int64_t row = BLOCK * sizeof(float), step = BLOCK * DEPTH * sizeof(Element);
    constexpr int next = TILE * DEPTH;
    float* lower_sums = sums + TILE * BLOCK;
    _tile_loadd(0, sums, row);
    _tile_loadd(1, sums + TILE, row);
    _tile_loadd(2, lower_sums, row);
    _tile_loadd(3, lower_sums + TILE, row);
    for (int64_t i = 0; i < number; ++i, x += next, weights += TILE * BLOCK * DEPTH) {
      _tile_loadd(4, x, stride);
      _tile_loadd(6, weights, step);
      _tile_loadd(7, weights + next, step);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, (const char*)x + TILE * stride, stride);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      for (int s = 0; s < TILE; ++s) ahead.fetch(i * TILE + s);
    }
    _tile_stored(0, sums, row);
    _tile_stored(1, sums + TILE, row);
    _tile_stored(2, lower_sums, row);
    _tile_stored(3, lower_sums + TILE, row);
  }

  static void multiply(const Rows<Element>& rows, int64_t num_rows, const Element* weights,
                       int64_t steps, const Ahead& ahead, float* sums) {
    const int64_t stride = rows.stride * sizeof(Element), whole = steps / TILE * TILE;
    const int64_t num_tiles = (num_rows + 2 * TILE - 1) / (2 * TILE);
    for (int64_t t = 0; t < num_tiles; ++t, sums += 2 * TILE * BLOCK) {
      const int left = std::min<int64_t>(2 * TILE, num_rows - t * 2 * TILE);
      const int upper = std::min(left, TILE), lower = left - upper;
      const Ahead own = num_tiles > 1 ? ahead.share(t, num_tiles) : Ahead{};
      const auto part = [&](int64_t first, int64_t number, const Ahead& some) {
        settle();
        const Element* x = rows.at(t * 2 * TILE) + first * DEPTH;
        const Element* w = weights + first * BLOCK * DEPTH;
        if (!lower) return narrow(x, stride, w, number, some, sums);
        wide(x, stride, w, number, some, sums);
        wide(x, stride, w + BLOCK / 2 * DEPTH, number, Ahead{}, sums + BLOCK / 2);
      };
      if (whole) {
        configure({upper, lower, TILE});
        part(0, whole / TILE, own);
      }
      if (whole < steps) {
        configure({upper, lower, int(steps - whole)});
        part(whole, 1, Ahead{});
      }
    }
  }
};

}  // namespace

// Whether the processor has these tiles and the system lets this process use them.
extern "C" bool is_allowed() {
#ifdef TILE_INTRINSICS
  return true;
#else
  constexpr unsigned in_bf16 = 1 << 22, tiles = 1 << 24, state = 3 << 17;
  constexpr int tile_data = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & in_bf16) || !(d & tiles)) return false;
  unsigned enabled, high;
  asm("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
  return (enabled & state) == state && !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, tile_data);
#endif
}

EXPORT(Tiles, bfloat16)
