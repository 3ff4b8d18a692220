/* The operators of the domain "heed", for onnxruntime.
 *
 * Exported graphs define them as functions of what every runtime has; a session that was given this library computes
 * them here instead. What is not registered on a CPU stays the function that it is. */

#include "operators.h"

#include <pthread.h>

#include "dispatch.h"

#ifdef HEED_X86

OrtStatus *failure(const OrtApi *api, const char *message) { return api->create_status(ORT_FAIL, message); }

OrtStatus *look_at(const OrtApi *api, const OrtValue *value, Tensor *tensor) {
    OrtShape *shape;
    OrtStatus *failed = api->tensor_shape(value, &shape);
    if (failed) return failed;
    failed = api->shape_rank(shape, &tensor->rank);
    if (!failed && tensor->rank > MOST_RANKS) failed = failure(api, "heed: tensors have at most 8 dimensions");
    if (!failed) failed = api->shape_sizes(shape, tensor->sizes, tensor->rank);
    api->release_shape(shape);
    return failed ? failed : api->tensor_data(value, &tensor->data);
}

OrtStatus *input_of(const OrtApi *api, const OrtContext *context, size_t index, Tensor *tensor) {
    const OrtValue *value;
    OrtStatus *failed = api->input(context, index, &value);
    return failed ? failed : look_at(api, value, tensor);
}

OrtStatus *output_of(const OrtApi *api, OrtContext *context, const int64_t *sizes, size_t rank, float **data) {
    OrtValue *value;
    OrtStatus *failed = api->output(context, 0, sizes, rank, &value);
    return failed ? failed : api->tensor_data(value, (void **)data);
}

OrtStatus *constant_of(const OrtApi *api, const OrtKernelInfo *info, size_t index, Tensor *tensor) {
    int is_constant = 0;
    const OrtValue *value;
    OrtStatus *failed = api->constant_input(info, index, &is_constant, &value);
    if (!failed && !is_constant) failed = failure(api, "heed: weights must be constants");
    return failed ? failed : look_at(api, value, tensor);
}

OrtStatus *constants_of(const OrtApi *api, const OrtKernelInfo *info, size_t index, long size, float **data) {
    Tensor tensor;
    OrtStatus *failed = constant_of(api, info, index, &tensor);
    if (!failed && (tensor.rank != 1 || tensor.sizes[0] != size))
        failed = failure(api, "heed: biases and scales must be one number for each channel");
    if (!failed) *data = tensor.data;
    return failed;
}

const char *cpu_provider(const OrtOperator *operator) { return (void)operator, "CPUExecutionProvider"; }
int gives_float32(const OrtOperator *operator, size_t index) { return (void)operator, (void)index, ORT_FLOAT; }
int takes_float32(const OrtOperator *operator, size_t index) { return (void)operator, (void)index, ORT_FLOAT; }
int is_required(const OrtOperator *operator, size_t index) { return (void)operator, (void)index, ORT_REQUIRED; }
int in_default_memory(const OrtOperator *operator, size_t index) {
    return (void)operator, (void)index, ORT_DEFAULT_MEMORY;
}
size_t one_output(const OrtOperator *operator) { return (void)operator, 1; }
int only_version(const OrtOperator *operator) { return (void)operator, 1; }

/* Adds the operators that the selected instruction set has kernels for. */
static OrtStatus *fill(const OrtApi *api, OrtDomain *domain) {
    const Kernels *kernels = selected_kernels();
    const struct {
        bool has_kernel;
        const OrtOperator *operator;
    } all[] = {
        {kernels->linear[PRECISION_F32], &LINEAR},   {kernels->linear[PRECISION_F32], &PRODUCT},
        {kernels->linear[PRECISION_S16], &LINEAR_16}, {kernels->linear[PRECISION_S8], &INT8_LINEAR},
        {kernels->gelu, &GELU},                      {kernels->add_norm, &ADD_NORM},
        {kernels->attention, &ATTENTION},
    };
    OrtStatus *failed = NULL;
    for (size_t i = 0; !failed && i < sizeof all / sizeof *all; i++)
        if (all[i].has_kernel) failed = api->domain_add(domain, all[i].operator);
    return failed;
}

/* What onnxruntime calls when a session is given the library. The domain lives as long as the process. */
OrtStatus *RegisterCustomOps(OrtOptions *options, const OrtApiBase *base) {
    static OrtDomain *domain;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    const OrtApi *api = base->get_api(ORT_VERSION);
    OrtStatus *failed = NULL;
    if (!selected_kernels()) return failure(api, "heed: HEED_MAX_ISA must be none, avx2, avx512 or amx");
    pthread_mutex_lock(&lock);
    if (!domain) {
        OrtDomain *made;
        failed = api->create_domain("heed", &made);
        if (!failed) failed = fill(api, made);
        if (!failed) domain = made; /* else it is left: there is no memory, or onnxruntime is another */
    }
    pthread_mutex_unlock(&lock);
    return failed ? failed : api->options_add_domain(options, domain);
}

#endif

/* The instruction set whose kernels run here: none, avx2, avx512 or amx; null if HEED_MAX_ISA is none of them. */
const char *heed_instruction_set(void) {
    const Kernels *kernels = selected_kernels();
    return kernels ? kernels->name : NULL;
}
