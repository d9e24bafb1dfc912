// Matrices that lie in memory as torch has them: a thread brings each stretch of a block in the
// kernels' order just before it multiplies with it, so that training needs no second copy.

#pragma once

#include "ragged.h"

// A block whose outputs are columns of a matrix, and whose inputs are rows of it.
template <class T>
struct Columns {
  using Element = typename T::Element;
  static constexpr int64_t CHUNK = 960;
  static constexpr bool IS_PACKED = false;

  Rows<Element> rows;
  int64_t num_rows, columns;  // those that are left

  const Element* at(int64_t step, int64_t steps, Element* packed) const {
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t row = (step + s) * T::DEPTH;
      const Element* first = rows.at(row);
      const Element* second = row + 1 < num_rows ? rows.at(row + 1) : nullptr;
      for (int v = 0; v < VECTORS; ++v) {
        const auto words = T::words(first + v * LANES, second ? second + v * LANES : nullptr,
                                    lanes_of(columns - v * LANES));
        _mm512_store_si512(packed + (s * VECTORS + v) * LANES * T::DEPTH, words);
      }
    }
    return packed;
  }
  Ahead ahead(int64_t step) const {
    if (rows.indices) return {};
    const int64_t bytes = rows.stride * sizeof(Element), near = T::DEPTH * bytes;
    Ahead lines{(const char*)rows.at(step * T::DEPTH), near, 64 * near};
    constexpr int64_t of_a_row = VECTORS / T::DEPTH;
    for (int v = 0; v < VECTORS; ++v) lines.lines[v] = v / of_a_row * bytes + v % of_a_row * 64;
    return lines;
  }
};

// A block whose outputs are rows of a matrix: the first half of them from `upper` on, the second
// from `lower` on.
template <class T>
struct Transposed {
  using Element = typename T::Element;
  static constexpr int64_t CHUNK = 960;
  static constexpr bool IS_PACKED = false;

  const Element *upper, *lower;
  int64_t stride, upper_rows, lower_rows;  // those that are left

  const Element* at(int64_t step, int64_t steps, Element* packed) const {
    for (int v = 0; v < VECTORS; ++v) {
      const int half = v / (VECTORS / 2), row = v % (VECTORS / 2) * LANES;
      const Element* rows = (half ? lower : upper) + row * stride + step * T::DEPTH;
      const int64_t left = (half ? lower_rows : upper_rows) - row;
      for (int64_t s = 0; s < steps; s += LANES) {
        __m512i words[LANES];
        for (int i = 0; i < LANES; ++i)
          words[i] = i < left ? _mm512_maskz_loadu_epi32(lanes_of(steps - s),
                                                         rows + i * stride + s * T::DEPTH)
                              : _mm512_setzero_si512();
        transpose(words);
        for (int i = 0; i < std::min<int64_t>(LANES, steps - s); ++i)
          _mm512_store_si512(packed + ((s + i) * VECTORS + v) * LANES * T::DEPTH, words[i]);
      }
    }
    return packed;
  }
  Ahead ahead(int64_t step) const {
    const int64_t bytes = stride * sizeof(Element);
    const int64_t jump = (const char*)lower - (const char*)upper - BLOCK / 2 * bytes;
    return {(const char*)(upper + step * T::DEPTH), bytes, 256, jump, {0, 64, 128, 192}};
  }
};

// Stacked matrices as parameters have them: [experts][outputs][inputs], of gated experts gate above
// up, with `outputs` of each.
template <class T>
struct Parameters {
  const typename T::Element* stack;
  int64_t inputs, outputs;

  Transposed<T> at(int64_t expert, int64_t column, Epilogue epilogue) const {
    const bool is_gated = epilogue == SWIGLU;
    const auto* upper = stack + (expert * (1 + is_gated) * outputs + column) * inputs;
    const int64_t left = outputs - column;
    if (is_gated) return {upper, upper + outputs * inputs, inputs, left, left};
    constexpr int64_t half = BLOCK / 2;
    return {upper, upper + half * inputs, inputs, left, left - half};
  }
};

// The same, for the product with the transposed matrices: [experts][inputs][outputs].
template <class T>
struct TransposedParameters {
  const typename T::Element* stack;
  int64_t inputs, outputs;

  Columns<T> at(int64_t expert, int64_t column, Epilogue) const {
    return {{stack + expert * inputs * outputs + column, outputs, nullptr}, inputs,
            outputs - column};
  }
};

// Called by all threads: the rows of each slice, transposed: of expert e, at `columns` times
// `starts[e]`, [columns][its steps * DEPTH], the last padded with zeros.
template <class T>
void transpose_slices(Rows<typename T::Element> rows, int64_t columns,
                      const std::vector<Slice>& slices, const std::vector<int64_t>& starts,
                      typename T::Element* transposed) {
  const int64_t tiles = (columns + LANES - 1) / LANES;
#pragma omp for schedule(dynamic)
  for (int64_t task = 0; task < int64_t(slices.size()) * tiles; ++task) {
    const auto& [expert, start, end] = slices[task / tiles];
    const int64_t column = task % tiles * LANES, steps = (starts[expert + 1] - starts[expert]) / T::DEPTH;
    auto* to = transposed + columns * starts[expert] + column * steps * T::DEPTH;
    for (int64_t s = 0; s < steps; s += LANES) {
      __m512i words[LANES];
      for (int i = 0; i < LANES; ++i) {
        const int64_t row = start + (s + i) * T::DEPTH;
        words[i] = row < end ? T::words(rows.at(row) + column,
                                        row + 1 < end ? rows.at(row + 1) + column : nullptr,
                                        lanes_of(columns - column))
                             : _mm512_setzero_si512();
      }
      transpose(words);
      for (int i = 0; i < std::min<int64_t>(LANES, columns - column); ++i)
        _mm512_mask_storeu_epi32(to + (i * steps + s) * T::DEPTH, lanes_of(steps - s), words[i]);
    }
  }
}
