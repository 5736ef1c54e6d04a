/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers of the engine: counted against one limit, reused because fresh pages cost as
 * much as encoding into them. */
#ifndef QF_ENGINE_MEMORY_H
#define QF_ENGINE_MEMORY_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/slabs.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Sizes that are reused: multiples of 16 KiB, up to a megabyte. */
#define QF_MEMORY_CLASSES 64

struct qf_memory {
    pthread_mutex_t lock;
    uint64_t limit; /* bytes */
    uint64_t used;  /* bytes given out */
    uint64_t peak;
    uint64_t idle; /* bytes in free lists */
    struct qf_memory_block *free[QF_MEMORY_CLASSES];
    struct qf_slabs slabs; /* records */
};

/* backend (borrowed, until qf_memory_fini) may be NULL. */
void qf_memory_init(struct qf_memory *memory, uint64_t limit, qf_backend *backend);
/* Everything must have been returned. */
void qf_memory_fini(struct qf_memory *memory);
/* 64-byte aligned; NULL when the system has no more. Does not refuse at the limit: who
 * must not pass it asks qf_memory_room first. */
void *qf_memory_get(struct qf_memory *memory, size_t size);
/* The same, for records that the backend will fill: in a slab, of which the backend was
 * told (qf_backend_pin), if there is room. */
void *qf_memory_get_record(struct qf_memory *memory, size_t size);
/* `size` as it was asked for; of either kind. */
void qf_memory_put(struct qf_memory *memory, void *data, size_t size);
/* Bytes left until `percent` of the limit is in use, and bytes in use beyond that. */
uint64_t qf_memory_room(struct qf_memory *memory, unsigned percent);
uint64_t qf_memory_excess(struct qf_memory *memory, unsigned percent);
/* What a buffer of `size` bytes counts for. */
uint64_t qf_memory_cost(size_t size);

#ifdef __cplusplus
}
#endif
#endif
