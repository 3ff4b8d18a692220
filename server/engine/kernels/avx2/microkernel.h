/* The micro-kernel of matrix products for AVX2: a register tile of up to 6 rows by one panel of 16 channels.
 *
 * All storages have the same geometry. A step of depth takes 4 bytes of each row (one float32, two int16 or four uint8)
 * and a cache line of the panel (4 bytes for each of its channels). The 4 bytes are broadcast, multiplied with the line
 * and added to 16 sums of 32 bits. Storages differ in that one instruction or two, and in what becomes of the sums. Each
 * includes this file, once, after it has defined
 *
 *     Vector          the type of vectors: __m256, or Int32x8
 *     broadcast       a vector that repeats STEP_BYTES of a row
 *     multiply_add    sums + row * weights, in 32 bits
 *
 * All functions are inlined.
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
};

typedef struct {
    const char *x, *weights;
    long x_stride;       /* bytes between rows */
    long depth;          /* steps */
    const char *next;    /* in a panel that will be needed soon, as deep: what the first step prefetches; or null */
    long next_stride;    /* bytes from one step's prefetch to the next one's */
    long row;            /* the first one's number */
    const void *context; /* of what becomes of the sums */
} Tile;

/* Computes a tile of `rows`, and prefetches its part of the next panel if it is told to. */
typedef void (*TileFunction)(const int rows, const bool prefetches, const Tile *);

INLINE void zero_sums(const int rows, Vector sums[TILE_ROWS][HALVES]) {
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) sums[row][half] = (Vector){0};
}

INLINE void multiply_step(const int rows, const char *x, long x_stride, const char *line,
                          Vector sums[TILE_ROWS][HALVES]) {
    UNROLLED for (int row = 0; row < rows; row++) {
        Vector values = broadcast(x + row * x_stride);
        UNROLLED for (int half = 0; half < HALVES; half++) {
            const Vector *weights = (const Vector *)line + half;
            sums[row][half] = multiply_add(sums[row][half], values, *weights);
        }
    }
}

/* Adds the products of `count` steps from `first` on to the sums.
 *
 * One loop, whose steps gcc unrolls late. (An inner loop of a constant count it unrolls early: then it delays additions
 * of integers beyond the next multiplications, and the sums leave the registers.) */
INLINE void multiply_steps(const int rows, const bool prefetches, const Tile *tile, long first, long count,
                           Vector sums[TILE_ROWS][HALVES]) {
    const char *x = tile->x + first * STEP_BYTES, *line = tile->weights + first * CACHE_LINE;
    const char *next = prefetches ? tile->next + first * tile->next_stride : NULL;
    _Pragma("GCC unroll 4") for (long step = 0; step < count; step++) {
        if (prefetches) _mm_prefetch(next + step * tile->next_stride, _MM_HINT_T1);
        multiply_step(rows, x + step * STEP_BYTES, tile->x_stride, line + step * CACHE_LINE, sums);
    }
}

INLINE void multiply_rows(long rows, const bool prefetches, TileFunction multiply_tile, const Tile *tile) {
    switch (rows) {
    case 1: return multiply_tile(1, prefetches, tile);
    case 2: return multiply_tile(2, prefetches, tile);
    case 3: return multiply_tile(3, prefetches, tile);
    case 4: return multiply_tile(4, prefetches, tile);
    case 5: return multiply_tile(5, prefetches, tile);
    default: return multiply_tile(TILE_ROWS, prefetches, tile);
    }
}

/* All rows, in tiles of about as many rows each. The first four tiles prefetch the next panel, or as many as there are:
 * a fourth of it each, a half, or all of it. */
INLINE void multiply_tiles(Tile tile, long rows, TileFunction multiply_tile) {
    long tiles = ceil_div(rows, TILE_ROWS), parts = tiles >= 4 ? 4 : tiles > 1 ? 2 : 1, done = 0;
    const char *next = tile.next;
    tile.next_stride = CACHE_LINE / parts;
    for (long number = 0; number < tiles; number++) {
        long here = ceil_div(rows - done, tiles - number);
        if (next && number < parts) {
            tile.next = next + number * tile.depth * tile.next_stride;
            multiply_rows(here, true, multiply_tile, &tile);
        } else {
            multiply_rows(here, false, multiply_tile, &tile);
        }
        tile.x += here * tile.x_stride, tile.row += here;
        done += here;
    }
}
