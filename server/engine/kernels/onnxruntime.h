/* The part of onnxruntime's C interface that an operator of one's own needs.
 *
 * The Python package brings no header. What stands here is the binary interface: functions by their places in a table
 * to which onnxruntime only ever appends, so that a library made for version 17 works with every later one. */

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ORT_VERSION = 17, ORT_FAIL = 1, ORT_REQUIRED = 0, ORT_DEFAULT_MEMORY = 0 };
enum { ORT_FLOAT = 1, ORT_INT8 = 3, ORT_INT64 = 7 }; /* types of elements */

typedef struct OrtStatus OrtStatus; /* a null pointer is success */
typedef struct OrtValue OrtValue;
typedef struct OrtShape OrtShape;
typedef struct OrtDomain OrtDomain;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtContext OrtContext;
typedef struct OrtOptions OrtOptions;
typedef struct OrtOperator OrtOperator;
typedef void (*OrtFunction)(void);

typedef struct {
    OrtStatus *(*create_status)(int code, const char *message);
    OrtFunction from_1[25];
    OrtStatus *(*create_domain)(const char *name, OrtDomain **); /* 26 */
    OrtStatus *(*domain_add)(OrtDomain *, const OrtOperator *);
    OrtStatus *(*options_add_domain)(OrtOptions *, OrtDomain *);
    OrtFunction from_29[22];
    OrtStatus *(*tensor_data)(const OrtValue *, void **); /* 51 */
    OrtFunction from_52[9];
    OrtStatus *(*shape_rank)(const OrtShape *, size_t *); /* 61 */
    OrtStatus *(*shape_sizes)(const OrtShape *, int64_t *, size_t rank);
    OrtFunction from_63[2];
    OrtStatus *(*tensor_shape)(const OrtValue *, OrtShape **); /* 65 */
    OrtFunction from_66[19];
    OrtStatus *(*attribute_float)(const OrtKernelInfo *, const char *name, float *); /* 85 */
    OrtFunction from_86[4];
    OrtStatus *(*input)(const OrtContext *, size_t, const OrtValue **); /* 90 */
    OrtStatus *(*output)(OrtContext *, size_t, const int64_t *sizes, size_t rank, OrtValue **);
    OrtFunction from_92[7];
    void (*release_shape)(OrtShape *); /* 99 */
    OrtFunction from_100[149];
    OrtStatus *(*constant_input)(const OrtKernelInfo *, size_t, int *is_constant, const OrtValue **); /* 249 */
    OrtFunction from_250[24];
    OrtStatus *(*parallel_for)(const OrtContext *, void (*)(void *, size_t), size_t total, size_t batches, void *);
} OrtApi;

/* The places of the functions in onnxruntime_c_api.h: a field that is moved or left out here does not compile. */
#define ORT_PLACE(of, field, place) \
    _Static_assert(offsetof(of, field) == (place) * sizeof(OrtFunction), #of "." #field " is not where onnxruntime has it")

ORT_PLACE(OrtApi, create_status, 0);
ORT_PLACE(OrtApi, create_domain, 26);
ORT_PLACE(OrtApi, domain_add, 27);
ORT_PLACE(OrtApi, options_add_domain, 28);
ORT_PLACE(OrtApi, tensor_data, 51);
ORT_PLACE(OrtApi, shape_rank, 61);
ORT_PLACE(OrtApi, shape_sizes, 62);
ORT_PLACE(OrtApi, tensor_shape, 65);
ORT_PLACE(OrtApi, attribute_float, 85);
ORT_PLACE(OrtApi, input, 90);
ORT_PLACE(OrtApi, output, 91);
ORT_PLACE(OrtApi, release_shape, 99);
ORT_PLACE(OrtApi, constant_input, 249);
ORT_PLACE(OrtApi, parallel_for, 274);
_Static_assert(sizeof(OrtApi) == 275 * sizeof(OrtFunction), "OrtApi is read up to KernelContext_ParallelFor");

typedef struct {
    const OrtApi *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} OrtApiBase;

struct OrtOperator {
    uint32_t version;
    void *(*create)(const OrtOperator *, const OrtApi *, const OrtKernelInfo *);
    const char *(*name)(const OrtOperator *);
    const char *(*provider)(const OrtOperator *);
    int (*input_type)(const OrtOperator *, size_t);
    size_t (*inputs)(const OrtOperator *);
    int (*output_type)(const OrtOperator *, size_t);
    size_t (*outputs)(const OrtOperator *);
    void (*compute)(void *kernel, OrtContext *);
    void (*destroy)(void *kernel);
    int (*input_characteristic)(const OrtOperator *, size_t);
    int (*output_characteristic)(const OrtOperator *, size_t);
    int (*input_memory)(const OrtOperator *, size_t);
    int (*variadic_inputs[2])(const OrtOperator *);
    int (*variadic_outputs[2])(const OrtOperator *);
    OrtStatus *(*create_or_fail)(const OrtOperator *, const OrtApi *, const OrtKernelInfo *, void **kernel);
    OrtStatus *(*compute_or_fail)(void *kernel, OrtContext *);
    OrtStatus *(*infer_shape)(const OrtOperator *, void *);
    int (*first_version)(const OrtOperator *);
    int (*last_version)(const OrtOperator *);
};

/* Of OrtCustomOp, which starts with its version. */
ORT_PLACE(OrtOperator, create, 1);
ORT_PLACE(OrtOperator, provider, 3);
ORT_PLACE(OrtOperator, outputs, 7);
ORT_PLACE(OrtOperator, compute, 8);
ORT_PLACE(OrtOperator, destroy, 9);
ORT_PLACE(OrtOperator, input_characteristic, 10);
ORT_PLACE(OrtOperator, input_memory, 12);
ORT_PLACE(OrtOperator, variadic_inputs, 13);
ORT_PLACE(OrtOperator, create_or_fail, 17);
ORT_PLACE(OrtOperator, compute_or_fail, 18);
ORT_PLACE(OrtOperator, first_version, 20);
ORT_PLACE(OrtOperator, last_version, 21);
_Static_assert(sizeof(OrtOperator) == 22 * sizeof(OrtFunction), "OrtCustomOp of version 17 to GetEndVersion");
