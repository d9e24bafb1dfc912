// The functions of a library, for a type `T` of numbers; each is called as NAME_TYPE.
//
// All do nothing and return false where counts or indices do not belong together.

#pragma once

#include "training.h"

// x: `num_rows` rows of `inputs`, `stride` elements apart. indices: the row of each assignment,
// sorted by expert; null: each has its own. counts: assignments of each expert. matrices: in
// blocks, expert by expert. y: `outputs` for each assignment, dense.
template <class T, class Element = typename T::Element>
bool ragged_linear(const Element* x, int64_t num_rows, int64_t stride, const int64_t* indices,
                   int64_t num_assignments, int64_t num_experts, const int64_t* counts,
                   const Element* matrices, int64_t inputs, int64_t outputs, Element* y,
                   int epilogue, int num_threads) {
  if (!add_up(num_experts, counts, num_assignments)) return false;
  if (indices ? !are_below(num_rows, indices, num_assignments) : num_rows < num_assignments)
    return false;
  const auto slices = slices_of(num_experts, counts);
  const DenseRows<T> rows({x, stride, indices}, num_assignments, inputs);
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(num_threads)
  {
    [[maybe_unused]] const typename T::Session session;
    ragged_product<T>(next, rows.get(), slices, Blocks<T>{matrices, inputs, outputs},
                      Epilogue(epilogue), {y});
  }
  return true;
}

// rows: `outputs` for each assignment, dense. tokens, weights: where a row goes, and how much of
// it. y: `outputs` for each token, dense.
template <class T, class Element = typename T::Element>
bool combine_rows(const Element* rows, int64_t num_assignments, const int64_t* tokens,
                  const float* weights, int64_t num_tokens, int64_t outputs, Element* y,
                  int num_threads) {
  if (!are_below(num_tokens, tokens, num_assignments)) return false;
  const Assignments all{num_assignments, 0, nullptr, tokens, weights};
  const ByToken by_token(all, num_tokens);
#pragma omp parallel num_threads(num_threads)
  combine<T>(rows, all, by_token, num_tokens, outputs, y);
  return true;
}

// Assignments of a layer.
inline bool belong(const Assignments& all, int64_t num_tokens) {
  return add_up(all.num_experts, all.counts, all.number) &&
         are_below(num_tokens, all.tokens, all.number);
}

// A layer on matrices in blocks. tokens null: experts and weights are a router's slots,
// [num_tokens][number / num_tokens], which are sorted here, and expert `num_experts` is an empty
// slot. Otherwise assignments, sorted by expert, and `experts` is how many each expert has.
template <class T, class Element = typename T::Element>
bool experts(const Element* x, int64_t num_tokens, int64_t stride, int64_t number,
             int64_t num_experts, const int64_t* experts, const int64_t* tokens,
             const float* weights, const Element* gate_up, const Element* down, int64_t hidden,
             int64_t inner, int epilogue, Element* activated, Element* outputs, Element* y,
             int num_threads) {
  const Layer<T, Blocks<T>> layer{{x, stride, nullptr},  num_tokens,
                                  {gate_up, hidden, inner}, {down, inner, hidden},
                                  Epilogue(epilogue),    nullptr,
                                  activated,             outputs};
  if (tokens) {
    const Assignments all{number, num_experts, experts, tokens, weights};
    if (!belong(all, num_tokens)) return false;
    run(layer, all, y, num_threads);
    return true;
  }
  if (!are_below(num_experts + 1, experts, number)) return false;
  const SortedSlots sorted(experts, weights, num_tokens, num_tokens ? number / num_tokens : 0,
                           num_experts);
  run(layer, sorted.get(), y, num_threads);
  return true;
}

// A layer on parameters, for training. sums: those of the first matmul, for each assignment.
template <class T, class Element = typename T::Element>
bool train_forward(const Element* x, int64_t num_tokens, int64_t stride, int64_t number,
                   int64_t num_experts, const int64_t* counts, const int64_t* tokens,
                   const float* weights, const Element* gate_up, const Element* down,
                   int64_t hidden, int64_t inner, int epilogue, Element* sums, Element* activated,
                   Element* outputs, Element* y, int num_threads) {
  const Assignments all{number, num_experts, counts, tokens, weights};
  if (!belong(all, num_tokens)) return false;
  const Layer<T, Parameters<T>> layer{{x, stride, nullptr},     num_tokens,
                                      {gate_up, hidden, inner}, {down, inner, hidden},
                                      Epilogue(epilogue),       sums,
                                      activated,                outputs};
  run(layer, all, y, num_threads);
  return true;
}

// Its backward pass. sums: what the forward pass left; y_gradients: [num_tokens][hidden], dense.
// The next four are memory, see `Between`, and the last four results, see `Gradients`.
template <class T, class Element = typename T::Element>
bool train_backward(const Element* x, int64_t num_tokens, int64_t stride, int64_t number,
                    int64_t num_experts, const int64_t* counts, const int64_t* tokens,
                    const float* weights, const Element* gate_up, const Element* down,
                    int64_t hidden, int64_t inner, int epilogue, const Element* sums,
                    const Element* y_gradients, Element* activated, Element* hidden_gradients,
                    Element* rows, Element* transposed, Element* x_gradients,
                    float* weight_gradients, Element* gate_up_gradients, Element* down_gradients,
                    int num_threads) {
  const Assignments all{number, num_experts, counts, tokens, weights};
  if (!belong(all, num_tokens)) return false;
  run_backward<T>({x, stride, nullptr}, {y_gradients, hidden, nullptr}, num_tokens, all,
                  {gate_up, down, hidden, inner, Epilogue(epilogue)}, sums,
                  {activated, hidden_gradients, rows, transposed},
                  {x_gradients, weight_gradients, gate_up_gradients, down_gradients}, num_threads);
  return true;
}

// Pointers to the functions, by their names.
#define EXPORT(T, type)                            \
  extern "C" {                                     \
  auto* ragged_linear_##type = ragged_linear<T>;   \
  auto* combine_##type = combine_rows<T>;          \
  auto* experts_##type = experts<T>;               \
  auto* train_forward_##type = train_forward<T>;   \
  auto* train_backward_##type = train_backward<T>; \
  }
