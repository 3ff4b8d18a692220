/* What the operators of the domain "heed" share: how they ask onnxruntime for tensors, and what they are to it. */

#pragma once

#include "onnxruntime.h"
#include "platform.h"

enum { MOST_RANKS = 8 };

typedef struct {
    int64_t sizes[MOST_RANKS];
    size_t rank;
    void *data;
} Tensor;

/* A tensor's shape and numbers. */
OrtStatus *look_at(const OrtApi *, const OrtValue *, Tensor *);

/* An input of a run. */
OrtStatus *input_of(const OrtApi *, const OrtContext *, size_t index, Tensor *);

/* The only output of a run, float32 of these sizes. */
OrtStatus *output_of(const OrtApi *, OrtContext *, const int64_t *sizes, size_t rank, float **data);

/* An input that is the same in every run. */
OrtStatus *constant_of(const OrtApi *, const OrtKernelInfo *, size_t index, Tensor *);

/* A constant [size], float32. */
OrtStatus *constants_of(const OrtApi *, const OrtKernelInfo *, size_t index, long size, float **data);

OrtStatus *failure(const OrtApi *, const char *message);

/* What an operator with one output answers to onnxruntime's questions; the others are its own. */
const char *cpu_provider(const OrtOperator *);
int gives_float32(const OrtOperator *, size_t index);
int takes_float32(const OrtOperator *, size_t index);
int is_required(const OrtOperator *, size_t index);
int in_default_memory(const OrtOperator *, size_t index);
size_t one_output(const OrtOperator *);
int only_version(const OrtOperator *);

#define OPERATOR(of_name, of_inputs, of_type, of_create, of_compute, of_destroy)                                  \
    {                                                                                                             \
        .version = ORT_VERSION, .name = of_name, .provider = cpu_provider, .input_type = of_type,                 \
        .inputs = of_inputs, .output_type = gives_float32, .outputs = one_output, .destroy = of_destroy,          \
        .input_characteristic = is_required, .output_characteristic = is_required,                                \
        .input_memory = in_default_memory, .create_or_fail = of_create, .compute_or_fail = of_compute,            \
        .first_version = only_version, .last_version = only_version                                               \
    }

extern const OrtOperator LINEAR, LINEAR_16, PRODUCT, INT8_LINEAR, GELU, ADD_NORM, ATTENTION;
