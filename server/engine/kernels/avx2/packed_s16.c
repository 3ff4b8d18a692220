#include "packed_s16.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../operators.h"

#ifdef HEED_X86

#include "vector.h"

enum {
    PANEL = 16,
    HALVES = PANEL / LANES,
    TWO = 2,
    LINE = PANEL * TWO, /* words: two values' weights in a panel */
    TILE_ROWS = 6,
    MOST = 32767,       /* of a value, */
    MOST_WEIGHT = 2047, /* of a weight: */
    DEPTH = 32 / TWO,   /* pairs of values whose products 32 bits hold; 32,767 * 2,047 * 32 < 2^31 */
};
static const float LEAST = 1e-30f; /* a row of zeros has a step, too */

static long twos(long values) { return (values + TWO - 1) / TWO; }
long words_panels(const Words *words) { return (words->channels + PANEL - 1) / PANEL; }
size_t words_size(const Words *words) { return words_panels(words) * twos(words->values) * LINE * sizeof(short); }

bool words_allocate(Words *words, long channels, long values) {
    words->channels = channels, words->values = values;
    words->weights = aligned_alloc(LINE * sizeof(short), words_size(words));
    words->scales = calloc(words_panels(words) * PANEL, sizeof(float));
    return words->weights && words->scales;
}

void words_free(Words *words) {
    free(words->weights);
    free(words->scales);
}

void words_of(Words *words, const float *w, bool transposed) {
    long channels = words->channels, values = words->values;
    memset(words->weights, 0, words_size(words));
    for (long m = 0; m < channels; m++) {
        const float *first = w + (transposed ? m : m * values);
        long apart = transposed ? channels : 1;
        float largest = LEAST, none = 0; /* what is no number spoils its channel: times zero it is none still */
        for (long k = 0; k < values; k++)
            largest = fmaxf(largest, fabsf(first[k * apart])), none += first[k * apart] * 0;
        words->scales[m] = largest / MOST_WEIGHT + none;
        short *panel = words->weights + m / PANEL * twos(values) * LINE;
        for (long k = 0; k < values; k++)
            panel[(k / TWO * PANEL + m % PANEL) * TWO + k % TWO] = (short)lrintf(first[k * apart] * (MOST_WEIGHT / largest));
    }
}

bool rounded_allocate(Rounded *rounded, long rows, long values) {
    rounded->rows = rows, rounded->values = values;
    rounded->words = calloc(rows, twos(values) * TWO * sizeof(short));
    rounded->scales = malloc(rows * sizeof(float));
    return rounded->words && rounded->scales;
}

void rounded_free(Rounded *rounded) {
    free(rounded->words);
    free(rounded->scales);
}

/* What is no number spoils its row: times zero it is none still. */
HERE static float largest_of(const float *x, long values) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps(), none = _mm256_setzero_ps();
    for (long k = 0; k < values; k += LANES) {
        __m256 here = load(x + k, values - k);
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, here));
        none = _mm256_add_ps(none, _mm256_mul_ps(here, _mm256_setzero_ps()));
    }
    float largest = largest_lane(most);
    return (largest > LEAST ? largest : LEAST) + add_lanes(none);
}

HERE static void round_row(const float *x, long values, float factor, short *words) {
    for (long k = 0; k < values; k += LANES) {
        __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(load(x + k, values - k), _mm256_set1_ps(factor)));
        __m128i eight = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        if (k + LANES <= values)
            _mm_storeu_si128((__m128i *)(words + k), eight);
        else
            memcpy(words + k, &eight, (values - k) * sizeof(short));
    }
}

void rounded_of(Rounded *rounded, const float *x, long first, long last) {
    long values = rounded->values;
    for (long t = first; t < last; t++) {
        float largest = largest_of(x + t * values, values);
        rounded->scales[t] = largest / MOST;
        round_row(x + t * values, values, MOST / largest, rounded->words + t * twos(values) * TWO);
    }
}

/* Exact sums of some rows with so many pairs of a panel's values. `next` is asked for, if it is not null. */
INLINE void multiply_pairs(const int rows, const bool asks, const short *words, long width, const short *weights,
                           long pairs, const char *next, __m256i sums[TILE_ROWS][HALVES]) {
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) sums[row][half] = _mm256_setzero_si256();
    for (long pair = 0; pair < pairs; pair++, weights += LINE, words += TWO) {
        if (asks) _mm_prefetch(next + pair * (LINE * sizeof(short)), _MM_HINT_T1);
        UNROLLED for (int row = 0; row < rows; row++) {
            int two;
            memcpy(&two, words + row * width, sizeof two);
            __m256i value = _mm256_set1_epi32(two);
            UNROLLED for (int half = 0; half < HALVES; half++) {
                __m256i weight = _mm256_load_si256((const __m256i *)(weights + half * LINE / HALVES));
                sums[row][half] = _mm256_add_epi32(sums[row][half], _mm256_madd_epi16(value, weight));
            }
        }
    }
}

INLINE void multiply_rows(const int rows, const Words *weights, const Rounded *rounded, long first_row, long panel,
                          const char *next, const float *bias, float *y) {
    __m256i sums[TILE_ROWS][HALVES];
    __m256 added[TILE_ROWS][HALVES];
    long all = twos(weights->values), width = all * TWO;
    const short *words = rounded->words + first_row * width, *from = weights->weights + panel * all * LINE;
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) added[row][half] = _mm256_setzero_ps();
    for (long done = 0; done < all; done += DEPTH) {
        long pairs = all - done < DEPTH ? all - done : DEPTH;
        if (next)
            multiply_pairs(rows, true, words + done * TWO, width, from + done * LINE, pairs,
                           next + done * LINE * sizeof(short), sums);
        else
            multiply_pairs(rows, false, words + done * TWO, width, from + done * LINE, pairs, next, sums);
        UNROLLED for (int row = 0; row < rows; row++)
            UNROLLED for (int half = 0; half < HALVES; half++)
                added[row][half] = _mm256_add_ps(added[row][half], _mm256_cvtepi32_ps(sums[row][half]));
    }
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) {
            long channel = panel * PANEL + half * LANES, left = weights->channels - channel, t = first_row + row;
            if (left <= 0) continue;
            __m256 value = _mm256_mul_ps(added[row][half], _mm256_loadu_ps(weights->scales + channel));
            value = _mm256_fmadd_ps(value, _mm256_set1_ps(rounded->scales[t]), load(bias + channel, left));
            store(y + t * weights->channels + channel, left, value);
        }
}

HERE static void multiply_panel(const Words *weights, const Rounded *rounded, long panel, const float *bias, float *y) {
    long tiles = (rounded->rows + TILE_ROWS - 1) / TILE_ROWS, done = 0;
    long size = twos(weights->values) * LINE * sizeof(short);
    const char *next = panel + 1 < words_panels(weights) ? (const char *)weights->weights + (panel + 1) * size : NULL;
    for (long tile = 0; tile < tiles; tile++, next = NULL) {
        long here = (rounded->rows - done + tiles - tile - 1) / (tiles - tile);
        switch (here) {
        case 1: multiply_rows(1, weights, rounded, done, panel, next, bias, y); break;
        case 2: multiply_rows(2, weights, rounded, done, panel, next, bias, y); break;
        case 3: multiply_rows(3, weights, rounded, done, panel, next, bias, y); break;
        case 4: multiply_rows(4, weights, rounded, done, panel, next, bias, y); break;
        case 5: multiply_rows(5, weights, rounded, done, panel, next, bias, y); break;
        default: multiply_rows(TILE_ROWS, weights, rounded, done, panel, next, bias, y);
        }
        done += here;
    }
}

void words_multiply(const Words *weights, const Rounded *rounded, long first, long last, const float *bias, float *y) {
    for (long panel = first; panel < last; panel++) multiply_panel(weights, rounded, panel, bias, y);
}

#endif
