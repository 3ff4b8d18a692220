#include "fake_onnxruntime.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPERATORS = 16, MOST_THREADS = 16 };

static const OrtOperator *operators[OPERATORS];
static int count;

static OrtStatus *create_status(int code, const char *message) {
    OrtStatus *status = calloc(1, sizeof *status);
    (void)code;
    snprintf(status->message, sizeof status->message, "%s", message);
    return status;
}

static OrtStatus *create_domain(const char *name, OrtDomain **domain) {
    static char place;
    *domain = (OrtDomain *)&place;
    return strcmp(name, "heed") ? create_status(ORT_FAIL, "another domain") : NULL;
}

static OrtStatus *domain_add(OrtDomain *domain, const OrtOperator *operator) {
    (void)domain;
    operators[count++] = operator;
    return NULL;
}

static OrtStatus *options_add_domain(OrtOptions *options, OrtDomain *domain) {
    return (void)options, (void)domain, NULL;
}

static OrtStatus *tensor_data(const OrtValue *value, void **data) { return *data = value->data, NULL; }
static OrtStatus *tensor_shape(const OrtValue *value, OrtShape **shape) { return *shape = (OrtShape *)value, NULL; }
static OrtStatus *shape_rank(const OrtShape *shape, size_t *rank) {
    return *rank = ((const OrtValue *)shape)->rank, NULL;
}
static OrtStatus *shape_sizes(const OrtShape *shape, int64_t *sizes, size_t rank) {
    memcpy(sizes, ((const OrtValue *)shape)->sizes, rank * sizeof *sizes);
    return NULL;
}
static void release_shape(OrtShape *shape) { (void)shape; }

static OrtStatus *attribute_float(const OrtKernelInfo *info, const char *name, float *value) {
    *value = info->epsilon;
    return strcmp(name, "epsilon") ? create_status(ORT_FAIL, "no such attribute") : NULL;
}

static OrtStatus *constant_input(const OrtKernelInfo *info, size_t index, int *is_constant, const OrtValue **value) {
    *value = info->constants[index], *is_constant = *value != NULL;
    return NULL;
}

static OrtStatus *input(const OrtContext *context, size_t index, const OrtValue **value) {
    return *value = context->inputs[index], NULL;
}

static OrtStatus *output(OrtContext *context, size_t index, const int64_t *sizes, size_t rank, OrtValue **value) {
    size_t size = context->element_size;
    (void)index;
    for (size_t axis = 0; axis < rank; axis++) size *= context->output.sizes[axis] = sizes[axis];
    context->output.rank = rank;
    context->output.data = malloc(size);
    *value = &context->output;
    return NULL;
}

typedef struct {
    void (*function)(void *, size_t);
    void *argument;
    size_t total;
    atomic_size_t next;
} Parts;

static void *run_parts(void *parts_) {
    Parts *parts = parts_;
    for (size_t part; (part = atomic_fetch_add(&parts->next, 1)) < parts->total;)
        parts->function(parts->argument, part);
    return NULL;
}

static OrtStatus *parallel_for(const OrtContext *context, void (*function)(void *, size_t), size_t total,
                               size_t batches, void *argument) {
    Parts parts = {.function = function, .argument = argument, .total = total};
    pthread_t threads[MOST_THREADS];
    (void)batches;
    for (int i = 1; i < context->threads; i++) pthread_create(&threads[i], NULL, run_parts, &parts);
    run_parts(&parts);
    for (int i = 1; i < context->threads; i++) pthread_join(threads[i], NULL);
    return NULL;
}

static const OrtApi API = {
    .create_status = create_status,
    .create_domain = create_domain,
    .domain_add = domain_add,
    .options_add_domain = options_add_domain,
    .tensor_data = tensor_data,
    .shape_rank = shape_rank,
    .shape_sizes = shape_sizes,
    .tensor_shape = tensor_shape,
    .attribute_float = attribute_float,
    .input = input,
    .output = output,
    .release_shape = release_shape,
    .constant_input = constant_input,
    .parallel_for = parallel_for,
};

const OrtApi *fake_api(void) { return &API; }

static const OrtApi *get_api(uint32_t version) { return version == ORT_VERSION ? &API : NULL; }

OrtStatus *RegisterCustomOps(OrtOptions *, const OrtApiBase *);

void register_all(void) {
    OrtApiBase base = {.get_api = get_api};
    OrtStatus *failed = RegisterCustomOps(NULL, &base);
    if (!failed) return;
    fprintf(stderr, "%s\n", failed->message);
    free(failed);
    exit(2);
}

const OrtOperator *registered(const char *name) {
    for (int i = 0; i < count; i++)
        if (!strcmp(operators[i]->name(operators[i]), name)) return operators[i];
    return NULL;
}
