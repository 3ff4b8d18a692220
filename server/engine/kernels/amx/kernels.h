/* What `dispatch.c` takes from this folder, for CPUs with AMX (tiles of int8) and AVX-512. */

#pragma once

#include "../packed.h"

/* Weights as three int8 digits, as two, and int8 weights as they are. */
extern const LinearKernels PACKED_F32_SPLIT, PACKED_S16_SPLIT, PACKED_S8_TILES;

/* Whether the CPU multiplies tiles of int8, and the system lets this process use them. */
bool amx_supported(void);
