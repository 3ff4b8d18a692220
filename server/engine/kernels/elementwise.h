/* What the kernels of the operators Gelu and AddNorm take. */

#pragma once

/* LayerNorm: weight [D], bias [D]. */
typedef struct {
    const float *weight, *bias;
    float epsilon;
    long width; /* D */
} Norm;
