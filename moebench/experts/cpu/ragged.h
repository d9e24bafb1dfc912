// Products of rows with matrices that differ from expert to expert: what all kernels share.
//
// A matrix comes in blocks of 64 outputs: [outputs / 64][inputs / DEPTH][64][DEPTH]. A step is the
// DEPTH inputs that one instruction multiplies. A thread streams a block from one end to the other
// against up to six rows whose sums stay in registers; of more rows, each six find a stretch of the
// block in the thread's second cache, and ask for their share of the next. (Six alone do not: the
// loads of the stream itself come as fast.) All blocks of all experts are one list of work from
// which the threads help themselves, so that few rows cost one start of the threads, not one for
// every expert.
//
// `T` below is a type of numbers and the instructions that multiply them. It has a `Session`, which
// a thread holds while it multiplies, and
//
//   T::multiply(rows, num_rows, weights, steps, ahead, sums)
//
// which adds the product of the rows with a stretch of a block to sums[num_rows][64]. If `T` needs
// dense rows, all lie one behind the other.

#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "vectors.h"

constexpr int VECTORS = 4;  // vectors of a step
constexpr int BLOCK = LANES * VECTORS;
constexpr int64_t STRETCH = 512;  // steps of a block, 128 KiB: of 64 to 512, the fastest

enum Epilogue { NONE, SWIGLU, SQUARED_RELU };

// Outputs of a block; a gated one holds 32 gate sums and then the same 32 of up.
inline int64_t width_of(Epilogue epilogue) { return epilogue == SWIGLU ? BLOCK / 2 : BLOCK; }

// Rows of a matrix: in turn, or those that indices choose.
template <class Element>
struct Rows {
  const Element* first;
  int64_t stride;
  const int64_t* indices;

  const Element* at(int64_t m) const { return first + stride * (indices ? indices[m] : m); }
  Rows from(int64_t m) const {
    return indices ? Rows{first, stride, indices + m} : Rows{first + stride * m, stride, nullptr};
  }
};

// Where the lines of a stretch lie in memory, so that they can be asked for early.
struct Ahead {
  const char* start = nullptr;
  int64_t near = 0, far = 0;  // bytes between steps, and between each 64 of them
  int64_t jump = 0;           // added for the second 32 of each 64
  int64_t lines[VECTORS] = {};
  int first_line = 0, last_line = 0;  // those of a step that are asked for

  Ahead share(int64_t part, int64_t parts) const {
    Ahead own = *this;
    own.first_line = start ? int(VECTORS * part / parts) : 0;
    own.last_line = start ? int(VECTORS * (part + 1) / parts) : 0;
    return own;
  }
  void fetch(int64_t step) const {
    const char* place = start + (step & 63) * near + (step >> 6) * far + (step & 32 ? jump : 0);
    for (int line = first_line; line < last_line; ++line)
      _mm_prefetch(place + lines[line], _MM_HINT_T1);
  }
};

// A block that lies in memory as the kernels read it.
template <class T>
struct Block {
  using Element = typename T::Element;
  static constexpr int64_t CHUNK = 240;  // rows at a time: sums of 60 KiB
  static constexpr bool IS_PACKED = true;

  const Element* weights;

  const Element* at(int64_t step, int64_t, Element*) const {
    return weights + step * BLOCK * T::DEPTH;
  }
  Ahead ahead(int64_t step) const {
    constexpr int64_t bytes = BLOCK * T::DEPTH * sizeof(Element);
    return {(const char*)at(step, 0, nullptr), bytes, 64 * bytes, 0, {0, 64, 128, 192}};
  }
};

// A block's product with some rows, and where it goes.
template <class Source>
struct Job {
  using Element = typename Source::Element;

  Rows<Element> rows;
  int64_t num_rows;
  Source source;
  int64_t steps;
  Element* y;
  int64_t stride, outputs;  // from row to row of y; those from here to the end of the row
  Element* sums = nullptr;  // where they go before the epilogue; null: nowhere
  int64_t sums_stride = 0;
  bool is_streamed = false;  // whether whole lines of y go past the caches: nobody reads them soon
};

// Words of memory that a thread keeps; they begin where a line of the cache does.
inline float* own_memory(size_t size) {
  struct alignas(64) Line {
    float words[LANES];
  };
  static thread_local std::vector<Line> memory;
  if (memory.size() * LANES < size) memory.resize((size + LANES - 1) / LANES);
  return memory.data()->words;
}

inline __m512 epilogue_of(Epilogue epilogue, const float* sums, int vector) {
  const __m512 sum = _mm512_loadu_ps(sums + vector * LANES);
  if (epilogue == NONE) return sum;
  if (epilogue == SQUARED_RELU) {
    const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), sum);  // NaN stays NaN
    return _mm512_mul_ps(positive, positive);
  }
  const __m512 up = _mm512_loadu_ps(sums + BLOCK / 2 + vector * LANES);
  return _mm512_div_ps(_mm512_mul_ps(sum, up), decay(sum));
}

// Store the sums of rows `start` to `start + num_rows` of a job.
template <class T, class Source>
void finish(const Job<Source>& job, int64_t start, int64_t num_rows, Epilogue epilogue,
            const float* sums) {
  const int64_t outputs = std::min(width_of(epilogue), job.outputs);
  constexpr int64_t line = 64 / sizeof(typename T::Element);
  if (job.is_streamed && outputs == BLOCK && job.stride % line == 0 && uintptr_t(job.y) % 64 == 0) {
    for (int64_t m = 0; m < num_rows; ++m, sums += BLOCK)
      for (int i = 0; i < BLOCK; i += 2 * LANES)
        T::stream(job.y + (start + m) * job.stride + i, _mm512_loadu_ps(sums + i),
                  _mm512_loadu_ps(sums + i + LANES));
    return;
  }
  for (int64_t m = 0; m < num_rows; ++m, sums += BLOCK)
    for (int v = 0; v * LANES < outputs; ++v) {
      const __mmask16 lanes = lanes_of(outputs - v * LANES);
      if (job.sums) {
        auto* to = job.sums + (start + m) * job.sums_stride + v * LANES;
        T::store(to, lanes, _mm512_loadu_ps(sums + v * LANES));
        if (epilogue == SWIGLU)
          T::store(to + job.sums_stride / 2, lanes,
                   _mm512_loadu_ps(sums + BLOCK / 2 + v * LANES));
      }
      T::store(job.y + (start + m) * job.stride + v * LANES, lanes,
               epilogue_of(epilogue, sums, v));
    }
}

// Called by all threads: do the jobs 0 to num_jobs, which `next` counts.
template <class T, class JobOf>
void work(std::atomic<int64_t>& next, int64_t num_jobs, Epilogue epilogue, const JobOf& job_of) {
  using Source = decltype(job_of(0).source);
  constexpr int64_t num_sums = Source::CHUNK * BLOCK;
  float* sums = own_memory(num_sums + (Source::IS_PACKED ? 0 : STRETCH * BLOCK));
  auto* packed = (typename T::Element*)(sums + num_sums);
  for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < num_jobs;) {
    const auto job = job_of(task);
    const int64_t soon = task + omp_get_num_threads();
    const Ahead later = soon < num_jobs ? job_of(soon).source.ahead(0) : Ahead{};
    const int64_t chunks = (job.num_rows + Source::CHUNK - 1) / Source::CHUNK;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t start = job.num_rows * chunk / chunks;
      const int64_t num_rows = job.num_rows * (chunk + 1) / chunks - start;
      std::fill_n(sums, num_rows * BLOCK, 0.f);
      for (int64_t step = 0; step < job.steps; step += STRETCH) {
        const int64_t steps = std::min(STRETCH, job.steps - step), end = step + steps;
        auto rows = job.rows.from(start);
        rows.first += step * T::DEPTH;
        T::multiply(rows, num_rows, job.source.at(step, steps, packed), steps,
                    end < job.steps ? job.source.ahead(end) : later, sums);
      }
      finish<T>(job, start, num_rows, epilogue, sums);
    }
  }
}

// The rows of one touched expert among the assignments, which are sorted by expert.
struct Slice {
  int64_t expert, start, end;
};

inline std::vector<Slice> slices_of(int64_t num_experts, const int64_t* counts) {
  std::vector<Slice> slices;
  for (int64_t expert = 0, start = 0; expert < num_experts; start += counts[expert++])
    if (counts[expert]) slices.push_back({expert, start, start + counts[expert]});
  return slices;
}

// The stacked matrices of one matmul: [experts][outputs][inputs], in blocks.
template <class T>
struct Blocks {
  const typename T::Element* stack;
  int64_t inputs, outputs;

  Block<T> at(int64_t expert, int64_t column, Epilogue epilogue) const {
    const int64_t width = width_of(epilogue), num_blocks = (outputs + width - 1) / width;
    return {stack + (expert * num_blocks + column / width) * inputs * BLOCK};
  }
};

// Where the results of a matmul go: rows of `outputs`, and the sums before its epilogue.
template <class Element>
struct Results {
  Element* y;
  Element* sums = nullptr;
};

// Called by all threads: each assignment's row times the matrix of its expert.
template <class T, class Matrices>
void ragged_product(std::atomic<int64_t>& next, Rows<typename T::Element> rows,
                    const std::vector<Slice>& slices, const Matrices& matrices, Epilogue epilogue,
                    Results<typename T::Element> results) {
  const int64_t width = width_of(epilogue), outputs = matrices.outputs;
  const int64_t num_blocks = (outputs + width - 1) / width;
  const int64_t sums_stride = epilogue == SWIGLU ? 2 * outputs : outputs;
  work<T>(next, num_blocks * int64_t(slices.size()), epilogue, [&](int64_t task) {
    const auto& [expert, start, end] = slices[task / num_blocks];
    const int64_t column = task % num_blocks * width;
    auto source = matrices.at(expert, column, epilogue);
    auto* sums = results.sums ? results.sums + start * sums_stride + column : nullptr;
    return Job<decltype(source)>{rows.from(start),      end - start,
                                 source,                matrices.inputs / T::DEPTH,
                                 results.y + start * outputs + column,
                                 outputs,               outputs - column,
                                 sums,                  sums_stride};
  });
}

// Rows that indices choose, copied for a `T` that needs dense ones.
template <class T>
struct DenseRows {
  using Element = typename T::Element;

  Rows<Element> rows;
  int64_t num_rows, width;
  std::unique_ptr<Element[]> copy;

  DenseRows(Rows<Element> rows, int64_t num_rows, int64_t width)
      : rows(rows), num_rows(num_rows), width(width) {
    if (T::NEEDS_DENSE && rows.indices) copy.reset(new Element[num_rows * width]);
  }
  // Called by all threads.
  Rows<Element> get() const {
    if (!copy) return rows;
#pragma omp for schedule(static)
    for (int64_t m = 0; m < num_rows; ++m) std::copy_n(rows.at(m), width, &copy[m * width]);
    return {copy.get(), width, nullptr};
  }
};
