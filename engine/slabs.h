/* SPDX-License-Identifier: Apache-2.0 */
/* Memory for records: large mappings on huge pages, of which the backend is told once
 * (qf_backend_pin), and records carved from them. Thread-safe. */
#ifndef QF_ENGINE_SLABS_H
#define QF_ENGINE_SLABS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of a slab, and the largest record that is put into one. */
#define QF_SLAB_SIZE        ((size_t)16 << 20)
#define QF_SLAB_RECORD_SIZE ((size_t)4 << 20)
/* Slabs without a record that are kept; the others are unpinned and unmapped. */
#define QF_SLABS_EMPTY_MAX 2

struct qf_slab;

struct qf_slabs {
    qf_backend *backend; /* borrowed; NULL: there are no slabs */
    uint64_t limit;      /* bytes of slabs */
    pthread_mutex_t lock;
    struct qf_slab **list; /* by address */
    size_t count;
    size_t capacity;
    size_t empty;    /* of them: without a record */
    uint64_t mapped; /* bytes, those included that are being made */
};

/* backend NULL: no slabs. */
void qf_slabs_init(struct qf_slabs *slabs, qf_backend *backend, uint64_t limit);
/* Everything must have been returned. */
void qf_slabs_fini(struct qf_slabs *slabs);
/* 64-byte aligned. NULL: not here (no slabs, too large, at the limit, no memory). */
void *qf_slabs_get(struct qf_slabs *slabs, size_t size);
/* `size` as it was asked for. False: the memory is not from a slab. */
bool qf_slabs_put(struct qf_slabs *slabs, void *data, size_t size);

#ifdef __cplusplus
}
#endif
#endif
