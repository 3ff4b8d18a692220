/* One run of the operator Attention, as its kernels see it.
 *
 * Slot l of row b holds the token places[b, n, l] / N. The mask is added to its scores as a key; a query's own slot is
 * in `back`, as (row * N + n) * L + l; `any` is 0 for a query that is allowed no key.
 *
 * Letters: T tokens, B rows, L slots, N heads, H and V their widths. */

#pragma once

#include <stdatomic.h>
#include <stdint.h>

typedef struct {
    float scale;
    const float *query, *key, *value, *mask, *any;
    const int64_t *places, *back;
    float *out;
    long tokens, rows, slots, heads, width, value_width; /* T, B, L, N, H, V */
    long mask_rows, any_rows;                            /* 1, or L */
    long *keys;                                          /* [B]: slots that may be looked at */
    long *firsts;                                        /* [B + 1]: places of its tokens in `members` */
    long *members;                                       /* [T]: tokens by their rows */
    atomic_bool no_memory;                               /* set by any of the threads that share the run */
} AttentionRun;

static inline long row_of(const AttentionRun *run, long token) {
    return run->back[token * run->heads] / (run->heads * run->slots);
}

static inline long slot_of(const AttentionRun *run, long token) {
    return run->back[token * run->heads] % run->slots;
}
