/* Products of float32 matrices, for CPUs whose vector unit is all they have (AVX2 and FMA).
 *
 * onnxruntime multiplies large groups near the rate of the unit. Groups as they come in serving are not that large, and
 * there it waits: a model's weights do not fit into the caches, and each group fetches all of them from memory anew.
 * Here the weights of the next channels are asked for while those before are multiplied, and a block of rows stays in
 * the second cache while channels pass (the loops are those of Goto and van de Geijn, 2008).
 *
 * Each number is added up in the order of its values, in blocks of a size that the layer alone decides, so that a row's
 * result has the same bits whatever other rows are multiplied with it.
 *
 * Letters: T rows (tokens), K values in each row, M channels. */

#pragma once

#include <stdbool.h>
#include <stddef.h>

enum { PANEL = 16 /* channels, which are multiplied at a time */ };

/* Weights in panels: for each PANEL channels, for each of K values, one weight of each channel. */
typedef struct {
    long channels, values;
    float *weights;
} Panels;

/* Whether this CPU has the vector unit, and none that onnxruntime makes more of. */
bool panels_supported(void);

/* Room for weights, or false if there is none. */
bool panels_allocate(Panels *, long channels, long values);
void panels_free(Panels *);

/* Bytes of all weights. */
size_t panels_size(const Panels *);

/* How many panels there are. */
long panels_count(const Panels *);

/* Writes w [M, K], or its transpose [K, M], as panels. */
void panels_of(Panels *, const float *w, bool transposed);

/* y [T, M] = x [T, K] w^T + bias [M] for the channels of the panels first ... last - 1. */
void panels_multiply(const Panels *, const float *x, long rows, long first, long last, const float *bias, float *y);

/* A product of one panel: sums [T, PANEL] = added + x [T, depth] weights [depth, PANEL]. The widths are those of the
 * matrices that x, `added` and the sums are parts of; 0 where all rows are the same. */
typedef struct {
    const float *x, *weights, *added;
    float *sums;
    long x_width, added_width, sums_width, depth;
    const char *next; /* weights that will be needed soon, as many; or null */
} Tile;

void tiles_multiply(Tile, long rows);
