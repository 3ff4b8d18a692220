/* PackedS8: int8 weights. What the function heed.Int8Linear says (export/passes/quantize_to_int8.py), computed at once. In panels of 16
 * channels: for each four of K values, those four of each channel.
 *
 * A token's values are 0 to 255 steps above its lowest one, weights are int8 of 7 bits with a scale for each channel:
 * two products of them fit into 16 bits, which is how this unit adds them up. All sums are of integers, so that a
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
/* Weights have 7 bits: two products of 255 and 64 fit into int16. */
INLINE Vector multiply_add(Vector sums, Vector row, Vector weights) {
    __m256i pairs = _mm256_maddubs_epi16((__m256i)row, (__m256i)weights);
    return sums + (Vector)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#include "microkernel.h"

enum { FOUR = 4 /* values in a step */, MOST_STEPS = 255 };
static const float LEAST = 1e-12f; /* a row of equal values has a step, too */

static long fours(const PackedWeights *packed) { return ceil_div(packed->depth, FOUR); }
static size_t weights_size(const PackedWeights *packed) { return panel_count(packed) * fours(packed) * CACHE_LINE; }

/* [M], behind the weights: what 1 of a weight stands for, and the sum of a channel's weights. */
static float *weight_scales(const PackedWeights *packed) { return (float *)(packed->data + weights_size(packed)); }
static float *weight_sums(const PackedWeights *packed) { return weight_scales(packed) + panel_count(packed) * PANEL; }

static size_t packed_size(const PackedWeights *packed) {
    return weights_size(packed) + 2 * panel_count(packed) * PANEL * sizeof(float);
}

static bool pack(const PackedWeights *packed, const LayerWeights *weights) {
    long channels = packed->channels;
    const signed char *w = weights->values;
    for (long k = 0; k < packed->depth; k++)
        for (long m = 0; m < channels; m++)
            packed->data[((m / PANEL * fours(packed) + k / FOUR) * PANEL + m % PANEL) * FOUR + k % FOUR] =
                w[k * channels + m];
    memcpy(weight_scales(packed), weights->scales, channels * sizeof(float));
    memcpy(weight_sums(packed), weights->sums, channels * sizeof(float));
    return true;
}

/* Quantized rows: [T, K] filled up to fours, then the lowest value of each row, then its step. Row t is
 * lowest[t] + step[t] * quantized[t]. */
static long row_size(const PackedWeights *packed) { return fours(packed) * STEP_BYTES; }

static float *lowest_values(const PackedWeights *packed, const Activations *rows) {
    return (float *)(rows->quantized + rows->rows * row_size(packed));
}

static float *row_steps(const PackedWeights *packed, const Activations *rows) {
    return lowest_values(packed, rows) + rows->rows;
}

static size_t quantized_size(const PackedWeights *packed, long rows) {
    return rows * (row_size(packed) + 2 * sizeof(float));
}

/* The lowest value, and how far above it the highest is. NaN and infinity spoil their row: times zero they are NaN. */
AVX2 static void range_of(const float *x, long values, float *lowest, float *width) {
    float low = x[0], high = x[0], spoilt = 0;
    long k = 0;
    if (values >= LANES) {
        __m256 least = _mm256_loadu_ps(x), most = least, nan = _mm256_setzero_ps();
        for (; k + LANES <= values; k += LANES) {
            __m256 here = _mm256_loadu_ps(x + k);
            least = _mm256_min_ps(least, here), most = _mm256_max_ps(most, here);
            nan = _mm256_add_ps(nan, _mm256_mul_ps(here, _mm256_setzero_ps()));
        }
        low = -largest_lane(_mm256_xor_ps(least, _mm256_set1_ps(-0.0f))), high = largest_lane(most);
        spoilt = add_lanes(nan);
    }
    for (; k < values; k++) low = x[k] < low ? x[k] : low, high = x[k] > high ? x[k] : high, spoilt += x[k] * 0;
    *lowest = low + spoilt, *width = high - low > LEAST ? high - low : LEAST;
}

AVX2 static void quantize_row(const float *x, long values, float lowest, float step, char *to, long size) {
    for (long k = 0; k < values; k += LANES) {
        __m256 above = _mm256_sub_ps(load(x + k, values - k), _mm256_set1_ps(lowest));
        __m256i whole = _mm256_cvtps_epi32(_mm256_div_ps(above, _mm256_set1_ps(step)));
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        unsigned char bytes[LANES];
        _mm_storel_epi64((__m128i *)bytes, _mm_packus_epi16(words, words));
        memcpy(to + k, bytes, smaller(size - k, LANES));
    }
}

static void quantize(const PackedWeights *packed, const Activations *rows, long first, long last) {
    long depth = packed->depth, size = row_size(packed);
    float *lowest = lowest_values(packed, rows), *steps = row_steps(packed, rows);
    for (long t = first; t < last; t++) {
        float width;
        range_of(rows->x + t * depth, depth, &lowest[t], &width);
        steps[t] = width * (1.0f / MOST_STEPS);
        quantize_row(rows->x + t * depth, depth, lowest[t], steps[t], rows->quantized + t * size, size);
    }
}

/* What becomes of a panel's sums. */
typedef struct {
    const float *lowest, *steps;                      /* [T] */
    const float *weight_scales, *weight_sums, *bias;  /* of the panel */
    float *y;                                         /* the panel's first channel */
    long channels, left;                              /* of y, and of them from the panel on */
} Output;

INLINE void multiply_tile(const int rows, const bool prefetches, const Tile *tile) {
    const Output *output = tile->context;
    Vector sums[TILE_ROWS][HALVES];
    zero_sums(rows, sums);
    multiply_steps(rows, prefetches, tile, 0, tile->depth, sums);
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) {
            long channel = half * LANES, left = output->left - channel, t = tile->row + row;
            if (left <= 0) continue;
            __m256 scales = _mm256_loadu_ps(output->weight_scales + channel);
            __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps((__m256i)sums[row][half]), scales);
            __m256 base = _mm256_fmadd_ps(_mm256_loadu_ps(output->weight_sums + channel),
                                          _mm256_set1_ps(output->lowest[t]), load(output->bias + channel, left));
            value = _mm256_fmadd_ps(value, _mm256_set1_ps(output->steps[t]), base);
            store(output->y + t * output->channels + channel, left, value);
        }
}

AVX2 static void multiply(const PackedWeights *packed, const Activations *rows, long first, long last,
                          const float *bias, float *y) {
    long panel_size = fours(packed) * CACHE_LINE;
    for (long panel = first; panel < last; panel++) {
        long channel = panel * PANEL;
        const char *weights = packed->data + panel * panel_size;
        Output output = {
            .lowest = lowest_values(packed, rows),
            .steps = row_steps(packed, rows),
            .weight_scales = weight_scales(packed) + channel,
            .weight_sums = weight_sums(packed) + channel,
            .bias = bias + channel,
            .y = y + channel,
            .channels = packed->channels,
            .left = packed->channels - channel,
        };
        Tile tile = {
            .x = rows->quantized,
            .weights = weights,
            .x_stride = row_size(packed),
            .depth = fours(packed),
            .next = panel + 1 < panel_count(packed) ? weights + panel_size : NULL,
            .context = &output,
        };
        multiply_tiles(tile, rows->rows, multiply_tile);
    }
}

const LinearKernels PACKED_S8 = {
    .storage = "PackedS8",
    .packed_size = packed_size,
    .pack = pack,
    .quantized_size = quantized_size,
    .quantize = quantize,
    .multiply = multiply,
};

#endif
