/* What `dispatch.c` takes from this folder, for CPUs with AVX2 and FMA. */

#pragma once

#include "../attention.h"
#include "../elementwise.h"
#include "../packed.h"

extern const LinearKernels PACKED_F32, PACKED_S16, PACKED_S8;

void avx2_gelu(const float *x, long count, float *out);
void avx2_add_norm(const Norm *, const float *x, const float *y, long rows, float *out);

/* All queries of one row, in one head. */
void avx2_attention(AttentionRun *, long row, long head);
