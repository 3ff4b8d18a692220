#include "dispatch.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "platform.h"

static bool always(void) { return true; }

#ifdef HEED_X86

#include "amx/kernels.h"
#include "avx2/kernels.h"

static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static bool has_avx512(void) { return has_avx2() && __builtin_cpu_supports("avx512f"); }

/* From the lowest to the highest; each supports what those before it do. With AVX-512 onnxruntime multiplies with
 * vectors of 16 numbers, which PackedF32 does not: linear layers are left to it, and what lies between them is not. */
static const Kernels ROWS[] = {
    {.name = "none", .supported = always},
    {
        .name = "avx2",
        .supported = has_avx2,
        .linear = {[PRECISION_F32] = &PACKED_F32, [PRECISION_S16] = &PACKED_S16, [PRECISION_S8] = &PACKED_S8},
        .gelu = avx2_gelu,
        .add_norm = avx2_add_norm,
        .attention = avx2_attention,
    },
    {
        .name = "avx512",
        .supported = has_avx512,
        .gelu = avx2_gelu,
        .add_norm = avx2_add_norm,
        .attention = avx2_attention,
    },
    {
        .name = "amx",
        .supported = amx_supported,
        .linear = {[PRECISION_F32] = &PACKED_F32_SPLIT, [PRECISION_S16] = &PACKED_S16_SPLIT,
                   [PRECISION_S8] = &PACKED_S8_TILES},
        .gelu = avx2_gelu,
        .add_norm = avx2_add_norm,
        .attention = avx2_attention,
    },
};

#else

static const Kernels ROWS[] = {
    {.name = "none", .supported = always},
    {.name = "avx2"},
    {.name = "avx512"},
    {.name = "amx"},
};

#endif

static const Kernels *selected;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void select_kernels(void) {
    const char *limit = getenv("HEED_MAX_ISA");
    const Kernels *best = ROWS;
    for (size_t row = 0; row < sizeof ROWS / sizeof *ROWS; row++) {
        if (ROWS[row].supported && ROWS[row].supported()) best = &ROWS[row];
        if (limit && !strcmp(limit, ROWS[row].name)) {
            selected = best;
            return;
        }
    }
    if (!limit) selected = best;
}

const Kernels *selected_kernels(void) {
    pthread_once(&once, select_kernels);
    return selected;
}
