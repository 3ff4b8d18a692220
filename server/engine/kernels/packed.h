/* Weights of linear layers, packed for one instruction set, and the interface of the kernels that multiply with them.
 *
 * A storage says how weights lie in memory. Each implements one `LinearKernels`; `dispatch.c` has the table of them.
 *
 * Letters: T rows (tokens), K values in each row (depth), M channels. */

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PANEL = 16,        /* channels that are packed together, and multiplied at a time */
    CACHE_LINE = 64,   /* bytes */
    MAX_DEPTH = 40000, /* K: beyond it, sums of PackedF32Split could leave int32 */
};

/* The weights of a layer, as its graph has them. */
typedef struct {
    const void *values;         /* float32 [M, K], or transposed; int8 is always [K, M] */
    bool transposed;            /* [K, M] */
    const float *scales, *sums; /* [M], for int8: what 1 of a weight stands for; the sum of a channel's weights */
} LayerWeights;

typedef struct LinearKernels LinearKernels;

/* Packed weights: one block of memory, so that they are compared, hashed and freed in the same way in all storages. */
typedef struct PackedWeights {
    const LinearKernels *kernels;
    long channels, depth;
    size_t size;
    char *data; /* aligned to cache lines; what the storage leaves free is zero */
    uint64_t hash;
    long users;
    struct PackedWeights *next; /* with the same bucket */
} PackedWeights;

/* Rows to multiply: x [T, K], and the same quantized, if the storage wants it. */
typedef struct {
    long rows;
    const float *x;
    char *quantized; /* aligned to cache lines */
} Activations;

struct LinearKernels {
    const char *storage; /* its name */
    int digits;          /* of PackedF32Split: int8 digits to a weight */
    long chunk_bytes;    /* quantized rows are multiplied in chunks of about this size; 0: all at once */

    /* Bytes of packed weights. */
    size_t (*packed_size)(const PackedWeights *);

    /* Writes `data`, which is zero. False: no memory. */
    bool (*pack)(const PackedWeights *, const LayerWeights *);

    /* Bytes of so many quantized rows, and quantizing rows first ... last - 1. `first` is a multiple of PANEL. Null where
     * rows are multiplied as they are. */
    size_t (*quantized_size)(const PackedWeights *, long rows);
    void (*quantize)(const PackedWeights *, const Activations *, long first, long last);

    /* y [T, M] = x [T, K] w^T + bias [M] for the channels of the panels first ... last - 1. A row's bits depend on its
     * own values alone, whatever other rows are multiplied with it. */
    void (*multiply)(const PackedWeights *, const Activations *, long first, long last, const float *bias, float *y);
};

static inline long ceil_div(long whole, long part) { return (whole + part - 1) / part; }
static inline long smaller(long one, long other) { return one < other ? one : other; }
static inline long panel_count(const PackedWeights *packed) { return ceil_div(packed->channels, PANEL); }

/* Memory aligned to cache lines; null if there is none. */
void *allocate_lines(size_t bytes);

/* Packs a layer's weights, or finds the equal ones that another layer or session of this process holds. Null: no
 * memory. Thread-safe. Each call is matched by one of `release_packed`. */
PackedWeights *acquire_packed(const LinearKernels *, long channels, long depth, const LayerWeights *);
void release_packed(PackedWeights *);

/* How many different packed weights the process holds. */
long packed_in_use(void);
