/* Runs every operator that this CPU has kernels for, on random tensors of odd sizes, and compares the answers with plain
 * loops in double. Each tensor is allocated with its exact size, so that AddressSanitizer sees what goes beyond it.
 *
 *     check_kernels THREADS
 *
 * Prints the selected instruction set, and for each case a hash of its answers: the same for any number of threads. Exit
 * code 1 if an answer is wrong.
 *
 * Letters: T rows (tokens), K values in each row, M channels; B rows of a batch, L slots, N heads, H and V their widths. */

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_onnxruntime.h"
#include "packed.h"

enum { MOST_ROWS = 70, CHUNKED_ROWS = 700 /* more than one chunk */ };

const char *heed_instruction_set(void);

static int threads = 1;
static bool wrong;

/* --- Random tensors --- */

static uint64_t state = 88172645463325252;

static uint64_t next_random(void) { /* xorshift64 (Marsaglia, 2003) */
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static double uniform(void) { return (double)(next_random() >> 11) / (1ULL << 53); }
static float normal(void) {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += uniform();
    return (float)sum;
}

static OrtValue tensor(size_t element, size_t rank, const int64_t *sizes) {
    OrtValue value = {.rank = rank};
    size_t size = element;
    for (size_t axis = 0; axis < rank; axis++) size *= value.sizes[axis] = sizes[axis];
    value.data = malloc(size);
    return value;
}

#define TENSOR(type, ...)                                                                                             \
    tensor(sizeof(type), sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[]){__VA_ARGS__})

static long elements(const OrtValue *value) {
    long count = 1;
    for (size_t axis = 0; axis < value->rank; axis++) count *= value->sizes[axis];
    return count;
}

static OrtValue filled(OrtValue value) {
    for (long i = 0; i < elements(&value); i++) ((float *)value.data)[i] = normal();
    return value;
}

/* --- Running an operator --- */

static void *create(const OrtOperator *operator, const OrtKernelInfo *info) {
    void *kernel = NULL;
    OrtStatus *failed = operator->create_or_fail(operator, fake_api(), info, &kernel);
    if (!failed) return kernel;
    fprintf(stderr, "%s: %s\n", operator->name(operator), failed->message);
    exit(1);
}

static float *run(const OrtOperator *operator, void *kernel, OrtContext *context) {
    context->threads = threads, context->element_size = sizeof(float);
    OrtStatus *failed = operator->compute_or_fail(kernel, context);
    if (!failed) return context->output.data;
    fprintf(stderr, "%s: %s\n", operator->name(operator), failed->message);
    exit(1);
}

static uint64_t hash(uint64_t before, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++) before = (before ^ ((const unsigned char *)data)[i]) * 0x100000001b3;
    return before;
}

static void expect(bool right, const char *what, const char *operator, long first, long second, long third) {
    if (right) return;
    fprintf(stderr, "%s, sizes %ld %ld %ld: %s\n", operator, first, second, third, what);
    wrong = true;
}

/* --- Linear layers --- */

typedef struct {
    const char *name;
    size_t inputs;
    bool transposed, int8;
    double rounding; /* of a channel's largest weight, or a row's largest value */
} LinearCase;

static const LinearCase LINEAR_CASES[] = {
    {"Linear", 3, false, false, 0x1p-23},
    {"Product", 2, true, false, 0x1p-23},
    {"Linear16", 3, false, false, 0.5 / 2047 + 0x1p-15},
    {"Int8Linear", 5, true, true, 0x1p-22},
};
static const long SIZES[][2] = {{1, 1}, {3, 16}, {7, 17}, {64, 15}, {65, 33}, {130, 100}, {257, 40}, {600, 49}};

typedef struct {
    long depth, channels;
    OrtValue w, scales, sums, bias;
} Layer;

static Layer make_layer(const LinearCase *of, long depth, long channels) {
    Layer layer = {.depth = depth, .channels = channels};
    int64_t sizes[] = {of->transposed ? depth : channels, of->transposed ? channels : depth};
    layer.w = tensor(of->int8 ? 1 : sizeof(float), 2, sizes);
    layer.scales = filled(TENSOR(float, channels)), layer.sums = filled(TENSOR(float, channels));
    layer.bias = filled(TENSOR(float, channels));
    if (!of->int8) filled(layer.w);
    for (long i = 0; of->int8 && i < depth * channels; i++)
        ((int8_t *)layer.w.data)[i] = (int8_t)(next_random() % 127 - 63); /* 7 bits */
    for (long m = 0; of->int8 && m < channels; m++) {
        double sum = 0;
        for (long k = 0; k < depth; k++) sum += ((int8_t *)layer.w.data)[k * channels + m];
        float *scale = (float *)layer.scales.data + m;
        *scale = 0.001f + fabsf(*scale) / 50, ((float *)layer.sums.data)[m] = (float)(sum * *scale);
    }
    return layer;
}

static void free_layer(Layer *layer) {
    free(layer->w.data), free(layer->scales.data), free(layer->sums.data), free(layer->bias.data);
}

static double weight(const LinearCase *of, const Layer *layer, long m, long k) {
    long place = of->transposed ? k * layer->channels + m : m * layer->depth + k;
    if (!of->int8) return ((float *)layer->w.data)[place];
    return (double)((int8_t *)layer->w.data)[place] * ((float *)layer->scales.data)[m];
}

static OrtKernelInfo constants_of(const LinearCase *of, const Layer *layer) {
    OrtKernelInfo info = {.constants = {[1] = &layer->w}};
    if (of->inputs == 3) info.constants[2] = &layer->bias;
    if (of->int8) info.constants[2] = &layer->scales, info.constants[3] = &layer->sums, info.constants[4] = &layer->bias;
    return info;
}

/* Weights and rows may be rounded as far as the storage says; int8 rows to half of 255 steps. */
static void compare_row(const LinearCase *of, const Layer *layer, const float *x, const float *y) {
    double largest = 0, sum = 0, low = x[0], high = x[0];
    for (long k = 0; k < layer->depth; k++) {
        largest = fmax(largest, fabs(x[k])), sum += fabs(x[k]);
        low = fmin(low, x[k]), high = fmax(high, x[k]);
    }
    for (long m = 0; m < layer->channels; m++) {
        double exact = of->inputs == 2 ? 0 : ((float *)layer->bias.data)[m], weights = 0, most = 0;
        double bound = fabs(exact);
        for (long k = 0; k < layer->depth; k++) {
            double w = weight(of, layer, m, k);
            exact += w * x[k], weights += fabs(w), most = fmax(most, fabs(w));
        }
        bound = of->rounding * (bound + largest * weights + most * sum);
        if (of->int8) bound += (high - low) / 255 / 2 * weights * 1.001 + 1e-5 * (1 + fabs(exact));
        expect(fabs(y[m] - exact) <= bound, "far from the exact answer", of->name, layer->depth, layer->channels, m);
    }
}

/* The answers for the first `rows` of x: the same bits as for all of them. */
static void check_rows(const LinearCase *of, const OrtOperator *operator, void *kernel, const Layer *layer,
                       const float *x, long rows, const float *all) {
    OrtValue few = TENSOR(float, rows, layer->depth);
    OrtContext context = {.inputs = {&few}};
    memcpy(few.data, x, rows * layer->depth * sizeof(float));
    float *y = run(operator, kernel, &context);
    expect(!memcmp(y, all, rows * layer->channels * sizeof(float)), "other bits than in a larger group", of->name,
           layer->depth, layer->channels, rows);
    free(y), free(few.data);
}

static void check_linear(const LinearCase *of, long depth, long channels) {
    const OrtOperator *operator = registered(of->name);
    if (!operator) return;
    Layer layer = make_layer(of, depth, channels);
    OrtKernelInfo info = constants_of(of, &layer);
    void *kernel = create(operator, &info);
    long most = depth == 600 ? CHUNKED_ROWS : MOST_ROWS;
    OrtValue x = filled(TENSOR(float, most, depth));
    for (long k = 0; k < depth; k++) ((float *)x.data)[k] = 0; /* a row of zeros */
    OrtContext context = {.inputs = {&x}};
    float *all = run(operator, kernel, &context);
    for (long t = 0; t < MOST_ROWS; t++)
        compare_row(of, &layer, (float *)x.data + t * depth, all + t * channels);
    bool large = depth * channels > 10000; /* only rows around the edges of tiles, which have 16 or fewer */
    for (long rows = 1; rows <= MOST_ROWS; rows++)
        if (!large || (rows + 2) % 16 < 5) check_rows(of, operator, kernel, &layer, x.data, rows, all);
    printf("%s %ld %ld %016lx\n", of->name, depth, channels, hash(0, all, most * channels * sizeof(float)));
    free(all), free(x.data);
    operator->destroy(kernel);
    free_layer(&layer);
}

/* --- Weights are shared --- */

static void *create_and_destroy(void *info) {
    const OrtOperator *operator = registered("Linear");
    for (int i = 0; i < 50; i++) operator->destroy(create(operator, info));
    return NULL;
}

static void check_sharing(void) {
    const LinearCase *of = LINEAR_CASES;
    const OrtOperator *operator = registered(of->name);
    if (!operator) return;
    Layer one = make_layer(of, 33, 20), other = one;
    other.w = TENSOR(float, 20, 33);
    memcpy(other.w.data, one.w.data, 20 * 33 * sizeof(float));
    OrtKernelInfo infos[] = {constants_of(of, &one), constants_of(of, &other)};
    void *kernels[] = {create(operator, &infos[0]), create(operator, &infos[1])};
    expect(packed_in_use() == 1, "equal weights are not shared", of->name, 0, 0, packed_in_use());
    ((float *)other.w.data)[20 * 33 - 1] *= 2;
    void *third = create(operator, &infos[1]);
    expect(packed_in_use() == 2, "different weights are shared", of->name, 0, 0, packed_in_use());
    pthread_t many[4];
    for (int i = 0; i < 4; i++) pthread_create(&many[i], NULL, create_and_destroy, &infos[i % 2]);
    for (int i = 0; i < 4; i++) pthread_join(many[i], NULL);
    operator->destroy(kernels[0]), operator->destroy(third);
    expect(packed_in_use() == 1, "weights are freed before their last user is", of->name, 0, 0, packed_in_use());
    operator->destroy(kernels[1]);
    expect(packed_in_use() == 0, "weights are not freed", of->name, 0, 0, packed_in_use());
    free(other.w.data);
    free_layer(&one);
}

/* --- Between the layers --- */

static void check_gelu(long count) {
    const OrtOperator *operator = registered("Gelu");
    if (!operator) return;
    OrtKernelInfo info = {.constants = {NULL}};
    void *kernel = create(operator, &info);
    OrtValue x = filled(TENSOR(float, count));
    OrtContext context = {.inputs = {&x}};
    float *y = run(operator, kernel, &context);
    for (long i = 0; i < count; i++) {
        double at = ((float *)x.data)[i], exact = at * 0.5 * erfc(-at * sqrt(0.5));
        expect(fabs(y[i] - exact) <= 1e-7 * fmax(1, fabs(exact)), "far from exact", "Gelu", count, i, 0);
    }
    printf("Gelu %ld %016lx\n", count, hash(0, y, count * sizeof *y));
    free(y), free(x.data);
    operator->destroy(kernel);
}

static void check_norm(long rows, long width) {
    const OrtOperator *operator = registered("AddNorm");
    if (!operator) return;
    OrtValue x = filled(TENSOR(float, rows, width)), y = filled(TENSOR(float, rows, width));
    OrtValue factors = filled(TENSOR(float, width)), biases = filled(TENSOR(float, width));
    OrtKernelInfo info = {.constants = {[2] = &factors, [3] = &biases}, .epsilon = 1e-3f};
    void *kernel = create(operator, &info);
    OrtContext context = {.inputs = {&x, &y}};
    float *out = run(operator, kernel, &context);
    for (long row = 0; row < rows; row++) {
        const float *one = (float *)x.data + row * width, *other = (float *)y.data + row * width;
        double mean = 0, squares = 0;
        for (long d = 0; d < width; d++) mean += ((double)one[d] + other[d]) / width;
        for (long d = 0; d < width; d++) squares += pow((double)one[d] + other[d] - mean, 2) / width;
        for (long d = 0; d < width; d++) {
            double exact = ((double)one[d] + other[d] - mean) / sqrt(squares + 1e-3) * ((float *)factors.data)[d] +
                           ((float *)biases.data)[d];
            expect(fabs(out[row * width + d] - exact) <= 1e-5, "far from exact", "AddNorm", rows, width, d);
        }
    }
    printf("AddNorm %ld %ld %016lx\n", rows, width, hash(0, out, rows * width * sizeof *out));
    free(out), free(x.data), free(y.data), free(factors.data), free(biases.data);
    operator->destroy(kernel);
}

/* --- Attention --- */

typedef struct {
    long tokens, rows, slots, heads, width, value_width, mask_rows;
    OrtValue query, key, value, places, mask, any, back;
} Attention;

/* Rows of these lengths; where the mask has a row for each query, it hides slots more than two away. The last row's
 * queries are allowed no key. */
static Attention make_attention(const long *lengths, long rows, long heads, long width, long value_width, bool banded) {
    Attention a = {.rows = rows, .heads = heads, .width = width, .value_width = value_width};
    for (long b = 0; b < rows; b++) a.tokens += lengths[b], a.slots = lengths[b] > a.slots ? lengths[b] : a.slots;
    a.mask_rows = banded ? a.slots : 1;
    a.query = filled(TENSOR(float, a.tokens, heads * width)), a.key = filled(TENSOR(float, a.tokens, heads * width));
    a.value = filled(TENSOR(float, a.tokens, heads * value_width));
    a.places = TENSOR(int64_t, rows, heads, a.slots), a.mask = TENSOR(float, rows, 1, a.mask_rows, a.slots);
    a.any = TENSOR(float, rows, 1, 1, 1), a.back = TENSOR(int64_t, a.tokens, heads);
    for (long b = 0, token = 0; b < rows; token += lengths[b++]) {
        ((float *)a.any.data)[b] = b + 1 < rows || rows == 1;
        for (long l = 0; l < a.slots; l++)
            for (long n = 0; n < heads; n++) {
                long here = l < lengths[b] ? token + l : 0;
                ((int64_t *)a.places.data)[(b * heads + n) * a.slots + l] = here * heads + n;
                if (l < lengths[b]) ((int64_t *)a.back.data)[here * heads + n] = (b * heads + n) * a.slots + l;
            }
        for (long q = 0; q < a.mask_rows; q++)
            for (long l = 0; l < a.slots; l++) {
                bool seen = l < lengths[b] && (!banded || labs(q - l) <= 2);
                ((float *)a.mask.data)[(b * a.mask_rows + q) * a.slots + l] = seen ? 0 : -3e38f;
            }
    }
    return a;
}

static void attend_exactly(const Attention *a, float scale, long token, long n, double *out) {
    long place = ((int64_t *)a->back.data)[token * a->heads + n], slot = place % a->slots;
    long row = place / a->slots / a->heads;
    const float *query = (float *)a->query.data + (token * a->heads + n) * a->width;
    const float *mask = (float *)a->mask.data + (row * a->mask_rows + (a->mask_rows > 1 ? slot : 0)) * a->slots;
    double total = 0;
    memset(out, 0, a->value_width * sizeof *out);
    if (!((float *)a->any.data)[row]) return;
    for (long l = 0; l < a->slots; l++) {
        long key = ((int64_t *)a->places.data)[(row * a->heads + n) * a->slots + l];
        double score = 0;
        if (mask[l] < 0) continue;
        for (long h = 0; h < a->width; h++) score += (double)query[h] * scale * ((float *)a->key.data)[key * a->width + h];
        total += exp(score);
        for (long v = 0; v < a->value_width; v++)
            out[v] += exp(score) * ((float *)a->value.data)[key * a->value_width + v];
    }
    for (long v = 0; v < a->value_width; v++) out[v] /= total;
}

static void check_attention(const long *lengths, long rows, long heads, long width, long value_width, bool banded) {
    const OrtOperator *operator = registered("Attention");
    if (!operator) return;
    Attention a = make_attention(lengths, rows, heads, width, value_width, banded);
    float scale = 1 / sqrtf((float)width);
    OrtValue factor = {.data = &scale}, shape = {.rank = 1, .sizes = {1}};
    OrtKernelInfo info = {.constants = {[7] = &factor}};
    void *kernel = create(operator, &info);
    OrtContext context = {
        .inputs = {&a.query, &a.key, &a.value, &a.places, &a.mask, &a.any, &a.back, &factor, &shape, &shape, &shape}};
    float *y = run(operator, kernel, &context);
    double *exact = malloc(value_width * sizeof *exact);
    for (long token = 0; token < a.tokens; token++)
        for (long n = 0; n < heads; n++) {
            attend_exactly(&a, scale, token, n, exact);
            for (long v = 0; v < value_width; v++)
                expect(fabs(y[(token * heads + n) * value_width + v] - exact[v]) <= 1e-5, "far from exact", "Attention",
                       a.slots, width, value_width);
        }
    printf("Attention %ld %ld %ld %ld %d %016lx\n", a.slots, heads, width, value_width, banded,
           hash(0, y, a.tokens * heads * value_width * sizeof *y));
    free(exact), free(y), free(a.query.data), free(a.key.data), free(a.value.data), free(a.places.data);
    free(a.mask.data), free(a.any.data), free(a.back.data);
    operator->destroy(kernel);
}

int main(int count, char **arguments) {
    if (count > 1) threads = atoi(arguments[1]);
    register_all();
    printf("%s\n", heed_instruction_set());
    for (size_t of = 0; of < sizeof LINEAR_CASES / sizeof *LINEAR_CASES; of++)
        for (size_t size = 0; size < sizeof SIZES / sizeof *SIZES; size++)
            check_linear(&LINEAR_CASES[of], SIZES[size][0], SIZES[size][1]);
    for (long size = 1; size <= MOST_ROWS; size++) check_gelu(size), check_norm(size % 5 + 1, size);
    check_gelu(40000), check_norm(100, 384);
    for (long length = 1; length <= MOST_ROWS; length++) {
        long lengths[] = {length, 3, length / 2 + 1, 2};
        long width = 1 + length * 7 % 40, value_width = 1 + length * 5 % 37;
        check_attention(lengths, 4, 1 + length % 3, width, value_width, false);
        check_attention(lengths, 4, 2, width, value_width, true);
        check_attention(lengths, 1, 1, 32, 32, false);
    }
    check_sharing();
    return wrong;
}
