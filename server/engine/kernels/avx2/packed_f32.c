#include "packed_f32.h"

#include <stdlib.h>
#include <string.h>

#include "../operators.h"

#ifdef HEED_X86

#include "vector.h"

enum {
    HALVES = PANEL / LANES,
    TILE_ROWS = 6,    /* with a panel's two halves, twelve sums: what 16 registers hold beside their factors */
    MOST_DEPTH = 256, /* values at a time: of a panel they fit into the first cache, of a chunk into the second */
    CHUNK_ROWS = 126, /* rows at a time */
    STEPS = 8,        /* values between two requests for weights */
    LINE = 64,        /* bytes that memory gives at a time: a value's weights in one panel */
};

static long smaller(long one, long other) { return one < other ? one : other; }
static long parts(long whole, long most) { return (whole + most - 1) / most; }
long panels_count(const Panels *panels) { return parts(panels->channels, PANEL); }
size_t panels_size(const Panels *panels) { return panels_count(panels) * PANEL * panels->values * sizeof(float); }

bool panels_supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && !__builtin_cpu_supports("avx512f");
}

bool panels_allocate(Panels *panels, long channels, long values) {
    panels->channels = channels, panels->values = values;
    panels->weights = aligned_alloc(LINE, panels_size(panels));
    return panels->weights;
}

void panels_free(Panels *panels) { free(panels->weights); }

static float *panel_at(const Panels *panels, long panel, long value) {
    return panels->weights + (panel * panels->values + value) * PANEL;
}

void panels_of(Panels *panels, const float *w, bool transposed) {
    long channels = panels->channels, values = panels->values;
    for (long panel = 0; panel < panels_count(panels); panel++)
        for (long k = 0; k < values; k++)
            for (long m = 0; m < PANEL; m++) {
                long channel = panel * PANEL + m, place = transposed ? k * channels + channel : channel * values + k;
                panel_at(panels, panel, k)[m] = channel < channels ? w[place] : 0;
            }
}

INLINE void multiply_value(const int rows, __m256 sums[TILE_ROWS][HALVES], const float *x, long width,
                           const float *weights) {
    UNROLLED for (int row = 0; row < rows; row++) {
        __m256 value = _mm256_broadcast_ss(x + row * width);
        UNROLLED for (int half = 0; half < HALVES; half++)
            sums[row][half] = _mm256_fmadd_ps(value, _mm256_load_ps(weights + half * LANES), sums[row][half]);
    }
}

/* `requests` of the next weights' lines are asked for every STEPS values. */
INLINE void multiply_tile(const int rows, const int requests, Tile tile) {
    __m256 sums[TILE_ROWS][HALVES];
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) sums[row][half] = _mm256_setzero_ps();
    long k = 0;
    for (; k + STEPS <= tile.depth; k += STEPS) {
        UNROLLED for (int line = 0; line < requests; line++)
            _mm_prefetch(tile.next + (k / STEPS * requests + line) * LINE, _MM_HINT_T1);
        UNROLLED for (int step = 0; step < STEPS; step++)
            multiply_value(rows, sums, tile.x + k + step, tile.x_width, tile.weights + (k + step) * PANEL);
    }
    for (; k < tile.depth; k++) multiply_value(rows, sums, tile.x + k, tile.x_width, tile.weights + k * PANEL);
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) {
            __m256 added = _mm256_loadu_ps(tile.added + row * tile.added_width + half * LANES);
            _mm256_storeu_ps(tile.sums + row * tile.sums_width + half * LANES, _mm256_add_ps(added, sums[row][half]));
        }
}

INLINE void multiply_rows(long rows, const int requests, Tile tile) {
    switch (rows) {
    case 1: return multiply_tile(1, requests, tile);
    case 2: return multiply_tile(2, requests, tile);
    case 3: return multiply_tile(3, requests, tile);
    case 4: return multiply_tile(4, requests, tile);
    case 5: return multiply_tile(5, requests, tile);
    default: return multiply_tile(TILE_ROWS, requests, tile);
    }
}

/* Tiles of about as many rows each. The first four of them ask for the weights that come next, or as many as there are:
 * a fourth of a panel each, a half, or all of it. */
HERE void tiles_multiply(Tile tile, long rows) {
    long tiles = parts(rows, TILE_ROWS), done = 0, asked = 0;
    const int requests = tiles >= 4 ? STEPS / 4 : tiles > 1 ? STEPS / 2 : STEPS;
    const char *next = tile.next;
    for (long number = 0; number < tiles; number++) {
        long here = parts(rows - done, tiles - number);
        tile.next = next + asked * (tile.depth / STEPS) * LINE;
        if (!next || asked == STEPS) {
            multiply_rows(here, 0, tile);
        } else {
            if (requests == STEPS / 4) multiply_rows(here, STEPS / 4, tile);
            if (requests == STEPS / 2) multiply_rows(here, STEPS / 2, tile);
            if (requests == STEPS) multiply_rows(here, STEPS, tile);
            asked += requests;
        }
        tile.x += here * tile.x_width, tile.added += here * tile.added_width, tile.sums += here * tile.sums_width;
        done += here;
    }
}

/* Some panels that are full, with a chunk of rows. The first values are added to the bias, the others to the sums. */
static void multiply_full(const Panels *panels, const float *x, long rows, long first, long last, const float *bias,
                          float *sums, long width) {
    long values = panels->values, most = parts(values, parts(values, MOST_DEPTH));
    for (long value = 0; value < values; value += most) {
        for (long panel = first; panel < last; panel++) {
            bool turns = panel + 1 == last;
            long next_value = turns ? value + most : value, next_panel = turns ? first : panel + 1;
            if (next_value >= values) next_value = 0, next_panel = last; /* what another call will begin with */
            bool ends = next_panel == panels_count(panels);
            float *here = sums + (panel - first) * PANEL;
            tiles_multiply(
                (Tile){
                    .x = x + value,
                    .weights = panel_at(panels, panel, value),
                    .added = value ? here : bias + (panel - first) * PANEL,
                    .sums = here,
                    .x_width = values,
                    .added_width = value ? width : 0,
                    .sums_width = width,
                    .depth = smaller(most, values - value),
                    .next = ends ? NULL : (const char *)panel_at(panels, next_panel, next_value),
                },
                rows);
        }
    }
}

/* The last panel, if its channels are fewer: its sums need room of their own. */
static void multiply_partial(const Panels *panels, const float *x, long rows, long panel, const float *bias, float *y) {
    float sums[CHUNK_ROWS * PANEL], all_biases[PANEL] = {0};
    long channels = panels->channels - panel * PANEL;
    memcpy(all_biases, bias, channels * sizeof *bias);
    multiply_full(panels, x, rows, panel, panel + 1, all_biases, sums, PANEL);
    for (long row = 0; row < rows; row++)
        memcpy(y + row * panels->channels, sums + row * PANEL, channels * sizeof *sums);
}

void panels_multiply(const Panels *panels, const float *x, long rows, long first, long last, const float *bias,
                     float *y) {
    long width = panels->channels, full = smaller(last, width / PANEL), chunks = parts(rows, CHUNK_ROWS), done = 0;
    for (long chunk = 0; chunk < chunks; chunk++) {
        long here = parts(rows - done, chunks - chunk);
        const float *x_here = x + done * panels->values;
        float *y_here = y + done * width;
        multiply_full(panels, x_here, here, first, full, bias + first * PANEL, y_here + first * PANEL, width);
        if (full < last) multiply_partial(panels, x_here, here, full, bias + full * PANEL, y_here + full * PANEL);
        done += here;
    }
}

#endif
