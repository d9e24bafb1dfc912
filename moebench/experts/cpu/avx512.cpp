// Ragged matmul on a processor with AVX-512-BF16: each expert's rows times its own matrix.
//
// A matrix lies in blocks of 64 outputs, [outputs / 64][inputs / depth][64][depth], where depth is
// the number of inputs that one instruction multiplies: 2 in bf16, 1 in fp32. A thread streams a
// block from one end to the other, against up to six rows whose sums stay in registers; of more
// rows, each six find a stretch of the block in the thread's second cache, and ask for their share
// of the next. (Six alone do not: the loads of the stream itself come as fast.) All blocks of all
// experts are one list of work from which the threads help themselves, so that few rows cost one
// start of the threads, not one for every expert.
//
// And combining: the weighted sum of each token's rows, in one pass.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 16;    // fp32 sums in a register
constexpr int VECTORS = 4;   // registers of a row's sums
constexpr int BLOCK = LANES * VECTORS;
constexpr int ROWS = 6;      // 24 of the 32 registers hold sums, 4 weights, 1 inputs
constexpr int64_t CHUNK = 40 * ROWS;  // rows that share a block at a time: sums of 60 KiB
constexpr int64_t STRETCH = 512;      // steps of a block, 128 KiB: of 64 to 512, the fastest

enum Epilogue { NONE, SWIGLU, SQUARED_RELU };

struct BFloat16 {
  using Element = uint16_t;
  using Vector = __m512bh;
  static constexpr int DEPTH = 2;

  static Vector weights(const Element* w) { return (Vector)_mm512_loadu_si512(w); }
  static Vector input(const Element* x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    return (Vector)_mm512_set1_epi32(pair);
  }
  static __m512 add_product(__m512 sum, Vector x, Vector w) { return _mm512_dpbf16_ps(sum, x, w); }
  static __m512 load(const Element* from, __mmask16 lanes) {
    const __m256i halves = _mm256_maskz_loadu_epi16(lanes, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static void store(Element* to, __mmask16 lanes, __m512 value) {
    _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh(value));
  }
};

struct Float32 {
  using Element = float;
  using Vector = __m512;
  static constexpr int DEPTH = 1;

  static Vector weights(const Element* w) { return _mm512_loadu_ps(w); }
  static Vector input(const Element* x) { return _mm512_set1_ps(*x); }
  static __m512 add_product(__m512 sum, Vector x, Vector w) { return _mm512_fmadd_ps(x, w, sum); }
  static __m512 load(const Element* from, __mmask16 lanes) {
    return _mm512_maskz_loadu_ps(lanes, from);
  }
  static void store(Element* to, __mmask16 lanes, __m512 value) {
    _mm512_mask_storeu_ps(to, lanes, value);
  }
};

// What a tile brings from memory to the second cache: of each step, vectors `from` to `to`.
struct Ahead {
  const void* weights;
  int from, to;
};

// sums[m][64] += rows[m][first ...] * weights, over `steps` steps of the block; added up by itself
// first, for a sum of sums rounds less than one long sum.
template <class T, int M>
void tile(const typename T::Element* const* rows, int64_t first,
          const typename T::Element* weights, int64_t steps, Ahead ahead, float* sums) {
  const typename T::Element* x[M];
  __m512 sum[M][VECTORS];
  for (int m = 0; m < M; ++m) {
    x[m] = rows[m] + first;
    for (int v = 0; v < VECTORS; ++v) sum[m][v] = _mm512_setzero_ps();
  }
  for (int64_t step = 0; step < steps; ++step) {
    typename T::Vector w[VECTORS];
    for (int v = 0; v < VECTORS; ++v)
      w[v] = T::weights(weights + (step * VECTORS + v) * LANES * T::DEPTH);
    for (int v = ahead.from; v < ahead.to; ++v)
      _mm_prefetch((const char*)ahead.weights + (step * VECTORS + v) * sizeof(w[0]), _MM_HINT_T1);
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

// sums[m][64] = rows[m] * block; `next` is the block that this thread is likely to have next.
template <class T>
void multiply(const typename T::Element* const* rows, int64_t num_rows, int64_t inputs,
              const typename T::Element* block, const typename T::Element* next, float* sums) {
  using Tile = void (*)(const typename T::Element* const*, int64_t,
                        const typename T::Element*, int64_t, Ahead, float*);
  constexpr Tile tiles[ROWS] = {tile<T, 1>, tile<T, 2>, tile<T, 3>,
                                tile<T, 4>, tile<T, 5>, tile<T, 6>};
  std::fill_n(sums, num_rows * BLOCK, 0.f);
  const int64_t all_steps = inputs / T::DEPTH, num_tiles = (num_rows + ROWS - 1) / ROWS;
  for (int64_t step = 0; step < all_steps; step += STRETCH) {
    const int64_t steps = std::min(STRETCH, all_steps - step);
    const auto* after = step + steps < all_steps ? block + (step + steps) * BLOCK * T::DEPTH : next;
    const int vectors = num_tiles > 1 && after ? VECTORS : 0;
    for (int64_t t = 0; t < num_tiles; ++t) {
      const int64_t row = num_rows * t / num_tiles, end = num_rows * (t + 1) / num_tiles;
      const Ahead ahead{after, int(vectors * t / num_tiles), int(vectors * (t + 1) / num_tiles)};
      tiles[end - row - 1](rows + row, step * T::DEPTH, block + step * BLOCK * T::DEPTH, steps,
                           ahead, sums + row * BLOCK);
    }
  }
}

// e^x, to a relative error of some 1e-7 (1 + |x|): a polynomial of 2^f on [-1/2, 1/2], scaled by
// 2^n. What no float can hold, 88 stands for.
__m512 exponential(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-88.f)), _mm512_set1_ps(88.f));
  const __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT);
  const __m512 fraction = _mm512_mul_ps(_mm512_sub_ps(power, whole), _mm512_set1_ps(0.69314718f));
  __m512 sum = _mm512_set1_ps(1.f / 5040);
  for (const float factorial : {720.f, 120.f, 24.f, 6.f, 2.f, 1.f, 1.f})
    sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(1.f / factorial));
  return _mm512_scalef_ps(sum, whole);
}

__m512 epilogue_of(Epilogue epilogue, const float* sums, int vector) {
  const __m512 sum = _mm512_loadu_ps(sums + vector * LANES);
  if (epilogue == NONE) return sum;
  if (epilogue == SQUARED_RELU) {
    const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), sum);  // NaN stays NaN
    return _mm512_mul_ps(positive, positive);
  }
  const __m512 up = _mm512_loadu_ps(sums + BLOCK / 2 + vector * LANES);
  const __m512 decay = exponential(_mm512_sub_ps(_mm512_setzero_ps(), sum));
  return _mm512_div_ps(_mm512_mul_ps(sum, up), _mm512_add_ps(_mm512_set1_ps(1.f), decay));
}

// The lanes of a vector that lie before the end of a row, of which `left` elements are left.
__mmask16 lanes_of(int64_t left) { return left < LANES ? (1u << left) - 1 : 0xffff; }

// What is wrong in either would have a thread read or write anywhere.
bool add_up(int64_t num_experts, const int64_t* counts, int64_t num_assignments) {
  for (int64_t expert = 0; expert < num_experts; num_assignments -= counts[expert++])
    if (counts[expert] < 0 || counts[expert] > num_assignments) return false;
  return num_assignments == 0;
}

bool are_below(int64_t limit, const int64_t* indices, int64_t number) {
  return std::all_of(indices, indices + number,
                     [=](int64_t index) { return 0 <= index && index < limit; });
}

template <class T>
void ragged_linear(const typename T::Element* x, int64_t stride, const int64_t* indices,
                   int64_t num_experts, const int64_t* counts,
                   const typename T::Element* matrices, int64_t inputs, int64_t outputs,
                   typename T::Element* y, Epilogue epilogue, int num_threads) {
  struct Slice {
    int64_t expert, start, end;
  };
  std::vector<Slice> slices;
  for (int64_t expert = 0, start = 0; expert < num_experts; start += counts[expert++])
    if (counts[expert]) slices.push_back({expert, start, start + counts[expert]});
  const int64_t width = epilogue == SWIGLU ? BLOCK / 2 : BLOCK;  // outputs of a block
  const int64_t num_blocks = (outputs + width - 1) / width;
  const int64_t num_tasks = num_blocks * int64_t(slices.size());
  const auto block_of = [&](int64_t task) {
    const int64_t expert = slices[task / num_blocks].expert;
    return matrices + (expert * num_blocks + task % num_blocks) * inputs * BLOCK;
  };
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(num_threads)
  {
    std::vector<float> sums(CHUNK * BLOCK);
    std::vector<const typename T::Element*> rows(CHUNK);
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
      const Slice& slice = slices[task / num_blocks];
      const int64_t column = task % num_blocks * width, soon = task + num_threads;
      const auto* after = soon < num_tasks ? block_of(soon) : nullptr;
      for (int64_t start = slice.start; start < slice.end; start += CHUNK) {
        const int64_t num_rows = std::min(CHUNK, slice.end - start);
        for (int64_t m = 0; m < num_rows; ++m)
          rows[m] = x + stride * (indices ? indices[start + m] : start + m);
        multiply<T>(rows.data(), num_rows, inputs, block_of(task), after, sums.data());
        for (int64_t m = 0; m < num_rows; ++m)
          for (int v = 0; v * LANES < std::min(width, outputs - column); ++v) {
            T::store(y + (start + m) * outputs + column + v * LANES,
                     lanes_of(outputs - column - v * LANES),
                     epilogue_of(epilogue, sums.data() + m * BLOCK, v));
          }
      }
    }
  }
}

// y[token] = the sum of its assignments' weighted rows, in the order of the assignments.
template <class T>
void combine(const typename T::Element* rows, int64_t num_assignments, const int64_t* tokens,
             const float* weights, int64_t num_tokens, int64_t outputs, typename T::Element* y,
             int num_threads) {
  std::vector<int64_t> ends(num_tokens + 1), order(num_assignments);  // assignments by token
  for (int64_t m = 0; m < num_assignments; ++m) ++ends[tokens[m] + 1];
  for (int64_t token = 0; token < num_tokens; ++token) ends[token + 1] += ends[token];
  for (int64_t m = 0; m < num_assignments; ++m) order[ends[tokens[m]]++] = m;
#pragma omp parallel for num_threads(num_threads)
  for (int64_t token = 0; token < num_tokens; ++token)
    for (int64_t column = 0; column < outputs; column += LANES) {
      const __mmask16 lanes = lanes_of(outputs - column);
      __m512 sum = _mm512_setzero_ps();
      for (int64_t i = token ? ends[token - 1] : 0; i < ends[token]; ++i)
        sum = _mm512_fmadd_ps(_mm512_set1_ps(weights[order[i]]),
                              T::load(rows + order[i] * outputs + column, lanes), sum);
      T::store(y + token * outputs + column, lanes, sum);
    }
}

}  // namespace

// Both do nothing and return false where counts or indices do not belong together.
//
// ragged_linear: x: `num_rows` rows of `inputs`, `stride` elements apart. indices: the row of each
// assignment, sorted by expert; null: each has its own. counts: assignments of each expert.
// matrices: in blocks, expert by expert; for SWIGLU a block holds 32 gate outputs and then the same
// 32 of up. y: `outputs` for each assignment, dense.
//
// combine: rows: `outputs` for each assignment, dense. tokens, weights: where a row goes, and how
// much of it. y: `outputs` for each token, dense.
#define KERNELS(T, type)                                                                           \
  extern "C" bool ragged_linear_##type(                                                            \
      const T::Element* x, int64_t num_rows, int64_t stride, const int64_t* indices,               \
      int64_t num_assignments, int64_t num_experts, const int64_t* counts,                         \
      const T::Element* matrices, int64_t inputs, int64_t outputs, T::Element* y, int epilogue,    \
      int num_threads) {                                                                           \
    if (!add_up(num_experts, counts, num_assignments)) return false;                               \
    if (indices ? !are_below(num_rows, indices, num_assignments) : num_rows < num_assignments)     \
      return false;                                                                                \
    ragged_linear<T>(x, stride, indices, num_experts, counts, matrices, inputs, outputs, y,        \
                     Epilogue(epilogue), num_threads);                                             \
    return true;                                                                                   \
  }                                                                                                \
  extern "C" bool combine_##type(const T::Element* rows, int64_t num_assignments,                  \
                                 const int64_t* tokens, const float* weights, int64_t num_tokens,  \
                                 int64_t outputs, T::Element* y, int num_threads) {                \
    if (!are_below(num_tokens, tokens, num_assignments)) return false;                             \
    combine<T>(rows, num_assignments, tokens, weights, num_tokens, outputs, y, num_threads);       \
    return true;                                                                                   \
  }

KERNELS(BFloat16, bfloat16)
KERNELS(Float32, float32)
