/* The micro-kernel of matrix products for AVX2: a register tile of up to 6 rows by one panel of 16 channels.
 *
 * All storages have the same geometry. A step of depth takes 4 bytes of each row (one float32, two int16 or four uint8)
 * and a cache line of the panel (4 bytes for each of its channels). The 4 bytes are broadcast, multiplied with the line
 * and added to 16 sums of 32 bits. Storages differ in that one instruction or two, and in what becomes of the sums. Each
 * includes this file, once, after it has defined
 *
 *     Vector          the type of vectors: __m256, or __m256i
 *     UNROLL_STEPS    _Pragma: how the loop over UNROLL steps is unrolled
 *     zero            sums of nothing
 *     broadcast       a vector that repeats STEP_BYTES of a row
 *     load_weights    half of a line
 *     multiply_add    sums + row * weights, in 32 bits
 *
 * All functions are inlined. (With one type for all storages, and casts, gcc 12 keeps fewer sums in registers.)
 *
 * onnxruntime multiplies large groups near the rate of the unit. Groups as they come in serving are not that large, and
 * there it waits: a model's weights do not fit into the caches, and each group fetches all of them from memory anew.
 * Here the weights of the next panel are prefetched while those of this one are multiplied (the loops are those of Goto
 * and van de Geijn, 2008). */

#pragma once

#include "../packed.h"
#include "vector.h"

enum {
    HALVES = PANEL / LANES, /* vectors in a line */
    TILE_ROWS = 6,          /* with two vectors each, twelve sums: what 16 registers hold beside their factors */
    UNROLL = 8,             /* steps between two requests for weights */
};

typedef struct {
    const char *x, *weights;
    long x_stride;       /* bytes between rows */
    long depth;          /* steps */
    const char *next;    /* a panel that will be needed soon, as deep; or null */
    long row;            /* the first one's number */
    const void *context; /* of what becomes of the sums */
} Tile;

/* Computes a tile of `rows`, and prefetches so many lines of the next panel every UNROLL steps. */
typedef void (*TileFunction)(const int rows, const int lines, const Tile *);

INLINE void zero_sums(const int rows, Vector sums[TILE_ROWS][HALVES]) {
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) sums[row][half] = zero();
}

INLINE void multiply_step(const int rows, const char *x, long x_stride, const char *line,
                          Vector sums[TILE_ROWS][HALVES]) {
    UNROLLED for (int row = 0; row < rows; row++) {
        Vector values = broadcast(x + row * x_stride);
        UNROLLED for (int half = 0; half < HALVES; half++) {
            Vector weights = load_weights(line + half * CACHE_LINE / HALVES);
            sums[row][half] = multiply_add(sums[row][half], values, weights);
        }
    }
}

/* Adds the products of the steps first ... last - 1 to the sums. `first` is a multiple of UNROLL. */
INLINE void multiply_steps(const int rows, const int lines, const Tile *tile, long first, long last,
                           Vector sums[TILE_ROWS][HALVES]) {
    const char *x = tile->x, *weights = tile->weights, *next = tile->next;
    long stride = tile->x_stride, step = first;
    for (; step + UNROLL <= last; step += UNROLL) {
        UNROLLED for (int line = 0; line < lines; line++)
            _mm_prefetch(next + (step / UNROLL * lines + line) * CACHE_LINE, _MM_HINT_T1);
        UNROLL_STEPS for (int more = 0; more < UNROLL; more++)
            multiply_step(rows, x + (step + more) * STEP_BYTES, stride, weights + (step + more) * CACHE_LINE, sums);
    }
    for (; step < last; step++) multiply_step(rows, x + step * STEP_BYTES, stride, weights + step * CACHE_LINE, sums);
}

INLINE void multiply_rows(long rows, const int lines, TileFunction multiply_tile, const Tile *tile) {
    switch (rows) {
    case 1: return multiply_tile(1, lines, tile);
    case 2: return multiply_tile(2, lines, tile);
    case 3: return multiply_tile(3, lines, tile);
    case 4: return multiply_tile(4, lines, tile);
    case 5: return multiply_tile(5, lines, tile);
    default: return multiply_tile(TILE_ROWS, lines, tile);
    }
}

/* All rows, in tiles of about as many rows each. The first four tiles prefetch the next panel, or as many as there are:
 * a fourth of it each, a half, or all of it. */
INLINE void multiply_tiles(Tile tile, long rows, TileFunction multiply_tile) {
    long tiles = ceil_div(rows, TILE_ROWS), done = 0, prefetched = 0;
    const int lines = tiles >= 4 ? UNROLL / 4 : tiles > 1 ? UNROLL / 2 : UNROLL;
    const char *next = tile.next;
    for (long number = 0; number < tiles; number++) {
        long here = ceil_div(rows - done, tiles - number);
        if (next) tile.next = next + prefetched * (tile.depth / UNROLL) * CACHE_LINE;
        if (!next || prefetched == UNROLL) {
            multiply_rows(here, 0, multiply_tile, &tile);
        } else {
            if (lines == UNROLL / 4) multiply_rows(here, UNROLL / 4, multiply_tile, &tile);
            if (lines == UNROLL / 2) multiply_rows(here, UNROLL / 2, multiply_tile, &tile);
            if (lines == UNROLL) multiply_rows(here, UNROLL, multiply_tile, &tile);
            prefetched += lines;
        }
        tile.x += here * tile.x_stride, tile.row += here;
        done += here;
    }
}
