/* Attention of tokens that lie end to end.
 *
 *     Attention  query [T, N*H], key [T, N*H], value [T, N*V], places [B, N, L], mask [B, 1, 1 or L, L],
 *                any [B, 1, 1 or L, 1], back [T, N], scale, and three shapes that are for others
 *
 * Slot l of row b holds the token places[b, n, l] / N. The mask is added to its scores as a key; a query's own slot is
 * in `back`, as (row * N + n) * L + l; `any` is 0 for a query that is allowed no key. Padded rows [B, L] exist in these
 * numbers alone: a head takes its keys and values from the tokens, and writes where the query's token lies.
 *
 * A row's keys end with the last slot that any of its queries may look at, so that a token's bits depend on its own row
 * alone. The softmax is as wide as that, block by block of queries, and never leaves the cache (the idea of Dao et al.,
 * 2022, where a whole row of scores fits).
 *
 * Letters: T tokens, B rows, L slots, N heads, H and V their widths. */

#include <stdlib.h>
#include <string.h>

#include "operators.h"
#include "avx2/packed_f32.h"

#ifdef HEED_X86

#include <math.h>

#include "avx2/vector.h"

enum { INPUTS = 11, QUERIES = 48 /* at a time */ };
static const float NEVER = -1e30f; /* what is added to a score that does not count is below */
static const float ZEROS[PANEL] = {0};

typedef struct {
    const OrtApi *api;
    float scale;
} Kernel;

/* What one run is about. */
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
    bool no_memory;
} Run;

/* Room for what one head of one row needs. */
typedef struct {
    float *keys, *values, *queries, *scores, *sums;
} Room;

static const char *name(const OrtOperator *operator) { return (void)operator, "Attention"; }
static size_t inputs(const OrtOperator *operator) { return (void)operator, INPUTS; }
static int type(const OrtOperator *operator, size_t index) {
    return (void)operator, index == 3 || index == 6 || index > 7 ? ORT_INT64 : ORT_FLOAT;
}
static void destroy(void *kernel) { free(kernel); }

static long numbers_from(const Tensor *tensor, size_t axis) {
    long numbers = 1;
    for (; axis < tensor->rank; axis++) numbers *= tensor->sizes[axis];
    return numbers;
}

static OrtStatus *create(const OrtOperator *operator, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
    (void)operator;
    Tensor scale;
    OrtStatus *failed = constant_of(api, info, 7, &scale);
    if (failed) return failed;
    if (numbers_from(&scale, 0) != 1) return failure(api, "heed: the scale of attention must be one number");
    Kernel *made = malloc(sizeof *made);
    if (!made) return failure(api, "heed: no memory");
    *made = (Kernel){api, *(float *)scale.data};
    *kernel = made;
    return NULL;
}

static long panels_of_width(long width) { return (width + PANEL - 1) / PANEL; }
static long row_of(const Run *run, long token) {
    return run->back[token * run->heads] / (run->heads * run->slots);
}
static long slot_of(const Run *run, long token) { return run->back[token * run->heads] % run->slots; }
static const float *mask_of(const Run *run, long row, long slot) {
    return run->mask + (row * run->mask_rows + (run->mask_rows > 1 ? slot : 0)) * run->slots;
}

/* --- One head of one row --- */

/* Eight rows of eight numbers become eight columns. */
HERE static inline void turn(const float *const rows[LANES], float *to, long width) {
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
static void take_keys(const Run *run, long row, long head, long count, float *panels) {
    const int64_t *places = run->places + (row * run->heads + head) * run->slots;
    long width = run->width, in_eights = width / LANES * LANES;
    for (long slot = 0; slot < panels_of_width(count) * PANEL; slot += LANES) {
        const float *keys[LANES];
        float *to = panels + slot / PANEL * PANEL * width + slot % PANEL;
        for (long i = 0; i < LANES; i++) keys[i] = run->key + places[slot + i < count ? slot + i : count - 1] * width;
        for (long h = 0; h < in_eights; h += LANES) {
            const float *here[LANES];
            for (long i = 0; i < LANES; i++) here[i] = keys[i] + h;
            turn(here, to + h * PANEL, PANEL);
        }
        for (long h = in_eights; h < width; h++)
            for (long i = 0; i < LANES; i++) to[h * PANEL + i] = keys[i][h];
    }
}

/* Values in panels: for each PANEL of their V numbers, for each key, its own. */
HERE static void take_values(const Run *run, long row, long head, long count, float *panels) {
    const int64_t *places = run->places + (row * run->heads + head) * run->slots;
    for (long slot = 0; slot < count; slot++) {
        const float *value = run->value + places[slot] * run->value_width;
        for (long v = 0; v < panels_of_width(run->value_width) * PANEL; v += LANES) {
            float *to = panels + v / PANEL * PANEL * count + slot * PANEL + v % PANEL;
            _mm256_storeu_ps(to, v < run->value_width ? load(value + v, run->value_width - v) : _mm256_setzero_ps());
        }
    }
}

HERE static void take_queries(const Run *run, const long *tokens, long count, long head, float *queries) {
    for (long i = 0; i < count; i++) {
        const float *query = run->query + (tokens[i] * run->heads + head) * run->width;
        float *to = queries + i * run->width;
        for (long h = 0; h < run->width; h += LANES)
            store(to + h, run->width - h, _mm256_mul_ps(load(query + h, run->width - h), _mm256_set1_ps(run->scale)));
    }
}

/* e^(score - largest) in place of the scores; returns their sum. */
HERE static float soften(float *scores, const float *mask, long keys) {
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
        __m256 weight = exp_of(_mm256_sub_ps(_mm256_loadu_ps(scores + k), most));
        _mm256_storeu_ps(scores + k, weight);
        sum = _mm256_add_ps(sum, weight);
    }
    return add_lanes(sum);
}

static void multiply(const float *x, long rows, long depth, long x_width, const float *panels, long count,
                     float *sums) {
    for (long panel = 0; panel < count; panel++)
        tiles_multiply(
            (Tile){
                .x = x,
                .weights = panels + panel * depth * PANEL,
                .added = ZEROS,
                .sums = sums + panel * PANEL,
                .x_width = x_width,
                .added_width = 0,
                .sums_width = count * PANEL,
                .depth = depth,
                .next = NULL,
            },
            rows);
}

HERE static void attend(const Run *run, const Room *room, long row, long head, const long *tokens, long count,
                        long keys) {
    long key_panels = panels_of_width(keys), value_panels = panels_of_width(run->value_width);
    long width = key_panels * PANEL, value_width = run->value_width;
    take_queries(run, tokens, count, head, room->queries);
    multiply(room->queries, count, run->width, run->width, room->keys, key_panels, room->scores);
    float sums[QUERIES];
    for (long i = 0; i < count; i++)
        sums[i] = soften(room->scores + i * width, mask_of(run, row, slot_of(run, tokens[i])), keys);
    multiply(room->scores, count, keys, width, room->values, value_panels, room->sums);
    for (long i = 0; i < count; i++) {
        const float *from = room->sums + i * value_panels * PANEL;
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
static void attend_to_nothing(const Run *run, long head, const long *tokens, long count) {
    for (long i = 0; i < count; i++)
        memset(run->out + (tokens[i] * run->heads + head) * run->value_width, 0, run->value_width * sizeof(float));
}

static float *room_for(const Run *run, long keys, Room *room) {
    long slots = panels_of_width(keys) * PANEL, values = panels_of_width(run->value_width) * PANEL;
    long sizes[] = {slots * run->width, values * keys, QUERIES * run->width, QUERIES * slots, QUERIES * values};
    float **parts[] = {&room->keys, &room->values, &room->queries, &room->scores, &room->sums};
    long total = 0;
    for (int i = 0; i < 5; i++) total += sizes[i] = (sizes[i] + PANEL - 1) / PANEL * PANEL;
    float *all = aligned_alloc(64, total * sizeof *all);
    float *next = all;
    for (int i = 0; all && i < 5; next += sizes[i++]) *parts[i] = next;
    return all;
}

static void attend_part(void *run_, size_t part) {
    Run *run = run_;
    long row = part / run->heads, head = part % run->heads, keys = run->keys[row];
    const long *tokens = run->members + run->firsts[row];
    long count = run->firsts[row + 1] - run->firsts[row];
    if (!keys) return attend_to_nothing(run, head, tokens, count);
    Room room;
    float *all = room_for(run, keys, &room);
    if (!all) {
        run->no_memory = true;
        return;
    }
    take_keys(run, row, head, keys, room.keys);
    take_values(run, row, head, keys, room.values);
    for (long done = 0; done < count; done += QUERIES)
        attend(run, &room, row, head, tokens + done, count - done < QUERIES ? count - done : QUERIES, keys);
    free(all);
}

/* --- All of them --- */

/* How many slots of a row some query of it may look at: up to the last one. */
static long keys_of(const Run *run, long row) {
    long keys = 0;
    for (long query = 0; query < run->mask_rows; query++) {
        const float *mask = run->mask + (row * run->mask_rows + query) * run->slots;
        for (long slot = run->slots; slot > keys; slot--)
            if (mask[slot - 1] > NEVER) keys = slot;
    }
    return keys;
}

static bool sort_tokens(Run *run) {
    run->keys = calloc(run->rows * 2 + 1 + run->tokens, sizeof *run->keys);
    if (!run->keys) return false;
    run->firsts = run->keys + run->rows, run->members = run->firsts + run->rows + 1;
    for (long token = 0; token < run->tokens; token++) run->firsts[row_of(run, token) + 1]++;
    long *next = run->keys; /* for now: where a row's next token goes */
    for (long row = 0; row < run->rows; row++) {
        run->firsts[row + 1] += run->firsts[row];
        next[row] = run->firsts[row];
    }
    for (long token = 0; token < run->tokens; token++) run->members[next[row_of(run, token)]++] = token;
    for (long row = 0; row < run->rows; row++) run->keys[row] = keys_of(run, row);
    return true;
}

/* Seen without a sign, a negative number is larger than any size. */
static bool all_below(const int64_t *numbers, long count, long size) {
    uint64_t most = 0;
    for (long i = 0; i < count; i++) most = (uint64_t)numbers[i] > most ? (uint64_t)numbers[i] : most;
    return !count || most < (uint64_t)size;
}

/* How many numbers a token has, all heads together: [T, N*H], or [T, N, H]. */
static long each_has(const Tensor *tensor) { return numbers_from(tensor, 1); }

static OrtStatus *take_inputs(const OrtApi *api, const OrtContext *context, Run *run) {
    Tensor all[7];
    for (size_t i = 0; i < 7; i++) {
        OrtStatus *failed = input_of(api, context, i, &all[i]);
        if (failed) return failed;
    }
    const Tensor *query = &all[0], *key = &all[1], *value = &all[2], *places = &all[3], *mask = &all[4];
    const Tensor *any = &all[5], *back = &all[6];
    bool ranks = query->rank > 1 && key->rank > 1 && value->rank > 1 && places->rank == 3 && mask->rank == 4 &&
                 any->rank == 4 && back->rank == 2;
    if (!ranks) return failure(api, "heed: attention takes tokens [T, D], places [B, N, L] and a mask [B, 1, 1, L]");
    run->query = query->data, run->key = key->data, run->value = value->data;
    run->places = places->data, run->mask = mask->data, run->any = any->data, run->back = back->data;
    run->tokens = query->sizes[0], run->rows = places->sizes[0], run->heads = places->sizes[1];
    run->slots = places->sizes[2], run->mask_rows = mask->sizes[2], run->any_rows = any->sizes[2];
    if (run->heads < 1 || run->slots < 1) return failure(api, "heed: attention needs a head and a slot at least");
    run->width = each_has(query) / run->heads, run->value_width = each_has(value) / run->heads;
    bool fits = key->sizes[0] == run->tokens && value->sizes[0] == run->tokens && back->sizes[0] == run->tokens &&
                back->sizes[1] == run->heads && each_has(key) == each_has(query) && mask->sizes[0] == run->rows &&
                mask->sizes[1] == 1 && mask->sizes[3] == run->slots && any->sizes[0] == run->rows &&
                any->sizes[1] == 1 && any->sizes[3] == 1 &&
                (run->mask_rows == 1 || run->mask_rows == run->slots) &&
                (run->any_rows == 1 || run->any_rows == run->slots);
    if (!fits) return failure(api, "heed: the inputs of attention do not fit together");
    bool inside = all_below(run->places, run->rows * run->heads * run->slots, run->tokens * run->heads) &&
                  all_below(run->back, run->tokens * run->heads, run->rows * run->heads * run->slots);
    return inside ? NULL : failure(api, "heed: attention is told of places that there are not");
}

static OrtStatus *compute(void *kernel_, OrtContext *context) {
    Kernel *kernel = kernel_;
    const OrtApi *api = kernel->api;
    Run run = {.scale = kernel->scale};
    OrtStatus *failed = take_inputs(api, context, &run);
    int64_t sizes[] = {run.tokens, run.heads * run.value_width};
    if (!failed) failed = output_of(api, context, sizes, 2, &run.out);
    if (failed || !run.tokens) return failed;
    if (!sort_tokens(&run)) return failure(api, "heed: no memory");
    failed = api->parallel_for(context, attend_part, run.rows * run.heads, 0, &run);
    free(run.keys);
    return failed || !run.no_memory ? failed : failure(api, "heed: no memory for attention");
}

const OrtOperator ATTENTION = OPERATOR(name, inputs, type, create, compute, destroy);

#endif
