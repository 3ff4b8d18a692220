/* Products of float32 matrices from products of int8 matrices.
 *
 * Each row of either side is written as integers of three digits, each in -128 ... 127, times one scale: fixed point of
 * 24 bits below the row's largest value. Digits are multiplied as int8 and added up as int32, without any rounding, and
 * the sums are put together in float32 (the scheme of Ozaki et al., 2012, on integer units as in Ootomo et al., 2024).
 * The product of digits i and j counts 256^-(i + j) of that of the first two. Where i + j = 4, the least, it is left
 * out: it is below what the fixed point itself leaves out.
 *
 * For models in int8 less is enough: two digits of the left side by one of the right, where that is int8 itself with a
 * scale for each row, and two by two where it is float32.
 *
 * The tile unit of a CPU (Intel AMX) multiplies int8 many times as fast as other units multiply float32: eight products
 * of digits take less time than one of float32. Since integers add up to the same in any order, a row's result has the
 * same bits whatever other rows are multiplied with it.
 *
 * Letters: T rows of the left side (tokens), K values in each row, M rows of the right side (channels). */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../platform.h"

#ifdef HEED_X86

#include "kernels.h"

#ifdef HEED_EMULATED_AMX /* a header of the tests, by which this file runs on any CPU */
#include HEED_EMULATED_AMX
#else
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-int8")))

bool amx_supported(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

#define WRITTEN __asm__ volatile("" ::: "memory") /* tile loads do not tell the compiler that they read memory */

enum {
    GROUP = PANEL, /* rows of either side in a tile */
    DEPTH = 64,    /* values in a tile */
    TILE = GROUP * DEPTH,
    LANES = 16,
    SIDE_BY_SIDE = 4,
    CHUNK_BYTES = 1 << 20, /* of quantized rows at a time: they stay in a core's second cache */
};
static const float LARGEST[] = {0, 0x7f, 0x7f00, 0x7f7f00}; /* by digits; the last leaves room for rounding up */
static const float LEAST = 1e-30f;                          /* a row of zeros has a scale, too */

/* --- Where things lie: for each GROUP of rows of a matrix, for each DEPTH values of them, a tile of each digit; behind
 * all tiles a scale for each row, which says what 1 of its integers stands for --- */

static long tiles_deep(const PackedWeights *packed) { return ceil_div(packed->depth, DEPTH); }
static int row_digits(const PackedWeights *packed) { return packed->kernels->digits == 3 ? 3 : 2; }

static size_t tiles_size(const PackedWeights *packed, long rows, int digits) {
    return (size_t)ceil_div(rows, GROUP) * tiles_deep(packed) * digits * TILE;
}

static size_t matrix_size(const PackedWeights *packed, long rows, int digits) {
    return tiles_size(packed, rows, digits) + ceil_div(rows, GROUP) * GROUP * sizeof(float);
}

static size_t packed_size(const PackedWeights *packed) {
    return matrix_size(packed, packed->channels, packed->kernels->digits);
}

static size_t quantized_size(const PackedWeights *packed, long rows) {
    return matrix_size(packed, rows, row_digits(packed));
}

static signed char *weight_tiles(const PackedWeights *packed, long group) {
    return (signed char *)packed->data + group * tiles_deep(packed) * packed->kernels->digits * TILE;
}

static float *weight_scales(const PackedWeights *packed) {
    return (float *)(packed->data + tiles_size(packed, packed->channels, packed->kernels->digits));
}

static signed char *row_tiles(const PackedWeights *packed, const Activations *rows, long group) {
    return (signed char *)rows->quantized + group * tiles_deep(packed) * row_digits(packed) * TILE;
}

static float *row_scales(const PackedWeights *packed, const Activations *rows) {
    return (float *)(rows->quantized + tiles_size(packed, rows->rows, row_digits(packed)));
}

static __mmask16 lanes(long left) { return left >= LANES ? 0xffff : left <= 0 ? 0 : (1 << left) - 1; }

/* What makes integers of so many digits of a row's values. NaN and infinity have larger bits than any number, and spoil
 * their row's scale and with it the result, as they should. */
AMX static float to_integers(const float *x, long values, int digits) {
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
AMX static __m128i take_digit(__m512i *integers) {
    __m128i digit = _mm512_cvtepi32_epi8(*integers);
    *integers = _mm512_srai_epi32(_mm512_add_epi32(*integers, _mm512_set1_epi32(128)), 8);
    return digit;
}

/* --- Packing --- */

/* Quantizes some rows, which begin a group of 16. */
AMX static void quantize(const PackedWeights *packed, const Activations *rows, long first, long last) {
    long steps = tiles_deep(packed), depth = packed->depth;
    int digits = row_digits(packed);
    for (long t = first; t < last; t++) {
        const float *row = rows->x + t * depth;
        signed char *tiles = row_tiles(packed, rows, t / GROUP) + t % GROUP * DEPTH;
        float scale = to_integers(row, depth, digits);
        row_scales(packed, rows)[t] = 1 / scale;
        for (long k = 0; k < steps * DEPTH; k += LANES) {
            __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes(depth - k), row + k), _mm512_set1_ps(scale));
            __m512i integers = _mm512_cvtps_epi32(scaled);
            signed char *place = tiles + k / DEPTH * digits * TILE + k % DEPTH;
            for (int digit = digits - 1; digit >= 0; digit--)
                _mm_storeu_si128((__m128i *)(place + digit * TILE), take_digit(&integers));
        }
    }
}

/* Where a tile of weights has a value: four of each channel side by side, and then the next four. */
static signed char *place_of(const PackedWeights *packed, long m, long k) {
    return weight_tiles(packed, m / GROUP) + k / DEPTH * packed->kernels->digits * TILE + k % DEPTH / SIDE_BY_SIDE * DEPTH +
           m % GROUP * SIDE_BY_SIDE + k % SIDE_BY_SIDE;
}

/* The weights of channel m, as K filled up with zeros to LANES. */
AMX static void pack_channel(const PackedWeights *packed, long m, const float *row) {
    int digits = packed->kernels->digits;
    float scale = to_integers(row, packed->depth, digits);
    weight_scales(packed)[m] = 1 / scale;
    for (long k = 0; k < packed->depth; k += LANES) {
        __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + k), _mm512_set1_ps(scale)));
        for (int digit = digits - 1; digit >= 0; digit--) {
            signed char taken[LANES];
            _mm_storeu_si128((__m128i *)taken, take_digit(&integers));
            for (long four = 0; four < LANES; four += SIDE_BY_SIDE)
                memcpy(place_of(packed, m, k + four) + digit * TILE, taken + four, SIDE_BY_SIDE);
        }
    }
}

static bool pack_f32(const PackedWeights *packed, const LayerWeights *weights) {
    long depth = packed->depth, channels = packed->channels;
    const float *w = weights->values;
    float *row = calloc(depth + LANES, sizeof *row);
    if (!row) return false;
    for (long m = 0; m < channels; m++) {
        for (long k = 0; k < depth; k++) row[k] = w[weights->transposed ? k * channels + m : m * depth + k];
        pack_channel(packed, m, row);
    }
    free(row);
    return true;
}

/* int8 is one digit, as it is. */
static bool pack_s8(const PackedWeights *packed, const LayerWeights *weights) {
    const signed char *w = weights->values;
    memcpy(weight_scales(packed), weights->scales, packed->channels * sizeof(float));
    for (long k = 0; k < packed->depth; k++)
        for (long m = 0; m < packed->channels; m++) *place_of(packed, m, k) = w[k * packed->channels + m];
    return true;
}

/* --- Multiplying --- */

AMX static void configure_tiles(void) {
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
__attribute__((always_inline)) AMX static inline void prefetch(const signed char *tiles) {
    for (int byte = 0; byte < 3 * TILE; byte += 64) _mm_prefetch(tiles + byte, _MM_HINT_T1);
}

AMX static void zero_tiles(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

AMX static void store_tiles(int32_t *sums) {
    _tile_stored(0, sums, DEPTH);
    _tile_stored(1, sums + GROUP * GROUP, DEPTH);
    _tile_stored(2, sums + 2 * GROUP * GROUP, DEPTH);
    _tile_stored(3, sums + 3 * GROUP * GROUP, DEPTH);
}

/* The sums of a group of tokens with a group of channels: a matrix [GROUP, GROUP] for each weight that a product of two
 * digits can have, four of them. */
AMX static void three_by_three(const signed char *left, const signed char *right, const signed char *next, long depth,
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
AMX static void two_by_two(const signed char *left, const signed char *right, long depth, int32_t *sums) {
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
AMX static void two_by_one(const signed char *left, const signed char *right, const signed char *beside, long depth,
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
AMX static __m512 put_together(const int32_t *sums, int weights) {
    __m512 value = _mm512_setzero_ps();
    for (int weight = weights - 1; weight >= 0; weight--)
        value = _mm512_fmadd_ps(value, _mm512_set1_ps(1.0f / 256),
                                _mm512_cvtepi32_ps(_mm512_load_si512(sums + weight * GROUP * GROUP)));
    return value;
}

/* What the sums of a group of tokens with a group of channels say of y. The first matrix holds products of two first
 * digits, each of which counts 256 for every digit behind it. */
AMX static void finish(const PackedWeights *packed, const Activations *rows, long token, long group,
                       const int32_t *sums, const float *bias, float *y) {
    long channel = group * GROUP, channels = packed->channels;
    int digits = packed->kernels->digits, weights = digits + 1;
    float first_digits = digits == 3 ? 256.0f * 256 * 256 * 256 : digits == 2 ? 256.0f * 256 : 256;
    __mmask16 there = lanes(channels - channel);
    __m512 scale = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, weight_scales(packed) + channel),
                                 _mm512_set1_ps(first_digits));
    __m512 added = _mm512_maskz_loadu_ps(there, bias + channel);
    for (long t = token; t < rows->rows && t < token + GROUP; t++) {
        __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(row_scales(packed, rows)[t]));
        __m512 value = put_together(sums + t % GROUP * GROUP, weights);
        _mm512_mask_storeu_ps(y + t * channels + channel, there, _mm512_fmadd_ps(value, both, added));
    }
}

/* All rows by a group of channels. While the second group of tokens finds its channels in the cache, memory is free to
 * bring the next ones. */
AMX static void multiply_split(const PackedWeights *packed, const Activations *rows, long group, const float *bias,
                               float *y) {
    int32_t sums[4 * GROUP * GROUP] __attribute__((aligned(64)));
    long idle = rows->rows > GROUP ? GROUP : 0, steps = tiles_deep(packed);
    const signed char *weights = weight_tiles(packed, group);
    const signed char *next = group + 1 < panel_count(packed) ? weight_tiles(packed, group + 1) : NULL;
    for (long token = 0; token < rows->rows; token += GROUP) {
        const signed char *tokens = row_tiles(packed, rows, token / GROUP);
        if (packed->kernels->digits == 3)
            three_by_three(tokens, weights, token == idle ? next : NULL, steps, sums);
        else
            two_by_two(tokens, weights, steps, sums);
        finish(packed, rows, token, group, sums, bias, y);
    }
}

/* The same with int8, by one or two groups of channels. */
AMX static void multiply_s8(const PackedWeights *packed, const Activations *rows, long group, bool two,
                            const float *bias, float *y) {
    int32_t sums[4 * GROUP * GROUP] __attribute__((aligned(64)));
    for (long token = 0; token < rows->rows; token += GROUP) {
        two_by_one(row_tiles(packed, rows, token / GROUP), weight_tiles(packed, group),
                   weight_tiles(packed, group + two), tiles_deep(packed), sums);
        finish(packed, rows, token, group, sums, bias, y);
        if (two) finish(packed, rows, token, group + 1, sums + 2 * GROUP * GROUP, bias, y);
    }
}

AMX static void multiply(const PackedWeights *packed, const Activations *rows, long first, long last,
                         const float *bias, float *y) {
    configure_tiles();
    if (packed->kernels->digits > 1)
        for (long group = first; group < last; group++) multiply_split(packed, rows, group, bias, y);
    else
        for (long group = first; group < last; group += 2)
            multiply_s8(packed, rows, group, group + 1 < last, bias, y);
    _tile_release();
}

#define STORAGE(of_name, of_digits, of_pack)                                                                          \
    {                                                                                                                 \
        .storage = of_name, .digits = of_digits, .chunk_bytes = CHUNK_BYTES, .packed_size = packed_size,              \
        .pack = of_pack, .quantized_size = quantized_size, .quantize = quantize, .multiply = multiply,                \
    }

const LinearKernels PACKED_F32_SPLIT = STORAGE("PackedF32Split", 3, pack_f32);
const LinearKernels PACKED_S16_SPLIT = STORAGE("PackedS16Split", 2, pack_f32);
const LinearKernels PACKED_S8_TILES = STORAGE("PackedS8Tiles", 1, pack_s8);

#endif
