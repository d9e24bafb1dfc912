// Products on a processor with AVX-512-BF16.

#include "kernels.h"

namespace {

constexpr int ROWS = 6;  // 24 of the 32 registers hold sums, 4 weights, 1 inputs

// sums[m][64] += rows[m] * weights, over `steps` steps of the block; added up by itself first, for
// a sum of sums rounds less than one long sum.
template <class T, int M>
void tile(Rows<typename T::Element> rows, const typename T::Element* weights, int64_t steps,
          Ahead ahead, float* sums) {
  const typename T::Element* x[M];
  __m512 sum[M][VECTORS];
  for (int m = 0; m < M; ++m) {
    x[m] = rows.at(m);
    for (int v = 0; v < VECTORS; ++v) sum[m][v] = _mm512_setzero_ps();
  }
  for (int64_t step = 0; step < steps; ++step) {
    typename T::Vector w[VECTORS];
    for (int v = 0; v < VECTORS; ++v)
      w[v] = T::weights(weights + (step * VECTORS + v) * LANES * T::DEPTH);
    ahead.fetch(step);
    for (int m = 0; m < M; ++m) {
      const auto input = T::input(x[m] + step * T::DEPTH);
      for (int v = 0; v < VECTORS; ++v) sum[m][v] = T::add_product(sum[m][v], input, w[v]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < VECTORS; ++v) {
      float* total = sums + m * BLOCK + v * LANES;
      _mm512_storeu_ps(total, _mm512_add_ps(_mm512_loadu_ps(total), sum[m][v]));
    }
}

template <class Numbers>
struct Avx512 : Numbers {
  using Element = typename Numbers::Element;
  struct Session {};
  static constexpr bool NEEDS_DENSE = false;

  static void multiply(Rows<Element> rows, int64_t num_rows, const Element* weights, int64_t steps,
                       const Ahead& ahead, float* sums) {
    using Tile = void (*)(Rows<Element>, const Element*, int64_t, Ahead, float*);
    constexpr Tile tiles[ROWS] = {tile<Numbers, 1>, tile<Numbers, 2>, tile<Numbers, 3>,
                                  tile<Numbers, 4>, tile<Numbers, 5>, tile<Numbers, 6>};
    const int64_t num_tiles = (num_rows + ROWS - 1) / ROWS;
    for (int64_t t = 0; t < num_tiles; ++t) {
      const int64_t row = num_rows * t / num_tiles, end = num_rows * (t + 1) / num_tiles;
      tiles[end - row - 1](rows.from(row), weights, steps,
                           num_tiles > 1 ? ahead.share(t, num_tiles) : Ahead{},
                           sums + row * BLOCK);
    }
  }
};

}  // namespace

EXPORT(Avx512<BFloat16>, bfloat16)
EXPORT(Avx512<Float32>, float32)
