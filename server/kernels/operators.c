/* Linear layers for onnxruntime: the operators of the domain "heed".
 *
 *     Linear      x, weight [M, K], bias [M]
 *     Linear16    the same, where 16 bits of each value are enough
 *     Product     x, weight [K, M]
 *     Int8Linear  x, weight int8 [K, M], scale [M], sum [M], bias [M]; the sum is for others
 *
 * Exported graphs define them as functions of what every runtime has; a session that was given this library computes
 * them here instead: by digits where the CPU has tiles of int8 (digits.h), by panels of float32 where its vector unit is
 * all it has (panels.h), and there Int8Linear is left to onnxruntime. */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "digits.h"
#include "onnxruntime.h"
#include "panels.h"

enum {
    MOST_RANKS = 8,
    CHUNK_BYTES = 1 << 20, /* of digits at a time: they stay in a core's second cache */
    PART_GROUPS = 6,       /* of channels, that one thread computes at a time: setting the tiles up takes a while */
    PART_PANELS = 6,       /* the same for panels: a row that is fetched serves all of them */
};

/* Weights as digits or as panels, whichever this CPU takes, and none as the other. One copy for all sessions of the
 * process that have the same ones. */
typedef struct Weights {
    Digits digits;
    Panels panels;
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

static bool equal(const Weights *one, const Weights *other) {
    if (one->channels != other->channels || one->values != other->values) return false;
    return one->panels.weights ? equal_panels(&one->panels, &other->panels)
                               : equal_digits(&one->digits, &other->digits);
}

static void free_weights(Weights *weights) {
    if (weights) digits_free(&weights->digits), panels_free(&weights->panels);
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

static OrtStatus *sizes_of(const OrtApi *api, const OrtValue *tensor, int64_t *sizes, size_t *rank) {
    OrtShape *shape;
    OrtStatus *failed = api->tensor_shape(tensor, &shape);
    if (failed) return failed;
    failed = api->shape_rank(shape, rank);
    if (!failed && (*rank == 0 || *rank > MOST_RANKS))
        failed = api->create_status(ORT_FAIL, "heed: tensors have 1 to 8 dimensions");
    if (!failed) failed = api->shape_sizes(shape, sizes, *rank);
    api->release_shape(shape);
    return failed;
}

static OrtStatus *constant(const OrtApi *api, const OrtKernelInfo *info, size_t index, const OrtValue **tensor) {
    int is_constant = 0;
    OrtStatus *failed = api->constant_input(info, index, &is_constant, tensor);
    return failed || is_constant ? failed : api->create_status(ORT_FAIL, "heed: weights must be constants");
}

/* A constant [M], one number for each channel. */
static OrtStatus *of_channels(const OrtApi *api, const OrtKernelInfo *info, size_t index, long channels,
                              float **numbers) {
    const OrtValue *tensor;
    int64_t sizes[MOST_RANKS];
    size_t rank;
    OrtStatus *failed = constant(api, info, index, &tensor);
    if (!failed) failed = sizes_of(api, tensor, sizes, &rank);
    if (!failed && (rank != 1 || sizes[0] != channels))
        failed = api->create_status(ORT_FAIL, "heed: biases and scales must be one number for each channel");
    return failed ? failed : api->tensor_data(tensor, (void **)numbers);
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

/* The weights of a layer. `digits` are those of each, where weights are digits here. */
static OrtStatus *make_weights(const OrtApi *api, const OrtKernelInfo *info, bool transposed, int digits,
                               Weights **made) {
    const OrtValue *tensor;
    int64_t sizes[MOST_RANKS];
    size_t rank;
    void *values;
    float *scales = NULL;
    OrtStatus *failed = constant(api, info, 1, &tensor);
    if (!failed) failed = sizes_of(api, tensor, sizes, &rank);
    if (!failed && (rank != 2 || sizes[!transposed] > MOST_VALUES))
        failed = api->create_status(ORT_FAIL, "heed: weights must be a matrix, of at most 40,000 values to a channel");
    if (!failed) failed = api->tensor_data(tensor, &values);
    if (!failed && digits == 1) failed = of_channels(api, info, 2, sizes[transposed], &scales);
    if (failed) return failed;
    Weights *weights = calloc(1, sizeof *weights);
    if (weights) weights->channels = sizes[transposed], weights->values = sizes[!transposed];
    if (!weights || !(digits_supported() ? as_digits(weights, values, scales, transposed, digits)
                                         : as_panels(weights, values, transposed))) {
        free_weights(weights);
        return api->create_status(ORT_FAIL, "heed: no memory for weights");
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
static const char *provider(const OrtOperator *operator) { return (void)operator, "CPUExecutionProvider"; }
static int float32(const OrtOperator *operator, size_t index) { return (void)operator, (void)index, ORT_FLOAT; }
static int required(const OrtOperator *operator, size_t index) { return (void)operator, (void)index, ORT_REQUIRED; }
static int memory(const OrtOperator *operator, size_t index) { return (void)operator, (void)index, ORT_DEFAULT_MEMORY; }
static size_t one_output(const OrtOperator *operator) { return (void)operator, 1; }
static int version_1(const OrtOperator *operator) { return (void)operator, 1; }
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
        failed = of_channels(api, info, inputs - 1, weights->channels, &bias);
    Kernel *made = malloc(sizeof *made);
    if (!failed && !(made && bias)) failed = api->create_status(ORT_FAIL, "heed: no memory");
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
    Digits digits; /* of the chunk */
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

static OrtStatus *in_parallel(Run *run, void (*function)(void *, size_t), size_t parts) {
    return run->api->parallel_for(run->context, function, parts, 0, run);
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
        failed = run->api->create_status(ORT_FAIL, "heed: no memory for digits");
    for (long done = 0; !failed && done < rows; done += chunk, run->x += chunk * values, run->y += chunk * channels) {
        run->digits.rows = rows - done < chunk ? rows - done : chunk;
        failed = in_parallel(run, write_digits, digits_groups(&run->digits));
        if (!failed) failed = in_parallel(run, multiply_digits, (digits_groups(weights) + PART_GROUPS - 1) / PART_GROUPS);
    }
    digits_free(&run->digits);
    return failed;
}

static OrtStatus *run_panels(Run *run) {
    return in_parallel(run, multiply_panels, (panels_count(&run->weights->panels) + PART_PANELS - 1) / PART_PANELS);
}

static OrtStatus *compute(void *kernel_, OrtContext *context) {
    Kernel *kernel = kernel_;
    const OrtApi *api = kernel->api;
    Run run = {.api = api, .context = context, .weights = kernel->weights, .bias = kernel->bias, .rows = 1};
    const OrtValue *x;
    OrtValue *y;
    int64_t sizes[MOST_RANKS];
    size_t rank;
    OrtStatus *failed = api->input(context, 0, &x);
    if (!failed) failed = sizes_of(api, x, sizes, &rank);
    if (!failed) failed = api->tensor_data(x, (void **)&run.x);
    if (failed) return failed;
    if (sizes[rank - 1] != run.weights->values) {
        char message[99];
        snprintf(message, sizeof message, "heed: rows of %ld values, and the weights have %ld", (long)sizes[rank - 1],
                 run.weights->values);
        return api->create_status(ORT_FAIL, message);
    }
    for (size_t axis = 0; axis + 1 < rank; axis++) run.rows *= sizes[axis];
    sizes[rank - 1] = run.weights->channels;
    failed = api->output(context, 0, sizes, rank, &y);
    if (!failed) failed = api->tensor_data(y, (void **)&run.y);
    if (failed || run.rows == 0) return failed;
    return run.weights->panels.weights ? run_panels(&run) : run_digits(&run);
}

#define OPERATOR(of_name, of_inputs)                                                                                  \
    {                                                                                                                 \
        .version = ORT_VERSION, .name = of_name, .provider = provider, .input_type = input_type, .inputs = of_inputs, \
        .output_type = float32, .outputs = one_output, .destroy = destroy, .input_characteristic = required,          \
        .output_characteristic = required, .input_memory = memory, .create_or_fail = create,                          \
        .compute_or_fail = compute, .first_version = version_1, .last_version = version_1                             \
    }

static const OrtOperator LINEAR = OPERATOR(linear_name, linear_inputs);
static const OrtOperator LINEAR_16 = OPERATOR(linear16_name, linear_inputs);
static const OrtOperator PRODUCT = OPERATOR(product_name, product_inputs);
static const OrtOperator INT8_LINEAR = OPERATOR(int8_name, int8_inputs);

/* What this CPU multiplies with here, in words; empty if registering would do no good. */
const char *heed_kernels(void) {
    return digits_supported() ? "tiles of int8 digits" : panels_supported() ? "panels of float32" : "";
}

/* What onnxruntime calls when a session is given the library. The domain lives as long as the process. */
OrtStatus *RegisterCustomOps(OrtOptions *options, const OrtApiBase *base) {
    static OrtDomain *domain;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    const OrtApi *api = base->get_api(ORT_VERSION);
    OrtStatus *failed = NULL;
    pthread_mutex_lock(&lock);
    if (!domain) {
        failed = api->create_domain("heed", &domain);
        if (!failed) failed = api->domain_add(domain, &LINEAR);
        if (!failed) failed = api->domain_add(domain, &LINEAR_16);
        if (!failed) failed = api->domain_add(domain, &PRODUCT);
        if (!failed && digits_supported()) failed = api->domain_add(domain, &INT8_LINEAR);
    }
    pthread_mutex_unlock(&lock);
    return failed ? failed : api->options_add_domain(options, domain);
}
