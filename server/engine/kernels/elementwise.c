/* Operators that take each token by itself, between linear layers.
 *
 *     Gelu     x: the exact form, by the error function
 *     AddNorm  x, y, weight [D], bias [D]: the LayerNorm of x + y, with the attribute epsilon
 *
 * Each is one pass over numbers that are in a core's cache, where onnxruntime's operators take a slower function, or
 * two passes. A token's bits depend on its own values alone. */

#include <stdlib.h>

#include "dispatch.h"
#include "elementwise.h"
#include "operators.h"

#ifdef HEED_X86

enum { PART_NUMBERS = 1 << 14 /* of a tensor, that one thread takes at a time */ };

typedef struct {
    const OrtApi *api;
    Norm norm; /* of AddNorm */
} Kernel;

typedef struct {
    const Kernel *kernel;
    const float *x, *y;
    float *out;
    long count, part; /* numbers, or rows, in all and at a time */
} Run;

static void destroy(void *kernel) { free(kernel); }

static OrtStatus *make(const OrtApi *api, Kernel **kernel) {
    *kernel = calloc(1, sizeof **kernel);
    if (!*kernel) return failure(api, "heed: no memory");
    (*kernel)->api = api;
    return NULL;
}

static OrtStatus *in_parts(const OrtContext *context, Run *run, void (*function)(void *, size_t)) {
    return run->kernel->api->parallel_for(context, function, (run->count + run->part - 1) / run->part, 0, run);
}

static long end_of(const Run *run, size_t part) {
    long end = (part + 1) * run->part;
    return end < run->count ? end : run->count;
}

/* --- GELU --- */

static const char *gelu_name(const OrtOperator *operator) { return (void)operator, "Gelu"; }
static size_t gelu_inputs(const OrtOperator *operator) { return (void)operator, 1; }

static OrtStatus *create_gelu(const OrtOperator *operator, const OrtApi *api, const OrtKernelInfo *info,
                              void **kernel) {
    return (void)operator, (void)info, make(api, (Kernel **)kernel);
}

static void gelu_part(void *run_, size_t part) {
    Run *run = run_;
    long first = part * run->part;
    selected_kernels()->gelu(run->x + first, end_of(run, part) - first, run->out + first);
}

static OrtStatus *compute_gelu(void *kernel_, OrtContext *context) {
    Kernel *kernel = kernel_;
    Run run = {.kernel = kernel, .count = 1, .part = PART_NUMBERS};
    Tensor x;
    OrtStatus *failed = input_of(kernel->api, context, 0, &x);
    if (!failed) failed = output_of(kernel->api, context, x.sizes, x.rank, &run.out);
    if (failed) return failed;
    run.x = x.data;
    for (size_t axis = 0; axis < x.rank; axis++) run.count *= x.sizes[axis];
    return run.count ? in_parts(context, &run, gelu_part) : NULL;
}

const OrtOperator GELU = OPERATOR(gelu_name, gelu_inputs, takes_float32, create_gelu, compute_gelu, destroy);

/* --- LayerNorm of a sum --- */

enum { NORM_INPUTS = 4 };

static const char *norm_name(const OrtOperator *operator) { return (void)operator, "AddNorm"; }
static size_t norm_inputs(const OrtOperator *operator) { return (void)operator, NORM_INPUTS; }

static OrtStatus *create_norm(const OrtOperator *operator, const OrtApi *api, const OrtKernelInfo *info,
                              void **kernel_) {
    (void)operator;
    Tensor weight;
    float *bias;
    float epsilon;
    OrtStatus *failed = constant_of(api, info, 2, &weight);
    if (!failed && weight.rank != 1) failed = failure(api, "heed: a norm has one weight for each value");
    if (!failed) failed = constants_of(api, info, 3, weight.sizes[0], &bias);
    if (!failed) failed = api->attribute_float(info, "epsilon", &epsilon);
    Kernel *kernel = NULL;
    if (!failed) failed = make(api, &kernel);
    if (failed) return failed;
    kernel->norm = (Norm){weight.data, bias, epsilon, weight.sizes[0]};
    *kernel_ = kernel;
    return NULL;
}

static void norm_part(void *run_, size_t part) {
    Run *run = run_;
    long first = part * run->part, start = first * run->kernel->norm.width;
    selected_kernels()->add_norm(&run->kernel->norm, run->x + start, run->y + start, end_of(run, part) - first,
                                 run->out + start);
}

static OrtStatus *compute_norm(void *kernel_, OrtContext *context) {
    Kernel *kernel = kernel_;
    Run run = {.kernel = kernel, .count = 1};
    Tensor x, y;
    OrtStatus *failed = input_of(kernel->api, context, 0, &x);
    if (!failed) failed = input_of(kernel->api, context, 1, &y);
    if (failed) return failed;
    long width = kernel->norm.width;
    bool same = x.rank == y.rank && x.rank > 0 && width > 0 && x.sizes[x.rank - 1] == width;
    for (size_t axis = 0; same && axis < x.rank; axis++) same = x.sizes[axis] == y.sizes[axis];
    if (!same) return failure(kernel->api, "heed: two tensors of one shape are expected, as wide as the norm");
    for (size_t axis = 0; axis + 1 < x.rank; axis++) run.count *= x.sizes[axis];
    run.x = x.data, run.y = y.data, run.part = 1 + PART_NUMBERS / width;
    failed = output_of(kernel->api, context, x.sizes, x.rank, &run.out);
    return failed || !run.count ? failed : in_parts(context, &run, norm_part);
}

const OrtOperator ADD_NORM = OPERATOR(norm_name, norm_inputs, takes_float32, create_norm, compute_norm, destroy);

#endif
