/* Linear layers in int8, for CPUs with AVX2: what the function heed.Int8Linear says (export/int8.py), computed at once.
 *
 * A token's values are 0 to 255 steps above its lowest one, weights are int8 of 7 bits with a scale for each channel:
 * two products of them fit into 16 bits, which is how this unit adds them up. All sums are of integers, so that a
 * token's bits depend on its own values alone.
 *
 * Letters: T rows (tokens), K values in each row, M channels. */

#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Weights in panels of 16 channels: for each four of K values, those four of each channel. */
typedef struct {
    long channels, values;
    signed char *weights;
    float *scales, *sums; /* [M]: what 1 of a weight stands for, and the sum of a channel's weights */
} Bytes;

/* Room for weights, or false if there is none. */
bool bytes_allocate(Bytes *, long channels, long values);
void bytes_free(Bytes *);

/* Bytes of all weights, and how many panels there are. */
size_t bytes_size(const Bytes *);
long bytes_panels(const Bytes *);

/* Takes w [K, M], and numbers for each channel. */
void bytes_of(Bytes *, const signed char *w, const float *scales, const float *sums);

/* Rows in steps: row t is lowest[t] + step[t] * steps[t]. */
typedef struct {
    long rows, values;
    unsigned char *steps; /* [T, K], K filled up to four with zeros */
    float *lowest, *step; /* [T] */
} Steps;

bool steps_allocate(Steps *, long rows, long values);
void steps_free(Steps *);

/* Writes some rows of x [T, K]. */
void steps_of(Steps *, const float *x, long first, long last);

/* y [T, M] for the channels of the panels first ... last - 1. */
void bytes_multiply(const Bytes *, const Steps *, long first, long last, const float *bias, float *y);
