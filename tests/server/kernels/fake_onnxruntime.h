/* As much of onnxruntime as the operators call, so that they run in a small C program under the sanitizers. */

#pragma once

#include <stdint.h>

#include "onnxruntime.h"

enum { FAKE_INPUTS = 11, FAKE_RANKS = 4 };

struct OrtValue {
    int64_t sizes[FAKE_RANKS];
    size_t rank;
    void *data; /* allocated with its exact size: what is read or written beyond it is found */
};

struct OrtKernelInfo {
    const OrtValue *constants[FAKE_INPUTS]; /* null: not a constant */
    float epsilon;
};

struct OrtContext {
    const OrtValue *inputs[FAKE_INPUTS];
    OrtValue output;
    size_t element_size; /* of the output */
    int threads;
};

struct OrtStatus {
    char message[200];
};

/* The operator of this name that the library registered; null if it left it to onnxruntime. */
const OrtOperator *registered(const char *name);

/* Registers all, or ends the program. */
void register_all(void);

const OrtApi *fake_api(void);
