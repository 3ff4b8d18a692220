/* Linear layers.
 *
 *     Linear      x, weight [M, K], bias [M]
 *     Linear16    the same, where 16 bits of each value are enough
 *     Product     x, weight [K, M]
 *     Int8Linear  x, weight int8 [K, M], scale [M], sum [M], bias [M]
 *
 * By digits where the CPU has tiles of int8 (amx/packed_f32_split.h); where its vector unit is all it has, by panels of float32
 * (avx2/packed_f32.h), of words (avx2/packed_s16.h) and of bytes (avx2/packed_s8.h). */

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "avx2/packed_s8.h"
#include "amx/packed_f32_split.h"
#include "operators.h"
#include "avx2/packed_f32.h"
#include "avx2/packed_s16.h"

#ifdef HEED_X86

enum {
    CHUNK_BYTES = 1 << 20, /* of digits at a time: they stay in a core's second cache */
    PART_GROUPS = 6,       /* of channels, that one thread computes at a time: setting the tiles up takes a while */
    PART_PANELS = 6,       /* the same for panels: a row that is fetched serves all of them */
    PART_ROWS = 16,        /* that one thread writes in steps at a time */
};

/* Weights as digits, panels, words or bytes, whichever this CPU takes for the layer, and none as the others. One copy
 * for all sessions of the process that have the same ones. */
typedef struct Weights {
    Digits digits;
    Panels panels;
    Words words;
    Bytes bytes;
    long channels, values;
    long users;
    struct Weights *next;
} Weights;

static Weights *all_weights;
static pthread_mutex_t all_weights_lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct {
    const OrtApi *api;
    Weights *weights;
    const float *bias; /* [M] */
    float *no_bias;    /* zeros in its place, of a layer that has none */
} Kernel;

static bool equal_digits(const Digits *one, const Digits *other) {
    return one->digits == other->digits && !memcmp(one->scales, other->scales, one->rows * sizeof *one->scales) &&
           !memcmp(one->tiles, other->tiles, digits_size(one));
}

static bool equal_panels(const Panels *one, const Panels *other) {
    return !memcmp(one->weights, other->weights, panels_size(one));
}

static bool equal_words(const Words *one, const Words *other) {
    return !memcmp(one->scales, other->scales, one->channels * sizeof *one->scales) &&
           !memcmp(one->weights, other->weights, words_size(one));
}

static bool equal_bytes(const Bytes *one, const Bytes *other) {
    return !memcmp(one->scales, other->scales, one->channels * sizeof *one->scales) &&
           !memcmp(one->sums, other->sums, one->channels * sizeof *one->sums) &&
           !memcmp(one->weights, other->weights, bytes_size(one));
}

static bool equal(const Weights *one, const Weights *other) {
    if (one->channels != other->channels || one->values != other->values) return false;
    if (one->digits.tiles) return equal_digits(&one->digits, &other->digits);
    if (one->panels.weights) return other->panels.weights && equal_panels(&one->panels, &other->panels);
    if (one->words.weights) return other->words.weights && equal_words(&one->words, &other->words);
    return other->bytes.weights && equal_bytes(&one->bytes, &other->bytes);
}

static void free_weights(Weights *weights) {
    if (weights) {
        digits_free(&weights->digits);
        panels_free(&weights->panels);
        words_free(&weights->words);
        bytes_free(&weights->bytes);
    }
    free(weights);
}

/* These weights, or the equal ones that are there already. */
static Weights *share(Weights *made) {
    pthread_mutex_lock(&all_weights_lock);
    Weights *found = all_weights;
    while (found && !equal(found, made)) found = found->next;
    if (!found) {
        made->next = all_weights;
        found = all_weights = made;
    }
    found->users++;
    pthread_mutex_unlock(&all_weights_lock);
    if (found != made) free_weights(made);
    return found;
}

static void let_go(Weights *weights) {
    pthread_mutex_lock(&all_weights_lock);
    bool last = --weights->users == 0;
    if (last) {
        Weights **place = &all_weights;
        while (*place != weights) place = &(*place)->next;
        *place = weights->next;
    }
    pthread_mutex_unlock(&all_weights_lock);
    if (last) free_weights(weights);
}

/* float32 as so many digits, or int8, which is one digit, with scales. */
static bool as_digits(Weights *weights, const void *w, const float *scales, bool transposed, int digits) {
    if (!digits_allocate(&weights->digits, weights->channels, weights->values, digits)) return false;
    if (digits == 1)
        digits_of_int8(&weights->digits, w, scales);
    else
        digits_of_right(&weights->digits, w, transposed);
    return true;
}

static bool as_panels(Weights *weights, const float *w, bool transposed) {
    if (!panels_allocate(&weights->panels, weights->channels, weights->values)) return false;
    panels_of(&weights->panels, w, transposed);
    return true;
}

static bool as_words(Weights *weights, const float *w, bool transposed) {
    if (!words_allocate(&weights->words, weights->channels, weights->values)) return false;
    words_of(&weights->words, w, transposed);
    return true;
}

static bool as_bytes(Weights *weights, const void *w, const float *scales, const float *sums) {
    if (!bytes_allocate(&weights->bytes, weights->channels, weights->values)) return false;
    bytes_of(&weights->bytes, w, scales, sums);
    return true;
}

/* The weights of a layer. `digits` are those of each, where weights are digits here. */
static OrtStatus *make_weights(const OrtApi *api, const OrtKernelInfo *info, bool transposed, int digits,
                               Weights **made) {
    Tensor w;
    float *scales = NULL, *sums = NULL;
    OrtStatus *failed = constant_of(api, info, 1, &w);
    if (!failed && (w.rank != 2 || w.sizes[0] < 1 || w.sizes[1] < 1 || w.sizes[!transposed] > MOST_VALUES))
        failed = failure(api, "heed: weights must be a matrix, of 1 to 40,000 values to a channel");
    if (!failed && digits == 1) failed = constants_of(api, info, 2, w.sizes[transposed], &scales);
    if (!failed && digits == 1) failed = constants_of(api, info, 3, w.sizes[transposed], &sums);
    if (failed) return failed;
    Weights *weights = calloc(1, sizeof *weights);
    if (weights) weights->channels = w.sizes[transposed], weights->values = w.sizes[!transposed];
    bool done = weights && (digits_supported() ? as_digits(weights, w.data, scales, transposed, digits)
                            : digits == 1      ? as_bytes(weights, w.data, scales, sums)
                            : digits == 2      ? as_words(weights, w.data, transposed)
                                               : as_panels(weights, w.data, transposed));
    if (!done) {
        free_weights(weights);
        return failure(api, "heed: no memory for weights");
    }
    *made = share(weights);
    return NULL;
}

/* What a layer takes, by how many inputs it has. */
enum { PRODUCT_INPUTS = 2, LINEAR_INPUTS = 3, INT8_INPUTS = 5 };

static const char *linear_name(const OrtOperator *operator) { return (void)operator, "Linear"; }
static const char *linear16_name(const OrtOperator *operator) { return (void)operator, "Linear16"; }
static const char *product_name(const OrtOperator *operator) { return (void)operator, "Product"; }
static const char *int8_name(const OrtOperator *operator) { return (void)operator, "Int8Linear"; }
static size_t linear_inputs(const OrtOperator *operator) { return (void)operator, LINEAR_INPUTS; }
static size_t product_inputs(const OrtOperator *operator) { return (void)operator, PRODUCT_INPUTS; }
static size_t int8_inputs(const OrtOperator *operator) { return (void)operator, INT8_INPUTS; }
static int input_type(const OrtOperator *operator, size_t index) {
    return index == 1 && operator->inputs(operator) == INT8_INPUTS ? ORT_INT8 : ORT_FLOAT;
}

static OrtStatus *create(const OrtOperator *operator, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
    size_t inputs = operator->inputs(operator);
    int digits = inputs == INT8_INPUTS ? 1 : operator->name == linear16_name ? 2 : 3;
    Weights *weights = NULL;
    float *bias = NULL, *no_bias = NULL;
    OrtStatus *failed = make_weights(api, info, inputs != LINEAR_INPUTS, digits, &weights);
    if (failed) return failed;
    if (inputs == PRODUCT_INPUTS)
        bias = no_bias = calloc(weights->channels, sizeof *bias);
    else
        failed = constants_of(api, info, inputs - 1, weights->channels, &bias);
    Kernel *made = malloc(sizeof *made);
    if (!failed && !(made && bias)) failed = failure(api, "heed: no memory");
    if (failed) {
        let_go(weights);
        free(no_bias);
        free(made);
        return failed;
    }
    *made = (Kernel){.api = api, .weights = weights, .bias = bias, .no_bias = no_bias};
    *kernel = made;
    return NULL;
}

static void destroy(void *kernel_) {
    Kernel *kernel = kernel_;
    let_go(kernel->weights);
    free(kernel->no_bias);
    free(kernel);
}

/* One run of a layer; by digits on a chunk of its rows at a time. */
typedef struct {
    const OrtApi *api;
    const OrtContext *context;
    const Weights *weights;
    Digits digits;   /* of the chunk */
    Steps steps;     /* of all rows */
    Rounded rounded; /* the same, for words */
    const float *x, *bias;
    float *y;
    long rows;
} Run;

static void write_digits(void *run, size_t group) { digits_of_left(&((Run *)run)->digits, ((Run *)run)->x, group); }

/* Some groups of channels: onnxruntime's threads share the parts out. */
static void multiply_digits(void *run_, size_t part) {
    Run *run = run_;
    const Digits *weights = &run->weights->digits;
    long groups = digits_groups(weights), first = part * PART_GROUPS, last = first + PART_GROUPS;
    digits_multiply(&run->digits, weights, first, last < groups ? last : groups, run->bias, run->y);
}

/* The same with panels, and all rows. */
static void multiply_panels(void *run_, size_t part) {
    Run *run = run_;
    const Panels *weights = &run->weights->panels;
    long count = panels_count(weights), first = part * PART_PANELS, last = first + PART_PANELS;
    panels_multiply(weights, run->x, run->rows, first, last < count ? last : count, run->bias, run->y);
}

/* With words. */
static void multiply_words(void *run_, size_t part) {
    Run *run = run_;
    const Words *weights = &run->weights->words;
    long count = words_panels(weights), first = part * PART_PANELS, last = first + PART_PANELS;
    words_multiply(weights, &run->rounded, first, last < count ? last : count, run->bias, run->y);
}

static void round_rows(void *run_, size_t part) {
    Run *run = run_;
    long first = part * PART_ROWS, last = first + PART_ROWS;
    rounded_of(&run->rounded, run->x, first, last < run->rows ? last : run->rows);
}

/* And with bytes. */
static void multiply_bytes(void *run_, size_t part) {
    Run *run = run_;
    const Bytes *weights = &run->weights->bytes;
    long count = bytes_panels(weights), first = part * PART_PANELS, last = first + PART_PANELS;
    bytes_multiply(weights, &run->steps, first, last < count ? last : count, run->bias, run->y);
}

static void write_steps(void *run_, size_t part) {
    Run *run = run_;
    long first = part * PART_ROWS, last = first + PART_ROWS;
    steps_of(&run->steps, run->x, first, last < run->rows ? last : run->rows);
}

/* All of `count`, so many to a part. */
static OrtStatus *in_parallel(Run *run, void (*function)(void *, size_t), long count, long part) {
    return run->api->parallel_for(run->context, function, (count + part - 1) / part, 0, run);
}

/* How many rows to compute at a time: as few chunks as their bytes allow, all of about a size. */
static long chunk_of(long rows, long values) {
    long most = CHUNK_BYTES / (3 * values), chunks;
    if (most < GROUP) most = GROUP;
    chunks = (rows + most - 1) / most;
    return (rows + chunks - 1) / chunks;
}

static OrtStatus *run_digits(Run *run) {
    const Digits *weights = &run->weights->digits;
    long rows = run->rows, values = weights->values, channels = weights->rows, chunk = chunk_of(rows, values);
    OrtStatus *failed = NULL;
    if (!digits_allocate(&run->digits, chunk, values, weights->digits == 3 ? 3 : 2))
        failed = failure(run->api, "heed: no memory for digits");
    for (long done = 0; !failed && done < rows; done += chunk, run->x += chunk * values, run->y += chunk * channels) {
        run->digits.rows = rows - done < chunk ? rows - done : chunk;
        failed = in_parallel(run, write_digits, digits_groups(&run->digits), 1);
        if (!failed) failed = in_parallel(run, multiply_digits, digits_groups(weights), PART_GROUPS);
    }
    digits_free(&run->digits);
    return failed;
}

static OrtStatus *run_panels(Run *run) {
    return in_parallel(run, multiply_panels, panels_count(&run->weights->panels), PART_PANELS);
}

static OrtStatus *run_words(Run *run) {
    OrtStatus *failed = NULL;
    if (!rounded_allocate(&run->rounded, run->rows, run->weights->values))
        failed = failure(run->api, "heed: no memory for words");
    if (!failed) failed = in_parallel(run, round_rows, run->rows, PART_ROWS);
    if (!failed) failed = in_parallel(run, multiply_words, words_panels(&run->weights->words), PART_PANELS);
    rounded_free(&run->rounded);
    return failed;
}

static OrtStatus *run_bytes(Run *run) {
    OrtStatus *failed = NULL;
    if (!steps_allocate(&run->steps, run->rows, run->weights->values))
        failed = failure(run->api, "heed: no memory for steps");
    if (!failed) failed = in_parallel(run, write_steps, run->rows, PART_ROWS);
    if (!failed) failed = in_parallel(run, multiply_bytes, bytes_panels(&run->weights->bytes), PART_PANELS);
    steps_free(&run->steps);
    return failed;
}

static OrtStatus *compute(void *kernel_, OrtContext *context) {
    Kernel *kernel = kernel_;
    const OrtApi *api = kernel->api;
    Run run = {.api = api, .context = context, .weights = kernel->weights, .bias = kernel->bias, .rows = 1};
    Tensor x;
    OrtStatus *failed = input_of(api, context, 0, &x);
    if (failed) return failed;
    if (x.rank == 0 || x.sizes[x.rank - 1] != run.weights->values) {
        char message[99];
        snprintf(message, sizeof message, "heed: rows of %ld values, and the weights have %ld",
                 x.rank ? (long)x.sizes[x.rank - 1] : 1, run.weights->values);
        return failure(api, message);
    }
    for (size_t axis = 0; axis + 1 < x.rank; axis++) run.rows *= x.sizes[axis];
    x.sizes[x.rank - 1] = run.weights->channels;
    run.x = x.data;
    failed = output_of(api, context, x.sizes, x.rank, &run.y);
    if (failed || run.rows == 0) return failed;
    if (run.weights->digits.tiles) return run_digits(&run);
    if (run.weights->panels.weights) return run_panels(&run);
    return run.weights->words.weights ? run_words(&run) : run_bytes(&run);
}

const OrtOperator LINEAR = OPERATOR(linear_name, linear_inputs, input_type, create, compute, destroy);
const OrtOperator LINEAR_16 = OPERATOR(linear16_name, linear_inputs, input_type, create, compute, destroy);
const OrtOperator PRODUCT = OPERATOR(product_name, product_inputs, input_type, create, compute, destroy);
const OrtOperator INT8_LINEAR = OPERATOR(int8_name, int8_inputs, input_type, create, compute, destroy);

const char *linear_way(void) {
    return digits_supported() ? "tiles of int8 digits" : panels_supported() ? "panels of float32" : "";
}

#endif
