/* Which kernels run on this CPU.
 *
 * The table has a row for each instruction set, and in it the kernels of each operator. The highest row that the CPU
 * and the operating system support is taken, or a lower one: the environment variable HEED_MAX_ISA (none, avx2, avx512,
 * amx) limits it, so that every path that a machine has can be tested on it. It is read once. */

#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "attention.h"
#include "elementwise.h"
#include "packed.h"

/* What the graph asks of a linear layer. */
typedef enum {
    PRECISION_F32, /* Linear, Product */
    PRECISION_S16, /* Linear16: 16 bits of each value are enough */
    PRECISION_S8,  /* Int8Linear: weights are int8 */
    PRECISIONS,
} Precision;

/* A row of the table. What is null is left to onnxruntime. */
typedef struct {
    const char *name; /* of the instruction set, as in HEED_MAX_ISA */
    bool (*supported)(void);
    const LinearKernels *linear[PRECISIONS];
    void (*gelu)(const float *x, long count, float *out);
    void (*add_norm)(const Norm *, const float *x, const float *y, long rows, float *out); /* [rows, D] */
    void (*attention)(AttentionRun *, long row, long head);
} Kernels;

/* The row for this CPU, at most HEED_MAX_ISA; null if HEED_MAX_ISA names no row. */
const Kernels *selected_kernels(void);
