/* The kernels of the operators Gelu and AddNorm, for CPUs with AVX2. */

#include <math.h>

#include "../platform.h"

#ifdef HEED_X86

#include "kernels.h"
#include "vector.h"

AVX2 void avx2_gelu(const float *x, long count, float *out) {
    for (long i = 0; i < count; i += LANES) store(out + i, count - i, gelu_vector(load(x + i, count - i)));
}

/* The sum is written where the result will be, and read from there twice more. */
AVX2 static void norm_row(const Norm *norm, const float *x, const float *y, float *out) {
    long width = norm->width;
    __m256 sum = _mm256_setzero_ps(), squares = _mm256_setzero_ps();
    for (long d = 0; d < width; d += LANES) {
        __m256 both = _mm256_add_ps(load(x + d, width - d), load(y + d, width - d));
        store(out + d, width - d, both);
        sum = _mm256_add_ps(sum, both);
    }
    __m256 mean = _mm256_set1_ps(add_lanes(sum) / width);
    for (long d = 0; d < width; d += LANES) {
        __m256 off = _mm256_sub_ps(load(out + d, width - d), mean);
        if (width - d < LANES) off = _mm256_and_ps(off, _mm256_castsi256_ps(lanes_left(width - d)));
        squares = _mm256_fmadd_ps(off, off, squares);
    }
    float variance = add_lanes(squares) / width;
    /* Of a variance that overflows the root's inverse is 0, and the row would be the bias: 0 times infinity is NaN. */
    __m256 scale = _mm256_set1_ps(1 / sqrtf(variance + norm->epsilon) + 0 * variance);
    for (long d = 0; d < width; d += LANES) {
        __m256 normed = _mm256_mul_ps(_mm256_sub_ps(load(out + d, width - d), mean), scale);
        normed = _mm256_fmadd_ps(normed, load(norm->weight + d, width - d), load(norm->bias + d, width - d));
        store(out + d, width - d, normed);
    }
}

void avx2_add_norm(const Norm *norm, const float *x, const float *y, long rows, float *out) {
    for (long row = 0; row < rows; row++)
        norm_row(norm, x + row * norm->width, y + row * norm->width, out + row * norm->width);
}

#endif
