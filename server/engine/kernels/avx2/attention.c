/* Attention of one head of one row, for CPUs with AVX2.
 *
 * The softmax is as wide as the row's keys, block by block of queries, and never leaves the cache (the idea of Dao et
 * al., 2022, where a whole row of scores fits). Keys and values are copied into panels, as PackedF32 has weights. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../platform.h"

#ifdef HEED_X86

#include "kernels.h"
#include "product_f32.h"
#include "vector.h"

enum { QUERIES = 48 /* at a time */ };
static const float ZEROS[PANEL] = {0};

/* Memory for one head of one row. */
typedef struct {
    float *keys, *values, *queries, *scores, *sums;
} Scratch;

static long panels_of(long width) { return ceil_div(width, PANEL); }

static const float *mask_of(const AttentionRun *run, long row, long slot) {
    return run->mask + (row * run->mask_rows + (run->mask_rows > 1 ? slot : 0)) * run->slots;
}

/* Eight rows of eight numbers become eight columns. */
AVX2 static inline void transpose(const float *const rows[LANES], float *to, long width) {
    __m256 pairs[LANES], fours[LANES];
    for (int i = 0; i < LANES; i += 2) {
        __m256 one = _mm256_loadu_ps(rows[i]), other = _mm256_loadu_ps(rows[i + 1]);
        pairs[i] = _mm256_unpacklo_ps(one, other), pairs[i + 1] = _mm256_unpackhi_ps(one, other);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
            fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(to + i * width, _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * width, _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31));
    }
}

/* Keys in panels: for each PANEL of them, for each of H values, that of each key. Beyond the last key its numbers stand
 * again: scores that nobody looks at. */
static void take_keys(const AttentionRun *run, long row, long head, long count, float *panels) {
    const int64_t *places = run->places + (row * run->heads + head) * run->slots;
    long width = run->width, in_eights = width / LANES * LANES;
    for (long slot = 0; slot < panels_of(count) * PANEL; slot += LANES) {
        const float *keys[LANES];
        float *to = panels + slot / PANEL * PANEL * width + slot % PANEL;
        for (long i = 0; i < LANES; i++) keys[i] = run->key + places[slot + i < count ? slot + i : count - 1] * width;
        for (long h = 0; h < in_eights; h += LANES) {
            const float *here[LANES];
            for (long i = 0; i < LANES; i++) here[i] = keys[i] + h;
            transpose(here, to + h * PANEL, PANEL);
        }
        for (long h = in_eights; h < width; h++)
            for (long i = 0; i < LANES; i++) to[h * PANEL + i] = keys[i][h];
    }
}

/* Values in panels: for each PANEL of their V numbers, for each key, its own. */
AVX2 static void take_values(const AttentionRun *run, long row, long head, long count, float *panels) {
    const int64_t *places = run->places + (row * run->heads + head) * run->slots;
    for (long slot = 0; slot < count; slot++) {
        const float *value = run->value + places[slot] * run->value_width;
        for (long v = 0; v < panels_of(run->value_width) * PANEL; v += LANES) {
            float *to = panels + v / PANEL * PANEL * count + slot * PANEL + v % PANEL;
            _mm256_storeu_ps(to, v < run->value_width ? load(value + v, run->value_width - v) : _mm256_setzero_ps());
        }
    }
}

AVX2 static void take_queries(const AttentionRun *run, const long *tokens, long count, long head, float *queries) {
    for (long i = 0; i < count; i++) {
        const float *query = run->query + (tokens[i] * run->heads + head) * run->width;
        float *to = queries + i * run->width;
        for (long h = 0; h < run->width; h += LANES)
            store(to + h, run->width - h, _mm256_mul_ps(load(query + h, run->width - h), _mm256_set1_ps(run->scale)));
    }
}

/* e^(score - largest) in place of the scores; returns their sum. */
AVX2 static float exp_scores(float *scores, const float *mask, long keys) {
    __m256 largest = _mm256_set1_ps(-INFINITY), sum = _mm256_setzero_ps();
    for (long k = 0; k < keys; k += LANES) {
        __m256 score = _mm256_add_ps(_mm256_loadu_ps(scores + k), load(mask + k, keys - k));
        if (keys - k < LANES) /* beyond the last key there is room, and nothing in it */
            score = _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), score, _mm256_castsi256_ps(lanes_left(keys - k)));
        _mm256_storeu_ps(scores + k, score);
        largest = _mm256_max_ps(largest, score);
    }
    __m256 most = _mm256_set1_ps(largest_lane(largest));
    for (long k = 0; k < keys; k += LANES) {
        __m256 weight = exp_vector(_mm256_sub_ps(_mm256_loadu_ps(scores + k), most));
        _mm256_storeu_ps(scores + k, weight);
        sum = _mm256_add_ps(sum, weight);
    }
    return add_lanes(sum);
}

/* sums [rows, count * PANEL] = x [rows, depth] times so many panels. */
static void multiply(const float *x, long rows, long depth, long x_width, const float *panels, long count,
                     float *sums) {
    for (long panel = 0; panel < count; panel++) {
        ProductF32 product = {
            .x = x,
            .weights = panels + panel * depth * PANEL,
            .added = ZEROS,
            .sums = sums + panel * PANEL,
            .x_width = x_width,
            .sums_width = count * PANEL,
            .depth = depth,
        };
        multiply_f32(&product, rows);
    }
}

AVX2 static void attend(const AttentionRun *run, const Scratch *scratch, long row, long head, const long *tokens, long count,
                        long keys) {
    long key_panels = panels_of(keys), value_panels = panels_of(run->value_width);
    long width = key_panels * PANEL, value_width = run->value_width;
    take_queries(run, tokens, count, head, scratch->queries);
    multiply(scratch->queries, count, run->width, run->width, scratch->keys, key_panels, scratch->scores);
    float sums[QUERIES];
    for (long i = 0; i < count; i++)
        sums[i] = exp_scores(scratch->scores + i * width, mask_of(run, row, slot_of(run, tokens[i])), keys);
    multiply(scratch->scores, count, keys, width, scratch->values, value_panels, scratch->sums);
    for (long i = 0; i < count; i++) {
        const float *from = scratch->sums + i * value_panels * PANEL;
        float *to = run->out + (tokens[i] * run->heads + head) * value_width;
        float any = run->any[row * run->any_rows + (run->any_rows > 1 ? slot_of(run, tokens[i]) : 0)];
        __m256 share = _mm256_set1_ps(1 / sums[i]);
        for (long v = 0; v < value_width; v += LANES) {
            __m256 taken = any ? _mm256_mul_ps(_mm256_loadu_ps(from + v), share) : _mm256_setzero_ps();
            store(to + v, value_width - v, taken);
        }
    }
}

/* Nothing to look at: zeros. */
static void attend_to_nothing(const AttentionRun *run, long head, const long *tokens, long count) {
    for (long i = 0; i < count; i++)
        memset(run->out + (tokens[i] * run->heads + head) * run->value_width, 0, run->value_width * sizeof(float));
}

static float *allocate_scratch(const AttentionRun *run, long keys, Scratch *scratch) {
    long slots = panels_of(keys) * PANEL, values = panels_of(run->value_width) * PANEL;
    long sizes[] = {slots * run->width, values * keys, QUERIES * run->width, QUERIES * slots, QUERIES * values};
    float **parts[] = {&scratch->keys, &scratch->values, &scratch->queries, &scratch->scores, &scratch->sums};
    long total = 0;
    for (int i = 0; i < 5; i++) total += sizes[i] = (sizes[i] + PANEL - 1) / PANEL * PANEL;
    float *all = allocate_lines(total * sizeof *all);
    float *next = all;
    for (int i = 0; all && i < 5; next += sizes[i++]) *parts[i] = next;
    return all;
}

void avx2_attention(AttentionRun *run, long row, long head) {
    long keys = run->keys[row], count = run->firsts[row + 1] - run->firsts[row];
    const long *tokens = run->members + run->firsts[row];
    if (!keys) return attend_to_nothing(run, head, tokens, count);
    Scratch scratch;
    float *all = allocate_scratch(run, keys, &scratch);
    if (!all) {
        atomic_store_explicit(&run->no_memory, true, memory_order_relaxed);
        return;
    }
    take_keys(run, row, head, keys, scratch.keys);
    take_values(run, row, head, keys, scratch.values);
    for (long done = 0; done < count; done += QUERIES)
        attend(run, &scratch, row, head, tokens + done, smaller(count - done, QUERIES), keys);
    free(all);
}

#endif
