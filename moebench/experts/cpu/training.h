// Forward and backward passes of a layer's experts, on the parameters themselves.

#pragma once

#include "layer.h"
#include "packing.h"

// Parameters of a layer, and their sizes.
template <class T>
struct Stacks {
  const typename T::Element *gate_up, *down;
  int64_t hidden, inner;
  Epilogue epilogue;

  int64_t width() const { return epilogue == SWIGLU ? 2 * inner : inner; }
};

// What a backward pass gives. Gradients of parameters may be null: they are frozen.
template <class Element>
struct Gradients {
  Element* x;
  float* weights;
  Element *gate_up, *down;
};

// Memory for what lies between, each a row for an assignment: of the inner size, of the width of
// the first matmul, of the hidden size; and of either of the last two, with a row more per expert.
template <class Element>
struct Between {
  Element *activated, *hidden, *rows, *transposed;
};

// Called by all threads. `activated` holds gradients of the activation's result, before the
// assignments' weights; it gets that result times the weights, and `hidden_gradients` the gradients
// of the first matmul's sums.
template <class T>
void activation_backward(const Assignments& all, const typename T::Element* hidden, int64_t inner,
                         Epilogue epilogue, typename T::Element* activated,
                         typename T::Element* hidden_gradients, float* weight_gradients) {
  const int64_t width = epilogue == SWIGLU ? 2 * inner : inner;
#pragma omp for schedule(static)
  for (int64_t m = 0; m < all.number; ++m) {
    const __m512 weight = _mm512_set1_ps(all.weights[m]);
    __m512 product = _mm512_setzero_ps();
    for (int64_t column = 0; column < inner; column += LANES) {
      const __mmask16 lanes = lanes_of(inner - column);
      const auto* sums = hidden + m * width + column;
      auto* result = activated + m * inner + column;
      auto* to = hidden_gradients + m * width + column;
      const __m512 gradient = T::load(result, lanes), first = T::load(sums, lanes);
      const __m512 weighted = _mm512_mul_ps(weight, gradient);
      __m512 value;
      if (epilogue == SWIGLU) {
        const __m512 up = T::load(sums + inner, lanes);
        const __m512 share = _mm512_div_ps(_mm512_set1_ps(1.f), decay(first));
        const __m512 silu = _mm512_mul_ps(first, share);
        // SiLU' = share + SiLU (1 - share)
        const __m512 slope = _mm512_add_ps(share, _mm512_fnmadd_ps(silu, share, silu));
        value = _mm512_mul_ps(silu, up);
        T::store(to, lanes, _mm512_mul_ps(_mm512_mul_ps(weighted, up), slope));
        T::store(to + inner, lanes, _mm512_mul_ps(weighted, silu));
      } else {
        const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), first);
        value = _mm512_mul_ps(positive, positive);
        T::store(to, lanes, _mm512_mul_ps(_mm512_add_ps(positive, positive), weighted));
      }
      product = _mm512_fmadd_ps(gradient, value, product);
      T::store(result, lanes, _mm512_mul_ps(weight, value));
    }
    weight_gradients[m] = _mm512_reduce_add_ps(product);
  }
}

// Called by all threads: of each expert, the transposed `left` times its rows `right`. A job has few
// rows of the gradient, and all blocks of these come one after the other: so the pages that they
// share stay known to the processor, and new ones in its caches.
template <class T>
void weight_gradient(std::atomic<int64_t>& next, const typename T::Element* left, int64_t outputs,
                     Rows<typename T::Element> right, int64_t inputs, const Assignments& all,
                     const std::vector<int64_t>& first, const std::vector<int64_t>& starts,
                     typename T::Element* gradient) {
  using Element = typename T::Element;
  constexpr int64_t most = 240;
  const int64_t num_blocks = (inputs + BLOCK - 1) / BLOCK, chunks = (outputs + most - 1) / most;
  work<T>(next, all.num_experts * chunks * num_blocks, NONE, [&](int64_t task) {
    const int64_t expert = task / num_blocks / chunks, chunk = task / num_blocks % chunks;
    const int64_t row = outputs * chunk / chunks, column = task % num_blocks * BLOCK;
    const int64_t depth = starts[expert + 1] - starts[expert];
    Rows<Element> rows = right.from(first[expert]);
    rows.first += column;
    const Columns<T> source{rows, all.counts[expert], inputs - column};
    return Job<Columns<T>>{{left + outputs * starts[expert] + row * depth, depth, nullptr},
                           outputs * (chunk + 1) / chunks - row,
                           source,
                           depth / T::DEPTH,
                           gradient + (expert * outputs + row) * inputs + column,
                           inputs,
                           inputs - column,
                           nullptr,
                           0,
                           true};
  });
  _mm_sfence();
}

template <class T>
void run_backward(Rows<typename T::Element> x, Rows<typename T::Element> y_gradients,
                  int64_t num_tokens, const Assignments& all, const Stacks<T>& stacks,
                  const typename T::Element* hidden, Between<typename T::Element> between,
                  Gradients<typename T::Element> gradients, int num_threads) {
  const auto slices = slices_of(all.num_experts, all.counts);
  const ByToken by_token(all, num_tokens);
  // Where an expert's assignments begin, and where if its last step is full.
  std::vector<int64_t> first(all.num_experts + 1), starts(all.num_experts + 1);
  for (int64_t e = 0; e < all.num_experts; ++e) {
    first[e + 1] = first[e] + all.counts[e];
    starts[e + 1] = starts[e] + (all.counts[e] + T::DEPTH - 1) / T::DEPTH * T::DEPTH;
  }
  const int64_t width = stacks.width();
  const Assignments unweighted{all.number, all.num_experts, all.counts, all.tokens, nullptr};
  const DenseRows<T> outer({y_gradients.first, y_gradients.stride, all.tokens}, all.number,
                           stacks.hidden);
  x.indices = all.tokens;
  std::atomic<int64_t> next[4] = {};
#pragma omp parallel num_threads(num_threads)
  {
    [[maybe_unused]] const typename T::Session session;
    const auto given = outer.get();
    ragged_product<T>(next[0], given, slices,
                      TransposedParameters<T>{stacks.down, stacks.hidden, stacks.inner}, NONE,
                      {between.activated});
#pragma omp barrier
    activation_backward<T>(all, hidden, stacks.inner, stacks.epilogue, between.activated,
                           between.hidden, gradients.weights);
    ragged_product<T>(next[1], {between.hidden, width, nullptr}, slices,
                      TransposedParameters<T>{stacks.gate_up, width, stacks.hidden}, NONE,
                      {between.rows});
#pragma omp barrier
    combine<T>(between.rows, unweighted, by_token, num_tokens, stacks.hidden, gradients.x);
    if (gradients.down) {
      transpose_slices<T>(given, stacks.hidden, slices, starts, between.transposed);
      weight_gradient<T>(next[2], between.transposed, stacks.hidden,
                         {between.activated, stacks.inner, nullptr}, stacks.inner, all, first,
                         starts, gradients.down);
#pragma omp barrier
    }
    if (gradients.gate_up) {
      transpose_slices<T>({between.hidden, width, nullptr}, width, slices, starts,
                          between.transposed);
      weight_gradient<T>(next[3], between.transposed, width, x, stacks.hidden, all, first, starts,
                         gradients.gate_up);
    }
  }
}
