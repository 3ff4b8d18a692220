/* For code that takes eight numbers at a time, on CPUs with AVX2 and FMA. Functions are right to about the last bit of
 * a float32. */

#pragma once

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))
/* What is called where its sizes are known: its loops are gone there, and its arrays are registers. */
#define INLINE __attribute__((always_inline, target("avx2,fma"))) static inline
#define UNROLLED _Pragma("GCC unroll 8")

enum { LANES = 8 };

/* Eight int32, for sums that a loop carries. (__m256i is four int64 to gcc 12: it converts such sums in each step, and
 * keeps two copies of them.) */
typedef int Int32x8 __attribute__((vector_size(LANES * sizeof(int)), may_alias));

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

/* A polynomial, highest power first: `count` factors (Horner's rule). */
INLINE __m256 polynomial(__m256 x, const int count, const float *factors) {
    __m256 y = _mm256_set1_ps(factors[0]);
    UNROLLED for (int i = 1; i < count; i++) y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(factors[i]));
    return y;
}

/* e^x for x <= 0, and 0 where that is below float32's normal range. NaN stays NaN.
 *
 * e^x = 2^(n + r), n whole, and 2^r is a polynomial. Adding `rounds` leaves n in the lowest bits, from where it goes to
 * the exponent's; log2 e is taken in two parts, so that r has all of its bits. */
INLINE __m256 exp_vector(__m256 x) {
    static const float FACTORS[] = {1.53458226e-4f, 1.33999356e-3f, 9.61848907e-3f, 5.55032864e-2f,
                                    0.240226462f,   0.693147182f,   1};
    __m256 rounds = _mm256_set1_ps(3 << 22), log = _mm256_set1_ps(1.44269504f), rest = _mm256_set1_ps(1.92596e-8f);
    __m256 n = _mm256_fmadd_ps(x, log, rounds);
    __m256 r = _mm256_fmadd_ps(x, rest, _mm256_fmsub_ps(x, log, _mm256_sub_ps(n, rounds)));
    __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    __m256i power = _mm256_add_epi32(_mm256_castps_si256(polynomial(r, 7, FACTORS)), exponent);
    __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-87.3f), _CMP_LT_OQ), none = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_blendv_ps(_mm256_andnot_ps(tiny, _mm256_castsi256_ps(power)), x, none);
}

/* x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel, 2016).
 *
 * That is max(x, 0) less a e^(-a^2 / 2) q(a), where a = |x| and q falls slowly: a polynomial, fitted so that all of it
 * is off by at most 4e-9, two powers of it at a time. From 14 on e^(-a^2 / 2) is 0. */
INLINE __m256 gelu_vector(__m256 x) {
    static const float FACTORS[][2] = {{-9.77164632e-7f, 1.33759322e-5f}, {-1.11095214e-4f, 6.34540804e-4f},
                                       {-2.69592763e-3f, 9.06296913e-3f}, {-2.54078694e-2f, 6.17849566e-2f},
                                       {-0.132702693f, 0.249936193f},     {-0.398934931f, 0.499999702f}};
    __m256 a = _mm256_min_ps(_mm256_set1_ps(14), _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x)); /* NaN stays NaN */
    __m256 square = _mm256_mul_ps(a, a), q = _mm256_set1_ps(3.23971747e-8f);
    UNROLLED for (int i = 0; i < 6; i++)
        q = _mm256_fmadd_ps(q, square, polynomial(a, 2, FACTORS[i]));
    __m256 less = _mm256_mul_ps(_mm256_mul_ps(q, a), exp_vector(_mm256_mul_ps(square, _mm256_set1_ps(-0.5f))));
    return _mm256_sub_ps(_mm256_max_ps(x, _mm256_setzero_ps()), less);
}
