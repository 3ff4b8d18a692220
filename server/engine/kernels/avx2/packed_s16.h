/* Linear layers where 16 bits of each value are enough (Linear16), for CPUs with AVX2: as integers of 16 bits, of which
 * the unit multiplies twice as many at a time as of float32.
 *
 * A token's values are rounded to 32,767 steps up to its largest one, either way, and a channel's weights to 2,047: a
 * token may have a value that is far larger than its others, trained weights do not. As many as 32 products of them add
 * up without leaving 32 bits. Those sums are exact; they are added up in float32, in the order of the values. So a
 * token's bits depend on its own values alone.
 *
 * Letters: T rows (tokens), K values in each row, M channels. */

#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Weights in panels of 16 channels: for each two of K values, those two of each channel. */
typedef struct {
    long channels, values;
    short *weights;
    float *scales; /* [M]: what 1 of a weight stands for */
} Words;

/* Room for weights, or false if there is none. */
bool words_allocate(Words *, long channels, long values);
void words_free(Words *);

/* Bytes of all weights, and how many panels there are. */
size_t words_size(const Words *);
long words_panels(const Words *);

/* Rounds w [M, K], or its transpose [K, M]. */
void words_of(Words *, const float *w, bool transposed);

/* Rows that are rounded: row t is scales[t] * words[t]. */
typedef struct {
    long rows, values;
    short *words;  /* [T, K], K filled up to two with a zero */
    float *scales; /* [T] */
} Rounded;

bool rounded_allocate(Rounded *, long rows, long values);
void rounded_free(Rounded *);

/* Rounds some rows of x [T, K]. */
void rounded_of(Rounded *, const float *x, long first, long last);

/* y [T, M] for the channels of the panels first ... last - 1. */
void words_multiply(const Words *, const Rounded *, long first, long last, const float *bias, float *y);
