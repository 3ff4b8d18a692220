/* The micro-kernel of matrix products for AVX2: a register tile of up to 6 rows by one panel of 16 channels.
 *
 * All storages have the same geometry. A step of depth takes 4 bytes of each row (one float32, two int16 or four uint8)
 * and a cache line of the panel (4 bytes for each of its channels). The 4 bytes are broadcast, multiplied with the line
 * and added to 16 sums of 32 bits. Storages differ in that one instruction or two, and in what becomes of the sums:
 * both are parameters. All functions are inlined, and compiled once for each storage.
 *
 * onnxruntime multiplies large groups near the rate of the unit. Groups as they come in serving are not that large, and
 * there it waits: a model's weights do not fit into the caches, and each group fetches all of them from memory anew.
 * Here the weights of the next panel are prefetched while those of this one are multiplied (the loops are those of Goto
 * and van de Geijn, 2008). */

#pragma once

#include <string.h>

#include "../packed.h"
#include "vector.h"

enum {
    HALVES = PANEL / LANES, /* vectors in a panel */
    TILE_ROWS = 6,          /* with two vectors each, twelve sums: what 16 registers hold beside their factors */
    STEP_BYTES = 4,         /* of a row */
    UNROLL = 8,             /* steps of the inner loop; prefetches are issued once in so many */
};

typedef struct {
    const char *x, *weights;
    long x_stride;       /* bytes between rows */
    long depth;          /* steps */
    const char *next;    /* a panel that will be needed soon, as deep; or null */
    long row;            /* the first one's number */
    const void *context; /* of what becomes of the sums */
} Tile;

/* sums + row * weights, in 32 bits: of float32, or of int32. */
typedef __m256i (*MultiplyAdd)(__m256i sums, __m256i row, __m256i weights);

/* Computes a tile of `rows`, and prefetches so many lines of the next panel every UNROLL steps. */
typedef void (*TileFunction)(const int rows, const int lines, const Tile *);

INLINE void zero_sums(const int rows, __m256i sums[TILE_ROWS][HALVES]) {
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int half = 0; half < HALVES; half++) sums[row][half] = _mm256_setzero_si256();
}

INLINE void multiply_step(const int rows, MultiplyAdd multiply_add, const Tile *tile, long step,
                          __m256i sums[TILE_ROWS][HALVES]) {
    const __m256i *line = (const __m256i *)(tile->weights + step * CACHE_LINE);
    UNROLLED for (int row = 0; row < rows; row++) {
        int bits;
        memcpy(&bits, tile->x + row * tile->x_stride + step * STEP_BYTES, STEP_BYTES);
        __m256i values = _mm256_set1_epi32(bits);
        UNROLLED for (int half = 0; half < HALVES; half++)
            sums[row][half] = multiply_add(sums[row][half], values, _mm256_load_si256(line + half));
    }
}

/* Adds the products of the steps first ... last - 1 to the sums. `first` is a multiple of UNROLL. */
INLINE void multiply_steps(const int rows, const int lines, const bool unrolled, MultiplyAdd multiply_add,
                           const Tile *tile, long first, long last, __m256i sums[TILE_ROWS][HALVES]) {
    long step = first;
    for (; step + UNROLL <= last; step += UNROLL) {
        UNROLLED for (int line = 0; line < lines; line++)
            _mm_prefetch(tile->next + (step / UNROLL * lines + line) * CACHE_LINE, _MM_HINT_T1);
        if (unrolled)
            UNROLLED for (int more = 0; more < UNROLL; more++)
                multiply_step(rows, multiply_add, tile, step + more, sums);
        else
            ROLLED for (int more = 0; more < UNROLL; more++)
                multiply_step(rows, multiply_add, tile, step + more, sums);
    }
    for (; step < last; step++) multiply_step(rows, multiply_add, tile, step, sums);
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

/* A product of float32 with one panel: sums [T, PANEL] = added + x [T, depth] weights [depth, PANEL]. The widths are
 * those of the matrices that x, `added` and the sums are parts of; 0 where all rows are the same. */
typedef struct {
    const float *x, *weights, *added;
    float *sums;
    long x_width, added_width, sums_width, depth;
    const float *next; /* a panel that will be needed soon, as deep; or null */
} ProductF32;

void multiply_f32(const ProductF32 *, long rows);
