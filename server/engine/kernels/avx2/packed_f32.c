/* PackedF32: float32 weights, in panels of 16 channels. For each panel, for each of K values, one weight of each channel.
 *
 * Each number is added up in the order of its values, in blocks of a size that the layer alone decides, so that a row's
 * result has the same bits whatever other rows are multiplied with it. A block of rows stays in the second cache while
 * channels pass. */

#include <string.h>

#include "../platform.h"

#ifdef HEED_X86

#include "kernels.h"
#include "product_f32.h"
#include "vector.h"

enum { STEP_BYTES = sizeof(float) };
typedef __m256 Vector;
INLINE Vector broadcast(const char *row) { return _mm256_broadcast_ss((const float *)row); }
INLINE Vector multiply_add(Vector sums, Vector row, Vector weights) { return _mm256_fmadd_ps(row, weights, sums); }

#include "microkernel.h"

enum {
    MOST_DEPTH = 256, /* values at a time: of a panel they fit into the first cache, of a chunk into the second */
    CHUNK_ROWS = 126, /* rows at a time */
};

static const float *panel_at(const PackedWeights *packed, long panel, long value) {
    return (const float *)packed->data + (panel * packed->depth + value) * PANEL;
}

static size_t packed_size(const PackedWeights *packed) {
    return panel_count(packed) * PANEL * packed->depth * sizeof(float);
}

static bool pack(const PackedWeights *packed, const LayerWeights *weights) {
    long channels = packed->channels, depth = packed->depth;
    const float *w = weights->values;
    float *to = (float *)packed->data;
    for (long panel = 0; panel < channels; panel += PANEL)
        for (long k = 0; k < depth; k++, to += PANEL)
            for (long m = panel; m < smaller(panel + PANEL, channels); m++)
                to[m - panel] = w[weights->transposed ? k * channels + m : m * depth + k];
    return true;
}

INLINE void multiply_tile(const int rows, const bool prefetches, const Tile *tile) {
    const ProductF32 *product = tile->context;
    Vector sums[TILE_ROWS][HALVES];
    zero_sums(rows, sums);
    multiply_steps(rows, prefetches, tile, 0, tile->depth, sums);
    const float *added = product->added + tile->row * product->added_width;
    float *to = product->sums + tile->row * product->sums_width;
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) {
            __m256 before = _mm256_loadu_ps(added + row * product->added_width + half * LANES);
            _mm256_storeu_ps(to + row * product->sums_width + half * LANES, _mm256_add_ps(before, sums[row][half]));
        }
}

AVX2 void multiply_f32(const ProductF32 *product, long rows) {
    Tile tile = {
        .x = (const char *)product->x,
        .weights = (const char *)product->weights,
        .x_stride = product->x_width * sizeof(float),
        .depth = product->depth,
        .next = (const char *)product->next,
        .context = product,
    };
    multiply_tiles(tile, rows, multiply_tile);
}

/* Some panels that are full, with a chunk of rows. The first values are added to the bias, the others to the sums. */
static void multiply_full(const PackedWeights *packed, const float *x, long rows, long first, long last,
                          const float *bias, float *sums, long width) {
    long depth = packed->depth, most = ceil_div(depth, ceil_div(depth, MOST_DEPTH));
    for (long value = 0; value < depth; value += most) {
        for (long panel = first; panel < last; panel++) {
            bool turns = panel + 1 == last;
            long next_value = turns ? value + most : value, next_panel = turns ? first : panel + 1;
            if (next_value >= depth) next_value = 0, next_panel = last; /* what another call will begin with */
            bool ends = next_panel == panel_count(packed);
            float *here = sums + (panel - first) * PANEL;
            ProductF32 product = {
                .x = x + value,
                .weights = panel_at(packed, panel, value),
                .added = value ? here : bias + (panel - first) * PANEL,
                .sums = here,
                .x_width = depth,
                .added_width = value ? width : 0,
                .sums_width = width,
                .depth = smaller(most, depth - value),
                .next = ends ? NULL : panel_at(packed, next_panel, next_value),
            };
            multiply_f32(&product, rows);
        }
    }
}

/* The last panel, if its channels are fewer: its sums need room of their own. */
static void multiply_partial(const PackedWeights *packed, const float *x, long rows, long panel, const float *bias,
                             float *y) {
    float sums[CHUNK_ROWS * PANEL], all_biases[PANEL] = {0};
    long channels = packed->channels - panel * PANEL;
    memcpy(all_biases, bias, channels * sizeof *bias);
    multiply_full(packed, x, rows, panel, panel + 1, all_biases, sums, PANEL);
    for (long row = 0; row < rows; row++)
        memcpy(y + row * packed->channels, sums + row * PANEL, channels * sizeof *sums);
}

static void multiply(const PackedWeights *packed, const Activations *rows, long first, long last, const float *bias,
                     float *y) {
    long width = packed->channels, full = smaller(last, width / PANEL), chunks = ceil_div(rows->rows, CHUNK_ROWS);
    for (long chunk = 0, done = 0; chunk < chunks; chunk++) {
        long here = ceil_div(rows->rows - done, chunks - chunk);
        const float *x = rows->x + done * packed->depth;
        float *to = y + done * width;
        multiply_full(packed, x, here, first, full, bias + first * PANEL, to + first * PANEL, width);
        if (full < last) multiply_partial(packed, x, here, full, bias + full * PANEL, to + full * PANEL);
        done += here;
    }
}

const LinearKernels PACKED_F32 = {
    .storage = "PackedF32",
    .packed_size = packed_size,
    .pack = pack,
    .multiply = multiply,
};

#endif
