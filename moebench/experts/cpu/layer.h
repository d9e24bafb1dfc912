// A layer's experts: routing sorted by expert, both matmuls, and each token's weighted sum.

#pragma once

#include "ragged.h"

// What is wrong in either would have a thread read or write anywhere.
inline bool add_up(int64_t num_experts, const int64_t* counts, int64_t num_assignments) {
  for (int64_t expert = 0; expert < num_experts; num_assignments -= counts[expert++])
    if (counts[expert] < 0 || counts[expert] > num_assignments) return false;
  return num_assignments == 0;
}

inline bool are_below(int64_t limit, const int64_t* indices, int64_t number) {
  return std::all_of(indices, indices + number,
                     [=](int64_t index) { return 0 <= index && index < limit; });
}

// Assignments, sorted by expert. weights null: all are 1.
struct Assignments {
  int64_t number, num_experts;
  const int64_t* counts;
  const int64_t* tokens;
  const float* weights;
};

// The places of each token's assignments: order[ends[token - 1]] to order[ends[token]].
struct ByToken {
  std::vector<int64_t> ends, order;

  ByToken(const Assignments& all, int64_t num_tokens) : ends(num_tokens + 1), order(all.number) {
    for (int64_t m = 0; m < all.number; ++m) ++ends[all.tokens[m] + 1];
    for (int64_t token = 0; token < num_tokens; ++token) ends[token + 1] += ends[token];
    for (int64_t m = 0; m < all.number; ++m) order[ends[all.tokens[m]]++] = m;
  }
};

// The slots of a router, [tokens][slots], sorted by expert; expert `num_experts`: an empty slot.
struct SortedSlots {
  std::vector<int64_t> counts, tokens;
  std::vector<float> weights;

  SortedSlots(const int64_t* experts, const float* slot_weights, int64_t num_tokens,
              int64_t num_slots, int64_t num_experts)
      : counts(num_experts + 1) {
    for (int64_t i = 0; i < num_tokens * num_slots; ++i) ++counts[experts[i]];
    std::vector<int64_t> next(num_experts + 1);
    for (int64_t e = 0; e < num_experts; ++e) next[e + 1] = next[e] + counts[e];
    tokens.resize(next[num_experts]);
    weights.resize(next[num_experts]);
    for (int64_t token = 0, i = 0; token < num_tokens; ++token)
      for (int64_t slot = 0; slot < num_slots; ++slot, ++i)
        if (experts[i] < num_experts) {
          const int64_t place = next[experts[i]]++;
          tokens[place] = token;
          weights[place] = slot_weights[i];
        }
  }
  Assignments get() const {
    return {int64_t(tokens.size()), int64_t(counts.size()) - 1, counts.data(), tokens.data(),
            weights.data()};
  }
};

// Called by all threads: y[token] = the sum of its assignments' weighted rows, in their order.
template <class T>
void combine(const typename T::Element* rows, const Assignments& all, const ByToken& by_token,
             int64_t num_tokens, int64_t outputs, typename T::Element* y) {
#pragma omp for schedule(static)
  for (int64_t token = 0; token < num_tokens; ++token)
    for (int64_t column = 0; column < outputs; column += LANES) {
      const __mmask16 lanes = lanes_of(outputs - column);
      __m512 sum = _mm512_setzero_ps();
      for (int64_t i = token ? by_token.ends[token - 1] : 0; i < by_token.ends[token]; ++i) {
        const int64_t place = by_token.order[i];
        const __m512 row = T::load(rows + place * outputs + column, lanes);
        const __m512 weight = _mm512_set1_ps(all.weights ? all.weights[place] : 1.f);
        sum = _mm512_fmadd_ps(weight, row, sum);
      }
      T::store(y + token * outputs + column, lanes, sum);
    }
}

// Rows of the input, both stacks of matrices, and memory for what lies between.
template <class T, class Matrices>
struct Layer {
  using Element = typename T::Element;

  Rows<Element> x;  // a row for each token
  int64_t num_tokens;
  Matrices gate_up, down;
  Epilogue epilogue;
  Element* hidden;  // [assignments][width] sums of the first matmul; null: they are not kept
  Element* activated;  // [assignments][inner]
  Element* outputs;    // [assignments][hidden]
};

template <class T, class Matrices>
void run(const Layer<T, Matrices>& layer, const Assignments& all, typename T::Element* y,
         int num_threads) {
  const auto slices = slices_of(all.num_experts, all.counts);
  const ByToken by_token(all, layer.num_tokens);
  const DenseRows<T> rows({layer.x.first, layer.x.stride, all.tokens}, all.number,
                          layer.gate_up.inputs);
  std::atomic<int64_t> first{0}, second{0};
#pragma omp parallel num_threads(num_threads)
  {
    [[maybe_unused]] const typename T::Session session;
    ragged_product<T>(first, rows.get(), slices, layer.gate_up, layer.epilogue,
                      {layer.activated, layer.hidden});
#pragma omp barrier
    ragged_product<T>(second, {layer.activated, layer.down.inputs, nullptr}, slices, layer.down,
                      NONE, {layer.outputs});
#pragma omp barrier
    combine<T>(layer.outputs, all, by_token, layer.num_tokens, layer.down.outputs, y);
  }
}
