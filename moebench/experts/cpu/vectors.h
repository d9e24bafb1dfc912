// Vectors of AVX-512: the two types of numbers, a transpose, and e^x.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

constexpr int LANES = 16;  // fp32 numbers, or words, in a vector

// The lanes of a vector that lie before the end of a row, of which `left` elements are left.
inline __mmask16 lanes_of(int64_t left) {
  return left >= LANES ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
}

// A word holds the DEPTH numbers that one instruction multiplies and adds up.
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
  static __m512i widened(const Element* from, __mmask16 lanes) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from));
  }
  static __m512 load(const Element* from, __mmask16 lanes) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(widened(from, lanes), 16));
  }
  static void store(Element* to, __mmask16 lanes, __m512 value) {
    _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh(value));
  }
  // Store two vectors past the caches, in whole lines.
  static void stream(Element* to, __m512 first, __m512 second) {
    _mm512_stream_si512((__m512i*)to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
  }
  // Words of two rows; `second` null: zeros.
  static __m512i words(const Element* first, const Element* second, __mmask16 lanes) {
    const __m512i low = widened(first, lanes);
    return second ? _mm512_or_si512(low, _mm512_slli_epi32(widened(second, lanes), 16)) : low;
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
  static void stream(Element* to, __m512 first, __m512 second) {
    _mm512_stream_ps(to, first);
    _mm512_stream_ps(to + LANES, second);
  }
  static __m512i words(const Element* row, const Element*, __mmask16 lanes) {
    return _mm512_castps_si512(load(row, lanes));
  }
};

// Word j of vector i becomes word i of vector j.
inline void transpose(__m512i (&rows)[LANES]) {
  __m512i half[LANES];
  for (int i = 0; i < LANES; i += 2) {
    half[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    half[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < LANES; i += 4)
    for (int j = 0; j < 2; ++j) {
      rows[i + 2 * j] = _mm512_unpacklo_epi64(half[i + j], half[i + 2 + j]);
      rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(half[i + j], half[i + 2 + j]);
    }
  // rows[i + j]: of four rows from i on, column j of each quarter.
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 2; ++i) {
      const __m512i a = rows[8 * i + j], b = rows[8 * i + 4 + j];
      half[8 * i + j] = _mm512_shuffle_i32x4(a, b, 0x88);      // quarters 0 and 2 of both
      half[8 * i + 4 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);  // quarters 1 and 3
    }
  for (int j = 0; j < 4; ++j)
    for (int odd = 0; odd < 2; ++odd) {
      const __m512i a = half[4 * odd + j], b = half[8 + 4 * odd + j];
      rows[4 * odd + j] = _mm512_shuffle_i32x4(a, b, 0x88);
      rows[8 + 4 * odd + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
    }
}

// e^x, to a relative error of some 1e-7 (1 + |x|): a polynomial of 2^f on [-1/2, 1/2], scaled by
// 2^n. What no float can hold, 88 stands for.
inline __m512 exponential(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-88.f)), _mm512_set1_ps(88.f));
  const __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT);
  const __m512 fraction = _mm512_mul_ps(_mm512_sub_ps(power, whole), _mm512_set1_ps(0.69314718f));
  __m512 sum = _mm512_set1_ps(1.f / 5040);
  for (const float factorial : {720.f, 120.f, 24.f, 6.f, 2.f, 1.f, 1.f})
    sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(1.f / factorial));
  return _mm512_scalef_ps(sum, whole);
}

// 1 + e^-x, over which x is SiLU.
inline __m512 decay(__m512 x) {
  const __m512 negative = _mm512_sub_ps(_mm512_setzero_ps(), x);
  return _mm512_add_ps(_mm512_set1_ps(1.f), exponential(negative));
}
