/* What PackedF32 and attention share. */

#pragma once

/* A product of float32 with one panel: sums [T, PANEL] = added + x [T, depth] weights [depth, PANEL]. The widths are
 * those of the matrices that x, `added` and the sums are parts of; 0 where all rows are the same. */
typedef struct {
    const float *x, *weights, *added;
    float *sums;
    long x_width, added_width, sums_width, depth;
    const float *next; /* a panel that will be needed soon, as deep; or null */
} ProductF32;

void multiply_f32(const ProductF32 *, long rows);
