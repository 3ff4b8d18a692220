/* The instructions of AVX-512 and AMX that the kernels of amx/ use, one after the other in plain C, so that those
 * kernels run on any CPU. Compile with -DHEED_EMULATED_AMX='"emulated_amx.h"'.
 *
 * What each does is from Intel's Intrinsics Guide: rounding is to nearest even, int32 overflow gives INT32_MIN. */

#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define AMX

typedef struct {
    float at[16];
} EmulatedFloats;
typedef struct {
    int32_t at[16];
} EmulatedInts;

#define __m512 EmulatedFloats
#define __m512i EmulatedInts
#define __mmask16 uint16_t
#define FOR_LANES for (int i = 0; i < 16; i++)
#define EMULATED(type, name, ...) static inline type emulated_##name(__VA_ARGS__)

bool amx_supported(void) { return true; }

EMULATED(EmulatedFloats, set1_ps, float x) { EmulatedFloats y; FOR_LANES y.at[i] = x; return y; }
EMULATED(EmulatedInts, set1_epi32, int32_t x) { EmulatedInts y; FOR_LANES y.at[i] = x; return y; }
EMULATED(EmulatedFloats, setzero_ps, void) { return emulated_set1_ps(0); }
EMULATED(EmulatedInts, castps_si512, EmulatedFloats x) { EmulatedInts y; memcpy(&y, &x, sizeof y); return y; }
EMULATED(EmulatedFloats, castsi512_ps, EmulatedInts x) { EmulatedFloats y; memcpy(&y, &x, sizeof y); return y; }
EMULATED(float, cvtss_f32, EmulatedFloats x) { return x.at[0]; }
EMULATED(EmulatedFloats, maskz_loadu_ps, uint16_t mask, const float *x) {
    EmulatedFloats y = emulated_set1_ps(0);
    FOR_LANES if (mask >> i & 1) y.at[i] = x[i];
    return y;
}
EMULATED(EmulatedFloats, loadu_ps, const float *x) { return emulated_maskz_loadu_ps(0xffff, x); }
EMULATED(EmulatedInts, load_si512, const void *x) { EmulatedInts y; memcpy(&y, x, sizeof y); return y; }
EMULATED(void, mask_storeu_ps, float *to, uint16_t mask, EmulatedFloats x) { FOR_LANES if (mask >> i & 1) to[i] = x.at[i]; }
EMULATED(EmulatedInts, max_epu32, EmulatedInts a, EmulatedInts b) {
    FOR_LANES if ((uint32_t)b.at[i] > (uint32_t)a.at[i]) a.at[i] = b.at[i];
    return a;
}
EMULATED(uint32_t, reduce_max_epu32, EmulatedInts a) {
    uint32_t most = 0;
    FOR_LANES if ((uint32_t)a.at[i] > most) most = a.at[i];
    return most;
}
EMULATED(EmulatedInts, and_si512, EmulatedInts a, EmulatedInts b) { FOR_LANES a.at[i] &= b.at[i]; return a; }
EMULATED(EmulatedInts, add_epi32, EmulatedInts a, EmulatedInts b) {
    FOR_LANES a.at[i] = (int32_t)((uint32_t)a.at[i] + (uint32_t)b.at[i]);
    return a;
}
EMULATED(EmulatedInts, srai_epi32, EmulatedInts a, int count) { FOR_LANES a.at[i] >>= count; return a; }
EMULATED(__m128i, cvtepi32_epi8, EmulatedInts a) {
    uint8_t low[16];
    __m128i y;
    FOR_LANES low[i] = (uint8_t)(uint32_t)a.at[i];
    memcpy(&y, low, sizeof y);
    return y;
}
EMULATED(EmulatedFloats, mul_ps, EmulatedFloats a, EmulatedFloats b) { FOR_LANES a.at[i] *= b.at[i]; return a; }
EMULATED(EmulatedFloats, fmadd_ps, EmulatedFloats a, EmulatedFloats b, EmulatedFloats c) {
    FOR_LANES a.at[i] = fmaf(a.at[i], b.at[i], c.at[i]);
    return a;
}
EMULATED(EmulatedInts, cvtps_epi32, EmulatedFloats a) {
    EmulatedInts y;
    FOR_LANES y.at[i] = fabsf(a.at[i]) < 0x1p31f ? (int32_t)lrintf(a.at[i]) : INT32_MIN;
    return y;
}
EMULATED(EmulatedFloats, cvtepi32_ps, EmulatedInts a) {
    EmulatedFloats y;
    FOR_LANES y.at[i] = (float)a.at[i];
    return y;
}

/* A tile register: 16 rows of 64 bytes. Each thread has its own, as each core does. */
static _Thread_local int8_t emulated_tiles[8][16][64];

static inline void emulated_tile_load(int tile, const void *from, long stride) {
    for (int row = 0; row < 16; row++) memcpy(emulated_tiles[tile][row], (const char *)from + row * stride, 64);
}

static inline void emulated_tile_store(int tile, void *to, long stride) {
    for (int row = 0; row < 16; row++) memcpy((char *)to + row * stride, emulated_tiles[tile][row], 64);
}

/* sums[m][n] += the dot products of four int8 of a's row m with four of b's column n, for 16 fours. */
__attribute__((optimize("O3"), no_sanitize("address", "undefined", "thread"))) static void emulated_tile_dot(int sums, int a, int b) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) { /* registers alone: nothing for sanitizers to see */
            int32_t sum;
            memcpy(&sum, &emulated_tiles[sums][m][4 * n], sizeof sum);
            for (int k = 0; k < 64; k++) sum += emulated_tiles[a][m][k] * emulated_tiles[b][k / 4][4 * n + k % 4];
            memcpy(&emulated_tiles[sums][m][4 * n], &sum, sizeof sum);
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#define _tile_loadconfig(configuration) ((void)(configuration))
#define _tile_release() memset(emulated_tiles, 0x55, sizeof emulated_tiles)
#define _tile_zero(tile) memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile])
#define _tile_loadd(tile, from, stride) emulated_tile_load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_tile_store(tile, to, stride)
#define _tile_dpbssd(sums, a, b) emulated_tile_dot(sums, a, b)

#define _mm512_set1_ps emulated_set1_ps
#define _mm512_set1_epi32 emulated_set1_epi32
#define _mm512_setzero_ps emulated_setzero_ps
#define _mm512_castps_si512 emulated_castps_si512
#define _mm512_castsi512_ps emulated_castsi512_ps
#define _mm512_cvtss_f32 emulated_cvtss_f32
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_loadu_ps emulated_loadu_ps
#define _mm512_load_si512 emulated_load_si512
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#define _mm512_max_epu32 emulated_max_epu32
#define _mm512_reduce_max_epu32 emulated_reduce_max_epu32
#define _mm512_and_si512 emulated_and_si512
#define _mm512_add_epi32 emulated_add_epi32
#undef _mm512_srai_epi32
#define _mm512_srai_epi32 emulated_srai_epi32
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8
#define _mm512_mul_ps emulated_mul_ps
#define _mm512_fmadd_ps emulated_fmadd_ps
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
