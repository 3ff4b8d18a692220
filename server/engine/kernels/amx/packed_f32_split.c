#include "packed_f32_split.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../operators.h"

#ifdef HEED_X86

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HERE __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-int8")))
#define WRITTEN __asm__ volatile("" ::: "memory") /* tile loads do not tell the compiler that they read memory */

enum { TILE = GROUP * DEPTH, LANES = 16, SIDE_BY_SIDE = 4 };
static const float LARGEST[] = {0, 0x7f, 0x7f00, 0x7f7f00}; /* by digits; the last leaves room for rounding up */
static const float LEAST = 1e-30f;                          /* a row of zeros has a scale, too */

static long tiles_deep(long values) { return (values + DEPTH - 1) / DEPTH; }
static long groups_of(long rows) { return (rows + GROUP - 1) / GROUP; }
long digits_groups(const Digits *digits) { return groups_of(digits->rows); }
static signed char *group_tiles(const Digits *digits, long group) {
    return digits->tiles + group * tiles_deep(digits->values) * digits->digits * TILE;
}
static __mmask16 lanes(long left) { return left >= LANES ? 0xffff : left <= 0 ? 0 : (1 << left) - 1; }

bool digits_supported(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

size_t digits_size(const Digits *digits) {
    return (size_t)groups_of(digits->rows) * tiles_deep(digits->values) * digits->digits * TILE;
}

bool digits_allocate(Digits *digits, long rows, long values, int count) {
    digits->rows = rows, digits->values = values, digits->digits = count;
    digits->tiles = aligned_alloc(64, digits_size(digits));
    digits->scales = aligned_alloc(64, groups_of(rows) * GROUP * sizeof(float));
    return digits->tiles && digits->scales;
}

void digits_free(Digits *digits) {
    free(digits->tiles);
    free(digits->scales);
}

/* What makes integers of so many digits of a row's values. NaN and infinity have larger bits than any number, and spoil
 * their row's scale and with it the result, as they should. */
HERE static float to_integers(const float *x, long values, int digits) {
    const __m512i without_sign = _mm512_set1_epi32(0x7fffffff);
    __m512i largest = _mm512_castps_si512(_mm512_set1_ps(LEAST));
    for (long k = 0; k < values; k += LANES) {
        __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(lanes(values - k), x + k));
        largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, without_sign));
    }
    float found = _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(_mm512_reduce_max_epu32(largest))));
    return LARGEST[digits] / found;
}

/* The last digit, which is the lowest byte with its sign; `integers` keep the digits before it. */
HERE static __m128i take_digit(__m512i *integers) {
    __m128i digit = _mm512_cvtepi32_epi8(*integers);
    *integers = _mm512_srai_epi32(_mm512_add_epi32(*integers, _mm512_set1_epi32(128)), 8);
    return digit;
}

HERE void digits_of_left(Digits *digits, const float *x, long group) {
    long depth = tiles_deep(digits->values), values = digits->values;
    for (long t = group * GROUP; t < digits->rows && t < (group + 1) * GROUP; t++) {
        const float *row = x + t * values;
        signed char *tiles = group_tiles(digits, group) + t % GROUP * DEPTH;
        float scale = to_integers(row, values, digits->digits);
        digits->scales[t] = 1 / scale;
        for (long k = 0; k < depth * DEPTH; k += LANES) {
            __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes(values - k), row + k), _mm512_set1_ps(scale));
            __m512i integers = _mm512_cvtps_epi32(scaled);
            signed char *place = tiles + k / DEPTH * digits->digits * TILE + k % DEPTH;
            for (int digit = digits->digits - 1; digit >= 0; digit--)
                _mm_storeu_si128((__m128i *)(place + digit * TILE), take_digit(&integers));
        }
    }
}

/* Where a tile of the right side has a value: four of each channel side by side, and then the next four. */
static signed char *place_of(const Digits *digits, long m, long k) {
    return group_tiles(digits, m / GROUP) + k / DEPTH * digits->digits * TILE + k % DEPTH / SIDE_BY_SIDE * DEPTH +
           m % GROUP * SIDE_BY_SIDE + k % SIDE_BY_SIDE;
}

HERE void digits_of_right(Digits *digits, const float *w, bool transposed) {
    long values = digits->values, rows = digits->rows;
    float row[MOST_VALUES + LANES];
    memset(digits->tiles, 0, digits_size(digits));
    for (long m = 0; m < rows; m++) {
        for (long k = 0; k < values; k++) row[k] = transposed ? w[k * rows + m] : w[m * values + k];
        memset(row + values, 0, LANES * sizeof *row);
        float scale = to_integers(row, values, digits->digits);
        digits->scales[m] = 1 / scale;
        for (long k = 0; k < values; k += LANES) {
            __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + k), _mm512_set1_ps(scale)));
            for (int digit = digits->digits - 1; digit >= 0; digit--) {
                signed char taken[LANES];
                _mm_storeu_si128((__m128i *)taken, take_digit(&integers));
                for (long four = 0; four < LANES; four += SIDE_BY_SIDE)
                    memcpy(place_of(digits, m, k + four) + digit * TILE, taken + four, SIDE_BY_SIDE);
            }
        }
    }
}

void digits_of_int8(Digits *digits, const signed char *w, const float *scales) {
    memset(digits->tiles, 0, digits_size(digits));
    memcpy(digits->scales, scales, digits->rows * sizeof *scales);
    for (long k = 0; k < digits->values; k++)
        for (long m = 0; m < digits->rows; m++) *place_of(digits, m, k) = w[k * digits->rows + m];
}

HERE static void configure_tiles(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } configuration = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) configuration.bytes[tile] = DEPTH, configuration.rows[tile] = GROUP;
    WRITTEN;
    _tile_loadconfig(&configuration);
}

/* Asks for digits of another group of channels while this one is computed: from memory they take longer to come than a
 * short left side takes to multiply. (A function that only prefetches has no effect to the compiler: not inlined, it is
 * left out.) */
__attribute__((always_inline)) HERE static inline void prefetch(const signed char *tiles) {
    for (int byte = 0; byte < 3 * TILE; byte += 64) _mm_prefetch(tiles + byte, _MM_HINT_T1);
}

HERE static void zero_tiles(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

HERE static void store_tiles(int32_t *sums) {
    _tile_stored(0, sums, DEPTH);
    _tile_stored(1, sums + GROUP * GROUP, DEPTH);
    _tile_stored(2, sums + 2 * GROUP * GROUP, DEPTH);
    _tile_stored(3, sums + 3 * GROUP * GROUP, DEPTH);
}

/* The sums of a group of tokens with a group of channels: a matrix [GROUP, GROUP] for each weight that a product of two
 * digits can have, four of them. */
HERE static void three_by_three(const signed char *left, const signed char *right, const signed char *next, long depth,
                                int32_t *sums) {
    WRITTEN;
    zero_tiles();
    for (long deep = 0; deep < depth; deep++, left += 3 * TILE, right += 3 * TILE) {
        if (next) prefetch(next + deep * 3 * TILE);
        _tile_loadd(5, right, DEPTH);
        _tile_loadd(6, right + TILE, DEPTH);
        _tile_loadd(7, right + 2 * TILE, DEPTH);
        _tile_loadd(4, left, DEPTH);
        _tile_dpbssd(2, 4, 7);
        _tile_dpbssd(1, 4, 6);
        _tile_dpbssd(0, 4, 5);
        _tile_loadd(4, left + TILE, DEPTH);
        _tile_dpbssd(2, 4, 6);
        _tile_dpbssd(3, 4, 7);
        _tile_dpbssd(1, 4, 5);
        _tile_loadd(4, left + 2 * TILE, DEPTH);
        _tile_dpbssd(2, 4, 5);
        _tile_dpbssd(3, 4, 6);
    }
    store_tiles(sums);
}

/* Three matrices: all products of two digits. */
HERE static void two_by_two(const signed char *left, const signed char *right, long depth, int32_t *sums) {
    WRITTEN;
    zero_tiles();
    for (long deep = 0; deep < depth; deep++, left += 2 * TILE, right += 2 * TILE) {
        _tile_loadd(6, right, DEPTH);
        _tile_loadd(4, left, DEPTH);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, right + TILE, DEPTH);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, left + TILE, DEPTH);
        _tile_dpbssd(1, 5, 6);
        _tile_dpbssd(2, 5, 7);
    }
    store_tiles(sums);
}

/* Two matrices for each of two groups of channels: one alone would take less time than the tiles of its tokens. */
HERE static void two_by_one(const signed char *left, const signed char *right, const signed char *beside, long depth,
                            int32_t *sums) {
    WRITTEN;
    zero_tiles();
    for (long deep = 0; deep < depth; deep++, left += 2 * TILE, right += TILE, beside += TILE) {
        _tile_loadd(6, right, DEPTH);
        _tile_loadd(4, left, DEPTH);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, beside, DEPTH);
        _tile_dpbssd(2, 4, 7);
        _tile_loadd(5, left + TILE, DEPTH);
        _tile_dpbssd(1, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    store_tiles(sums);
}

/* One token's values in a group of channels, from its rows of the sums. */
HERE static __m512 put_together(const int32_t *sums, int weights) {
    __m512 value = _mm512_setzero_ps();
    for (int weight = weights - 1; weight >= 0; weight--)
        value = _mm512_fmadd_ps(value, _mm512_set1_ps(1.0f / 256),
                                _mm512_cvtepi32_ps(_mm512_load_si512(sums + weight * GROUP * GROUP)));
    return value;
}

/* What the sums of a group of tokens with a group of channels say of y. The first matrix holds products of two first
 * digits, each of which counts 256 for every digit behind it. */
HERE static void finish(const Digits *left, const Digits *right, long token, long group, const int32_t *sums,
                        const float *bias, float *y) {
    long channel = group * GROUP, channels = right->rows;
    int weights = right->digits + 1;
    float first_digits = right->digits == 3 ? 256.0f * 256 * 256 * 256 : right->digits == 2 ? 256.0f * 256 : 256;
    __mmask16 there = lanes(channels - channel);
    __m512 scale = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, right->scales + channel), _mm512_set1_ps(first_digits));
    __m512 added = bias ? _mm512_maskz_loadu_ps(there, bias + channel) : _mm512_setzero_ps();
    for (long t = token; t < left->rows && t < token + GROUP; t++) {
        __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(left->scales[t]));
        __m512 value = put_together(sums + t % GROUP * GROUP, weights);
        _mm512_mask_storeu_ps(y + t * channels + channel, there, _mm512_fmadd_ps(value, both, added));
    }
}

HERE static void multiply_float(const Digits *left, const Digits *right, long group, const float *bias, float *y) {
    int32_t sums[4 * GROUP * GROUP] __attribute__((aligned(64)));
    /* While the second group of tokens finds its channels in the cache, memory is free to bring the next ones. After
     * the last it is asked for what lies behind, as a prefetch may. */
    long idle = left->rows > GROUP ? GROUP : 0;
    for (long token = 0; token < left->rows; token += GROUP) {
        const signed char *tokens = group_tiles(left, token / GROUP), *weights = group_tiles(right, group);
        if (right->digits == 3)
            three_by_three(tokens, weights, token == idle ? group_tiles(right, group + 1) : NULL,
                           tiles_deep(right->values), sums);
        else
            two_by_two(tokens, weights, tiles_deep(right->values), sums);
        finish(left, right, token, group, sums, bias, y);
    }
}

HERE static void multiply_int8(const Digits *left, const Digits *right, long group, bool two, const float *bias,
                               float *y) {
    int32_t sums[4 * GROUP * GROUP] __attribute__((aligned(64)));
    for (long token = 0; token < left->rows; token += GROUP) {
        two_by_one(group_tiles(left, token / GROUP), group_tiles(right, group), group_tiles(right, group + two),
                   tiles_deep(right->values), sums);
        finish(left, right, token, group, sums, bias, y);
        if (two) finish(left, right, token, group + 1, sums + 2 * GROUP * GROUP, bias, y);
    }
}

HERE void digits_multiply(const Digits *left, const Digits *right, long first, long last, const float *bias, float *y) {
    configure_tiles();
    if (right->digits > 1)
        for (long group = first; group < last; group++) multiply_float(left, right, group, bias, y);
    else
        for (long group = first; group < last; group += 2)
            multiply_int8(left, right, group, group + 1 < last, bias, y);
    _tile_release();
}

#endif
