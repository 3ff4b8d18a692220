/* Products of float32 matrices from products of int8 matrices.
 *
 * Each row of either side is written as integers of three digits, each in -128 ... 127, times one scale: fixed point of
 * 24 bits below the row's largest value. Digits are multiplied as int8 and added up as int32, without any rounding, and
 * the sums are put together in float32 (the scheme of Ozaki et al., 2012, on integer units as in Ootomo et al., 2024).
 * The product of digits i and j counts 256^-(i + j) of that of the first two. Where i + j = 4, the least, it is left
 * out: it is below what the fixed point itself leaves out.
 *
 * For models in int8 less is enough: two digits of the left side by one of the right, where that is int8 itself with a
 * scale for each row, and two by two where it is float32.
 *
 * The tile unit of a CPU (Intel AMX) multiplies int8 many times as fast as other units multiply float32: eight products
 * of digits take less time than one of float32. Since integers add up to the same in any order, a row's result has the
 * same bits whatever other rows are multiplied with it.
 *
 * Letters: T rows of the left side (tokens), K values in each row, M rows of the right side (channels). */

#pragma once

#include <stdbool.h>
#include <stddef.h>

enum { GROUP = 16, DEPTH = 64, MOST_VALUES = 40000 /* K: beyond it, sums could leave int32 */ };

/* A matrix as digits: for each GROUP of rows, for each DEPTH values of them, a tile of each digit. */
typedef struct {
    long rows, values;
    int digits;
    signed char *tiles;
    float *scales; /* one of each row: what 1 of its integers stands for */
} Digits;

/* Whether this CPU multiplies tiles, and the system lets this process. */
bool digits_supported(void);

/* Room for the digits of a matrix, or false if there is none. */
bool digits_allocate(Digits *, long rows, long values, int digits);
void digits_free(Digits *);

/* Bytes of all tiles. */
size_t digits_size(const Digits *);

/* Writes the digits of x [T, K], of its rows in one group: three, or the first two. */
void digits_of_left(Digits *, const float *x, long group);

/* Writes the digits of w [M, K], or of its transpose [K, M]: three, or the first two. */
void digits_of_right(Digits *, const float *w, bool transposed);

/* The one digit that w [K, M] is, with the scales of its columns. */
void digits_of_int8(Digits *, const signed char *w, const float *scales);

/* How many groups of rows there are. */
long digits_groups(const Digits *);

/* y [T, M] = left right^T + bias [M] (none if null) for the channels of the groups first ... last - 1: three digits by
 * three, two by two, or two by one. */
void digits_multiply(const Digits *left, const Digits *right, long first, long last, const float *bias, float *y);
