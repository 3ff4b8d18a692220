#include "packed_s8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../operators.h"

#ifdef HEED_X86

#include "vector.h"

enum { PANEL = 16, HALVES = PANEL / LANES, FOUR = 4, LINE = PANEL * FOUR, TILE_ROWS = 6, MOST_STEPS = 255 };
static const float LEAST = 1e-12f; /* a row of equal values has a step, too */

static long fours(long values) { return (values + FOUR - 1) / FOUR; }
long bytes_panels(const Bytes *bytes) { return (bytes->channels + PANEL - 1) / PANEL; }
size_t bytes_size(const Bytes *bytes) { return bytes_panels(bytes) * fours(bytes->values) * LINE; }

bool bytes_allocate(Bytes *bytes, long channels, long values) {
    bytes->channels = channels, bytes->values = values;
    long padded = bytes_panels(bytes) * PANEL;
    bytes->weights = aligned_alloc(LINE, bytes_size(bytes));
    bytes->scales = calloc(2 * padded, sizeof(float));
    bytes->sums = bytes->scales + padded;
    return bytes->weights && bytes->scales;
}

void bytes_free(Bytes *bytes) {
    free(bytes->weights);
    free(bytes->scales);
}

void bytes_of(Bytes *bytes, const signed char *w, const float *scales, const float *sums) {
    long channels = bytes->channels;
    memset(bytes->weights, 0, bytes_size(bytes));
    for (long k = 0; k < bytes->values; k++)
        for (long m = 0; m < channels; m++)
            bytes->weights[((m / PANEL * fours(bytes->values) + k / FOUR) * PANEL + m % PANEL) * FOUR + k % FOUR] =
                w[k * channels + m];
    memcpy(bytes->scales, scales, channels * sizeof *scales);
    memcpy(bytes->sums, sums, channels * sizeof *sums);
}

bool steps_allocate(Steps *steps, long rows, long values) {
    steps->rows = rows, steps->values = values;
    steps->steps = calloc(rows, fours(values) * FOUR);
    steps->lowest = malloc(2 * rows * sizeof(float));
    steps->step = steps->lowest + rows;
    return steps->steps && steps->lowest;
}

void steps_free(Steps *steps) {
    free(steps->steps);
    free(steps->lowest);
}

/* What is no number spoils its row: times zero it is none still. */
HERE static void look_through(const float *x, long values, float *lowest, float *width) {
    float low = x[0], high = x[0], spoilt = 0;
    long k = 0;
    if (values >= LANES) {
        __m256 least = _mm256_loadu_ps(x), most = least, none = _mm256_setzero_ps();
        for (; k + LANES <= values; k += LANES) {
            __m256 here = _mm256_loadu_ps(x + k);
            least = _mm256_min_ps(least, here), most = _mm256_max_ps(most, here);
            none = _mm256_add_ps(none, _mm256_mul_ps(here, _mm256_setzero_ps()));
        }
        low = -largest_lane(_mm256_xor_ps(least, _mm256_set1_ps(-0.0f))), high = largest_lane(most);
        spoilt = add_lanes(none);
    }
    for (; k < values; k++) low = x[k] < low ? x[k] : low, high = x[k] > high ? x[k] : high, spoilt += x[k] * 0;
    *lowest = low + spoilt, *width = high - low > LEAST ? high - low : LEAST;
}

HERE static void write_steps(const float *x, long values, float lowest, float step, unsigned char *steps) {
    for (long k = 0; k < values; k += LANES) {
        __m256 above = _mm256_sub_ps(load(x + k, values - k), _mm256_set1_ps(lowest));
        __m256i whole = _mm256_cvtps_epi32(_mm256_div_ps(above, _mm256_set1_ps(step)));
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        unsigned char bytes[LANES];
        _mm_storel_epi64((__m128i *)bytes, _mm_packus_epi16(words, words));
        memcpy(steps + k, bytes, values - k < LANES ? values - k : LANES);
    }
}

void steps_of(Steps *steps, const float *x, long first, long last) {
    long values = steps->values;
    for (long t = first; t < last; t++) {
        float width;
        look_through(x + t * values, values, &steps->lowest[t], &width);
        steps->step[t] = width * (1.0f / MOST_STEPS);
        write_steps(x + t * values, values, steps->lowest[t], steps->step[t],
                    steps->steps + t * fours(values) * FOUR);
    }
}

/* Sums of some rows with a panel. `next` is a panel that will be needed soon, or null. */
INLINE void multiply_tile(const int rows, const bool asks, const unsigned char *steps, const signed char *weights,
                          long depth, const char *next, __m256i sums[TILE_ROWS][HALVES]) {
    const __m256i ones = _mm256_set1_epi16(1);
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) sums[row][half] = _mm256_setzero_si256();
    for (long four = 0; four < depth; four++, weights += LINE) {
        if (asks) _mm_prefetch(next + four * LINE, _MM_HINT_T1);
        UNROLLED for (int row = 0; row < rows; row++) {
            int values;
            memcpy(&values, steps + (row * depth + four) * FOUR, FOUR);
            __m256i value = _mm256_set1_epi32(values);
            UNROLLED for (int half = 0; half < HALVES; half++) {
                __m256i weight = _mm256_load_si256((const __m256i *)(weights + half * LINE / 2));
                __m256i both = _mm256_madd_epi16(_mm256_maddubs_epi16(value, weight), ones);
                sums[row][half] = _mm256_add_epi32(sums[row][half], both);
            }
        }
    }
}

INLINE void finish(const int rows, const Bytes *bytes, const Steps *steps, long first_row, long panel,
                   const __m256i sums[TILE_ROWS][HALVES], const float *bias, float *y) {
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) {
            long channel = panel * PANEL + half * LANES, left = bytes->channels - channel, t = first_row + row;
            if (left <= 0) continue;
            __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[row][half]), _mm256_loadu_ps(bytes->scales + channel));
            __m256 base = _mm256_fmadd_ps(_mm256_loadu_ps(bytes->sums + channel), _mm256_set1_ps(steps->lowest[t]),
                                          load(bias + channel, left));
            value = _mm256_fmadd_ps(value, _mm256_set1_ps(steps->step[t]), base);
            store(y + t * bytes->channels + channel, left, value);
        }
}

INLINE void multiply_rows(const int rows, const Bytes *bytes, const Steps *steps, long first_row, long panel,
                          const char *next, const float *bias, float *y) {
    __m256i sums[TILE_ROWS][HALVES];
    long depth = fours(bytes->values);
    const unsigned char *from = steps->steps + first_row * depth * FOUR;
    const signed char *weights = bytes->weights + panel * depth * LINE;
    if (next)
        multiply_tile(rows, true, from, weights, depth, next, sums);
    else
        multiply_tile(rows, false, from, weights, depth, next, sums);
    finish(rows, bytes, steps, first_row, panel, sums, bias, y);
}

HERE static void multiply_panel(const Bytes *bytes, const Steps *steps, long panel, const float *bias, float *y) {
    long tiles = (steps->rows + TILE_ROWS - 1) / TILE_ROWS, done = 0, size = fours(bytes->values) * LINE;
    const char *next = panel + 1 < bytes_panels(bytes) ? (const char *)bytes->weights + (panel + 1) * size : NULL;
    for (long tile = 0; tile < tiles; tile++, next = NULL) {
        long here = (steps->rows - done + tiles - tile - 1) / (tiles - tile);
        switch (here) {
        case 1: multiply_rows(1, bytes, steps, done, panel, next, bias, y); break;
        case 2: multiply_rows(2, bytes, steps, done, panel, next, bias, y); break;
        case 3: multiply_rows(3, bytes, steps, done, panel, next, bias, y); break;
        case 4: multiply_rows(4, bytes, steps, done, panel, next, bias, y); break;
        case 5: multiply_rows(5, bytes, steps, done, panel, next, bias, y); break;
        default: multiply_rows(TILE_ROWS, bytes, steps, done, panel, next, bias, y);
        }
        done += here;
    }
}

void bytes_multiply(const Bytes *bytes, const Steps *steps, long first, long last, const float *bias, float *y) {
    for (long panel = first; panel < last; panel++) multiply_panel(bytes, steps, panel, bias, y);
}

#endif
