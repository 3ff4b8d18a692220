/* For code that takes eight numbers at a time, on CPUs with AVX2 and FMA. Functions are right to about the last bit of
 * a float32. */

#pragma once

#include <immintrin.h>

#define HERE __attribute__((target("avx2,fma")))
/* What is called where its sizes are known: its loops are gone there, and its arrays are registers. */
#define INLINE __attribute__((always_inline, target("avx2,fma"))) static inline
#define UNROLLED _Pragma("GCC unroll 8")

enum { LANES = 8 };

/* The first `left` lanes, or all of them. */
INLINE __m256i lanes_left(long left) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(left < LANES ? (int)left : LANES),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* What is at x, 0 beyond the `left` numbers that are there; and the way back. (Some CPUs take tens of times as long for
 * a store under a mask as for a whole one.) */
INLINE __m256 load(const float *x, long left) {
    return left < LANES ? _mm256_maskload_ps(x, lanes_left(left)) : _mm256_loadu_ps(x);
}

INLINE void store(float *x, long left, __m256 lanes) {
    if (left < LANES)
        _mm256_maskstore_ps(x, lanes_left(left), lanes);
    else
        _mm256_storeu_ps(x, lanes);
}

/* Lanes together: pairs four apart, then two, then one. */
INLINE float add_lanes(__m256 x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float largest_lane(__m256 x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* e^x for x <= 0, and 0 where that is below float32's normal range. NaN stays NaN.
 *
 * x = n ln 2 + r, and e^r is a polynomial (Cephes, expf). ln 2 is taken off in two parts, the first one exact. */
INLINE __m256 exp_of(__m256 x) {
    static const float FACTORS[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                    4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 y = _mm256_set1_ps(FACTORS[0]);
    for (int i = 1; i < 6; i++) y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(FACTORS[i]));
    y = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(y, r), r, r), _mm256_set1_ps(1));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-87.3f), _CMP_LT_OQ);
    return _mm256_andnot_ps(tiny, _mm256_mul_ps(y, _mm256_castsi256_ps(power)));
}

/* x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel, 2016).
 *
 * With z = |x| / sqrt 2, what lies beyond is erfc(z) = e^(-z^2) p(t), t = 1 / (1 + 0.7 z): the form of Hastings (1955),
 * with a longer polynomial, fitted so that x erfc(z) is off by at most 5e-9. */
INLINE __m256 gelu_of(__m256 x) {
    static const float FACTORS[] = {0.0510995761f, -0.358117938f,  1.03747857f,  -1.4979353f,
                                    0.897264302f,  0.0365698189f, 0.442396015f, 0.391244918f};
    __m256 sign = _mm256_set1_ps(-0.0f), z = _mm256_mul_ps(_mm256_andnot_ps(sign, x), _mm256_set1_ps(0.707106781f));
    __m256 t = _mm256_div_ps(_mm256_set1_ps(1), _mm256_fmadd_ps(z, _mm256_set1_ps(0.7f), _mm256_set1_ps(1)));
    __m256 p = _mm256_set1_ps(FACTORS[0]);
    for (int i = 1; i < 8; i++) p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(FACTORS[i]));
    __m256 beyond = _mm256_mul_ps(_mm256_mul_ps(p, t), exp_of(_mm256_xor_ps(sign, _mm256_mul_ps(z, z))));
    __m256 half = _mm256_mul_ps(_mm256_mul_ps(x, _mm256_set1_ps(0.5f)), beyond);
    __m256 negative = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ);
    return _mm256_blendv_ps(_mm256_sub_ps(x, half), half, negative);
}
