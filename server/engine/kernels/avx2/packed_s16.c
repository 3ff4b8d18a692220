/* PackedS16: weights where 16 bits of each value are enough (Linear16). As integers of 16 bits, of which the unit
 * multiplies twice as many at a time as of float32. In panels of 16 channels: for each two of K values, those two of each
 * channel.
 *
 * A token's values are rounded to 32,767 steps up to its largest one, either way, and a channel's weights to 2,047: a
 * token may have a value that is far larger than its others, trained weights do not. As many as 32 products of them add
 * up without leaving 32 bits. Those sums are exact; they are added up in float32, in the order of the values. So a
 * token's bits depend on its own values alone. */

#include <math.h>
#include <string.h>

#include "../platform.h"

#ifdef HEED_X86

#include "kernels.h"
#include "vector.h"

enum { STEP_BYTES = 4 };
typedef Int32x8 Vector;
INLINE Vector broadcast(const char *row) {
    int bits;
    memcpy(&bits, row, sizeof bits);
    return (Vector)_mm256_set1_epi32(bits);
}
INLINE Vector multiply_add(Vector sums, Vector row, Vector weights) {
    return sums + (Vector)_mm256_madd_epi16((__m256i)row, (__m256i)weights);
}

#include "microkernel.h"

enum {
    PAIR = 2,             /* values in a step */
    MOST = 32767,         /* of a value, */
    MOST_WEIGHT = 2047,   /* of a weight: */
    EXACT_STEPS = 16,     /* steps whose products 32 bits hold; 32,767 * 2,047 * 32 < 2^31 */
};
static const float LEAST = 1e-30f; /* a row of zeros has a scale, too */

static long pairs(const PackedWeights *packed) { return ceil_div(packed->depth, PAIR); }
static size_t weights_size(const PackedWeights *packed) { return panel_count(packed) * pairs(packed) * CACHE_LINE; }

/* [M]: what 1 of a weight stands for. Behind the weights. */
static float *weight_scales(const PackedWeights *packed) { return (float *)(packed->data + weights_size(packed)); }

static size_t packed_size(const PackedWeights *packed) {
    return weights_size(packed) + panel_count(packed) * PANEL * sizeof(float);
}

static bool pack(const PackedWeights *packed, const LayerWeights *weights) {
    long channels = packed->channels, depth = packed->depth;
    for (long m = 0; m < channels; m++) {
        const float *first = (const float *)weights->values + (weights->transposed ? m : m * depth);
        long apart = weights->transposed ? channels : 1;
        float largest = LEAST, nan = 0; /* NaN and infinity spoil their channel: times zero they are NaN */
        for (long k = 0; k < depth; k++)
            largest = fmaxf(largest, fabsf(first[k * apart])), nan += first[k * apart] * 0;
        weight_scales(packed)[m] = largest / MOST_WEIGHT + nan;
        int16_t *panel = (int16_t *)(packed->data + m / PANEL * pairs(packed) * CACHE_LINE);
        for (long k = 0; k < depth; k++)
            panel[(k / PAIR * PANEL + m % PANEL) * PAIR + k % PAIR] =
                (int16_t)lrintf(first[k * apart] * (MOST_WEIGHT / largest));
    }
    return true;
}

/* Quantized rows: [T, K] filled up to pairs with a zero, then a scale for each row. */
static long row_size(const PackedWeights *packed) { return pairs(packed) * STEP_BYTES; }

static float *row_scales(const PackedWeights *packed, const Activations *rows) {
    return (float *)(rows->quantized + rows->rows * row_size(packed));
}

static size_t quantized_size(const PackedWeights *packed, long rows) {
    return rows * (row_size(packed) + sizeof(float));
}

/* NaN and infinity spoil their row: times zero they are NaN. */
AVX2 static float largest_of(const float *x, long values) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps(), nan = _mm256_setzero_ps();
    for (long k = 0; k < values; k += LANES) {
        __m256 here = load(x + k, values - k);
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, here));
        nan = _mm256_add_ps(nan, _mm256_mul_ps(here, _mm256_setzero_ps()));
    }
    float largest = largest_lane(most);
    return (largest > LEAST ? largest : LEAST) + add_lanes(nan);
}

AVX2 static void quantize_row(const float *x, long values, float factor, char *to, long size) {
    for (long k = 0; k < values; k += LANES, to += sizeof(__m128i), size -= sizeof(__m128i)) {
        __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(load(x + k, values - k), _mm256_set1_ps(factor)));
        __m128i eight = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        if (size >= (long)sizeof eight)
            _mm_storeu_si128((__m128i *)to, eight);
        else
            memcpy(to, &eight, size);
    }
}

static void quantize(const PackedWeights *packed, const Activations *rows, long first, long last) {
    long depth = packed->depth, size = row_size(packed);
    for (long t = first; t < last; t++) {
        float largest = largest_of(rows->x + t * depth, depth);
        row_scales(packed, rows)[t] = largest / MOST;
        quantize_row(rows->x + t * depth, depth, MOST / largest, rows->quantized + t * size, size);
    }
}

/* What becomes of a panel's sums. */
typedef struct {
    const float *row_scales, *weight_scales, *bias; /* the latter of the panel */
    float *y;                                       /* the panel's first channel */
    long channels, left;                            /* of y, and of them from the panel on */
} Output;

INLINE void write_tile(const int rows, const Tile *tile, __m256 sums[TILE_ROWS][HALVES]) {
    const Output *output = tile->context;
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) {
            long channel = half * LANES, left = output->left - channel, t = tile->row + row;
            if (left <= 0) continue;
            __m256 value = _mm256_mul_ps(sums[row][half], _mm256_loadu_ps(output->weight_scales + channel));
            value = _mm256_fmadd_ps(value, _mm256_set1_ps(output->row_scales[t]), load(output->bias + channel, left));
            store(output->y + t * output->channels + channel, left, value);
        }
}

INLINE void multiply_tile(const int rows, const bool prefetches, const Tile *tile) {
    __m256 total[TILE_ROWS][HALVES];
    Vector sums[TILE_ROWS][HALVES];
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) total[row][half] = _mm256_setzero_ps();
    for (long step = 0; step < tile->depth; step += EXACT_STEPS) {
        zero_sums(rows, sums);
        multiply_steps(rows, prefetches, tile, step, smaller(EXACT_STEPS, tile->depth - step), sums);
        UNROLLED for (int row = 0; row < rows; row++)
            UNROLLED for (int half = 0; half < HALVES; half++)
                total[row][half] = _mm256_add_ps(total[row][half], _mm256_cvtepi32_ps((__m256i)sums[row][half]));
    }
    write_tile(rows, tile, total);
}

AVX2 static void multiply(const PackedWeights *packed, const Activations *rows, long first, long last,
                          const float *bias, float *y) {
    long panel_size = pairs(packed) * CACHE_LINE;
    for (long panel = first; panel < last; panel++) {
        long channel = panel * PANEL;
        const char *weights = packed->data + panel * panel_size;
        Output output = {
            .row_scales = row_scales(packed, rows),
            .weight_scales = weight_scales(packed) + channel,
            .bias = bias + channel,
            .y = y + channel,
            .channels = packed->channels,
            .left = packed->channels - channel,
        };
        Tile tile = {
            .x = rows->quantized,
            .weights = weights,
            .x_stride = row_size(packed),
            .depth = pairs(packed),
            .next = panel + 1 < panel_count(packed) ? weights + panel_size : NULL,
            .context = &output,
        };
        multiply_tiles(tile, rows->rows, multiply_tile);
    }
}

const LinearKernels PACKED_S16 = {
    .storage = "PackedS16",
    .packed_size = packed_size,
    .pack = pack,
    .quantized_size = quantized_size,
    .quantize = quantize,
    .multiply = multiply,
};

#endif
