/* Linear layers.
 *
 *     Linear      x, weight [M, K], bias [M]
 *     Linear16    the same, where 16 bits of each value are enough
 *     Product     x, weight [K, M]
 *     Int8Linear  x, weight int8 [K, M], scale [M], sum [M], bias [M]
 *
 * How weights are packed and what multiplies them depends on the CPU: see `dispatch.h`. */

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "dispatch.h"
#include "operators.h"
#include "packed.h"

#ifdef HEED_X86

enum {
    PART_PANELS = 6,    /* that one thread multiplies at a time: a row that is fetched serves all of them */
    PART_ROWS = PANEL,  /* that one thread quantizes at a time */
};

typedef struct {
    const OrtApi *api;
    PackedWeights *weights;
    const float *bias; /* [M] */
    float *no_bias;    /* zeros in its place, of a layer that has none */
} Kernel;

/* What a layer takes, by how many inputs it has. */
enum { PRODUCT_INPUTS = 2, LINEAR_INPUTS = 3, INT8_INPUTS = 5 };

static const char *linear_name(const OrtOperator *operator) { return (void)operator, "Linear"; }
static const char *linear16_name(const OrtOperator *operator) { return (void)operator, "Linear16"; }
static const char *product_name(const OrtOperator *operator) { return (void)operator, "Product"; }
static const char *int8_name(const OrtOperator *operator) { return (void)operator, "Int8Linear"; }
static size_t linear_inputs(const OrtOperator *operator) { return (void)operator, LINEAR_INPUTS; }
static size_t product_inputs(const OrtOperator *operator) { return (void)operator, PRODUCT_INPUTS; }
static size_t int8_inputs(const OrtOperator *operator) { return (void)operator, INT8_INPUTS; }
static Precision precision_of(const OrtOperator *operator) {
    if (operator->inputs(operator) == INT8_INPUTS) return PRECISION_S8;
    return operator->name == linear16_name ? PRECISION_S16 : PRECISION_F32;
}
static int input_type(const OrtOperator *operator, size_t index) {
    return index == 1 && operator->inputs(operator) == INT8_INPUTS ? ORT_INT8 : ORT_FLOAT;
}

static OrtStatus *make_weights(const OrtOperator *operator, const OrtApi *api, const OrtKernelInfo *info,
                               PackedWeights **made) {
    Precision precision = precision_of(operator);
    bool transposed = operator->inputs(operator) != LINEAR_INPUTS;
    Tensor w;
    float *scales = NULL, *sums = NULL;
    OrtStatus *failed = constant_of(api, info, 1, &w);
    if (!failed && (w.rank != 2 || w.sizes[0] < 1 || w.sizes[1] < 1 || w.sizes[!transposed] > MAX_DEPTH))
        failed = failure(api, "heed: weights must be a matrix, of 1 to 40,000 values to a channel");
    if (!failed && precision == PRECISION_S8) failed = constants_of(api, info, 2, w.sizes[transposed], &scales);
    if (!failed && precision == PRECISION_S8) failed = constants_of(api, info, 3, w.sizes[transposed], &sums);
    if (failed) return failed;
    LayerWeights weights = {.values = w.data, .transposed = transposed, .scales = scales, .sums = sums};
    const LinearKernels *kernels = selected_kernels()->linear[precision];
    *made = acquire_packed(kernels, w.sizes[transposed], w.sizes[!transposed], &weights);
    return *made ? NULL : failure(api, "heed: no memory for weights");
}

static OrtStatus *create(const OrtOperator *operator, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
    size_t inputs = operator->inputs(operator);
    PackedWeights *weights = NULL;
    float *bias = NULL, *no_bias = NULL;
    OrtStatus *failed = make_weights(operator, api, info, &weights);
    if (failed) return failed;
    if (inputs == PRODUCT_INPUTS)
        bias = no_bias = calloc(weights->channels, sizeof *bias);
    else
        failed = constants_of(api, info, inputs - 1, weights->channels, &bias);
    Kernel *made = malloc(sizeof *made);
    if (!failed && !(made && bias)) failed = failure(api, "heed: no memory");
    if (failed) {
        release_packed(weights);
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
    release_packed(kernel->weights);
    free(kernel->no_bias);
    free(kernel);
}

/* One run of a layer, on a chunk of its rows at a time. */
typedef struct {
    const OrtApi *api;
    const OrtContext *context;
    const PackedWeights *weights;
    Activations activations; /* of the chunk */
    const float *bias;
    float *y;
} Run;

static void quantize_part(void *run_, size_t part) {
    Run *run = run_;
    long first = part * PART_ROWS, last = smaller(first + PART_ROWS, run->activations.rows);
    run->weights->kernels->quantize(run->weights, &run->activations, first, last);
}

static void multiply_part(void *run_, size_t part) {
    Run *run = run_;
    long first = part * PART_PANELS, last = smaller(first + PART_PANELS, panel_count(run->weights));
    run->weights->kernels->multiply(run->weights, &run->activations, first, last, run->bias, run->y);
}

/* All of `count`, so many to a part; onnxruntime's threads share the parts out. */
static OrtStatus *run_parallel(Run *run, void (*function)(void *, size_t), long count, long part) {
    return run->api->parallel_for(run->context, function, ceil_div(count, part), 0, run);
}

static OrtStatus *multiply_chunk(Run *run) {
    OrtStatus *failed = NULL;
    if (run->activations.quantized) failed = run_parallel(run, quantize_part, run->activations.rows, PART_ROWS);
    return failed ? failed : run_parallel(run, multiply_part, panel_count(run->weights), PART_PANELS);
}

/* How many rows to multiply at a time: as few chunks as their bytes allow, all of about a size. */
static long rows_of_chunk(const PackedWeights *weights, long rows) {
    long bytes = weights->kernels->chunk_bytes, most;
    if (!bytes) return rows;
    most = bytes / (3 * weights->depth);
    return ceil_div(rows, ceil_div(rows, most < PANEL ? PANEL : most));
}

static OrtStatus *multiply_all(Run *run, long rows) {
    const PackedWeights *weights = run->weights;
    Activations *activations = &run->activations;
    long chunk = rows_of_chunk(weights, rows);
    OrtStatus *failed = NULL;
    if (weights->kernels->quantize) {
        activations->quantized = allocate_lines(weights->kernels->quantized_size(weights, chunk));
        if (!activations->quantized) return failure(run->api, "heed: no memory for quantized rows");
    }
    for (long done = 0; !failed && done < rows; done += chunk) {
        activations->rows = smaller(chunk, rows - done);
        failed = multiply_chunk(run);
        activations->x += chunk * weights->depth, run->y += chunk * weights->channels;
    }
    free(activations->quantized);
    return failed;
}

static OrtStatus *compute(void *kernel_, OrtContext *context) {
    Kernel *kernel = kernel_;
    const OrtApi *api = kernel->api;
    Run run = {.api = api, .context = context, .weights = kernel->weights, .bias = kernel->bias};
    long rows = 1;
    Tensor x;
    OrtStatus *failed = input_of(api, context, 0, &x);
    if (failed) return failed;
    if (x.rank == 0 || x.sizes[x.rank - 1] != run.weights->depth) {
        char message[99];
        snprintf(message, sizeof message, "heed: rows of %ld values, and the weights have %ld",
                 x.rank ? (long)x.sizes[x.rank - 1] : 1, run.weights->depth);
        return failure(api, message);
    }
    for (size_t axis = 0; axis + 1 < x.rank; axis++) rows *= x.sizes[axis];
    x.sizes[x.rank - 1] = run.weights->channels;
    run.activations.x = x.data;
    failed = output_of(api, context, x.sizes, x.rank, &run.y);
    return failed || rows == 0 ? failed : multiply_all(&run, rows);
}

const OrtOperator LINEAR = OPERATOR(linear_name, linear_inputs, input_type, create, compute, destroy);
const OrtOperator LINEAR_16 = OPERATOR(linear16_name, linear_inputs, input_type, create, compute, destroy);
const OrtOperator PRODUCT = OPERATOR(product_name, product_inputs, input_type, create, compute, destroy);
const OrtOperator INT8_LINEAR = OPERATOR(int8_name, int8_inputs, input_type, create, compute, destroy);

#endif
