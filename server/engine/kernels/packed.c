/* One copy of packed weights for all sessions of the process.
 *
 * Copies are found by a hash of their content: not by name, which says nothing, nor by pointer, since onnxruntime gives
 * each session its own copy. The hash only selects candidates. Those are compared byte for byte, so that a collision
 * costs time and never an answer. */

#include "packed.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 256 };

static PackedWeights *buckets[BUCKETS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void *allocate_lines(size_t bytes) {
    return aligned_alloc(CACHE_LINE, (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
}

/* FNV-1a over words of 8 bytes, with the high half folded in: the plain product never moves high bits down. */
static uint64_t hash_bytes(const char *data, size_t size) {
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t place = 0; place < size; place += sizeof hash) {
        uint64_t word = 0;
        memcpy(&word, data + place, size - place < sizeof word ? size - place : sizeof word);
        hash = (hash ^ word) * 0x100000001b3;
        hash ^= hash >> 32;
    }
    return hash;
}

static bool equal(const PackedWeights *one, const PackedWeights *other) {
    return one->hash == other->hash && one->kernels == other->kernels && one->channels == other->channels &&
           one->depth == other->depth && !memcmp(one->data, other->data, one->size);
}

static void free_packed(PackedWeights *packed) {
    if (packed) free(packed->data);
    free(packed);
}

static bool allocate_data(PackedWeights *packed) {
    packed->size = packed->kernels->packed_size(packed);
    packed->data = allocate_lines(packed->size);
    if (packed->data) memset(packed->data, 0, packed->size);
    return packed->data;
}

static PackedWeights *pack(const LinearKernels *kernels, long channels, long depth, const LayerWeights *weights) {
    PackedWeights *packed = malloc(sizeof *packed);
    if (!packed) return NULL;
    *packed = (PackedWeights){.kernels = kernels, .channels = channels, .depth = depth};
    if (!allocate_data(packed) || !kernels->pack(packed, weights)) {
        free_packed(packed);
        return NULL;
    }
    packed->hash = hash_bytes(packed->data, packed->size);
    return packed;
}

PackedWeights *acquire_packed(const LinearKernels *kernels, long channels, long depth, const LayerWeights *weights) {
    PackedWeights *packed = pack(kernels, channels, depth, weights);
    if (!packed) return NULL;
    pthread_mutex_lock(&lock);
    PackedWeights **bucket = &buckets[packed->hash % BUCKETS], *found = *bucket;
    while (found && !equal(found, packed)) found = found->next;
    if (!found) {
        packed->next = *bucket;
        found = *bucket = packed;
    }
    found->users++;
    pthread_mutex_unlock(&lock);
    if (found != packed) free_packed(packed);
    return found;
}

void release_packed(PackedWeights *packed) {
    pthread_mutex_lock(&lock);
    bool last = --packed->users == 0;
    if (last) {
        PackedWeights **place = &buckets[packed->hash % BUCKETS];
        while (*place != packed) place = &(*place)->next;
        *place = packed->next;
    }
    pthread_mutex_unlock(&lock);
    if (last) free_packed(packed);
}

long packed_in_use(void) {
    long count = 0;
    pthread_mutex_lock(&lock);
    for (int bucket = 0; bucket < BUCKETS; bucket++)
        for (const PackedWeights *packed = buckets[bucket]; packed; packed = packed->next) count++;
    pthread_mutex_unlock(&lock);
    return count;
}
