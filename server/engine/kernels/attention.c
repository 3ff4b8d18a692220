/* Attention of tokens that lie end to end.
 *
 *     Attention  query [T, N*H], key [T, N*H], value [T, N*V], places [B, N, L], mask [B, 1, 1 or L, L],
 *                any [B, 1, 1 or L, 1], back [T, N], scale, and three shapes that are for others
 *
 * `attention.h` says what they mean. Padded rows [B, L] exist in `places`, `mask` and `back` alone: a head takes its keys
 * and values from the tokens, and writes where the query's token lies.
 *
 * A row's keys end with the last slot that any of its queries may look at, so that a token's bits depend on its own row
 * alone.
 *
 * Letters: T tokens, B rows, L slots, N heads, H and V their widths. */

#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "dispatch.h"
#include "operators.h"

#ifdef HEED_X86

enum { INPUTS = 11 };
static const float NEVER = -1e30f; /* what is added to a score that does not count is below */

typedef struct {
    const OrtApi *api;
    float scale;
} Kernel;

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

/* How many slots of a row some query of it may look at: up to the last one. */
static long keys_of(const AttentionRun *run, long row) {
    long keys = 0;
    for (long query = 0; query < run->mask_rows; query++) {
        const float *mask = run->mask + (row * run->mask_rows + query) * run->slots;
        for (long slot = run->slots; slot > keys; slot--)
            if (mask[slot - 1] > NEVER) keys = slot;
    }
    return keys;
}

static bool sort_tokens(AttentionRun *run) {
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

static OrtStatus *take_inputs(const OrtApi *api, const OrtContext *context, AttentionRun *run) {
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

static void attend_part(void *run_, size_t part) {
    AttentionRun *run = run_;
    selected_kernels()->attention(run, part / run->heads, part % run->heads);
}

static OrtStatus *compute(void *kernel_, OrtContext *context) {
    Kernel *kernel = kernel_;
    const OrtApi *api = kernel->api;
    AttentionRun run = {.scale = kernel->scale};
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
