/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that records lie in (qf_backend_pin): registered when a record in it is first
 * encoded, so that results are copied straight there. Private to cuda/. */
#ifndef QF_CUDA_ARENAS_H
#define QF_CUDA_ARENAS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "cuda/fault.h"
#include "cuda/turns.h"

struct qf_cuda_arena;

struct qf_cuda_arenas {
    pthread_mutex_t lock;
    struct qf_cuda_faults *faults; /* borrowed */
    struct qf_cuda_turns *turns;   /* borrowed */
    int device;
    struct qf_cuda_arena *list; /* by address */
    size_t count;
    size_t capacity;
};

void qf_cuda_arenas_init(struct qf_cuda_arenas *arenas, int device,
                         struct qf_cuda_faults *faults, struct qf_cuda_turns *turns);
/* Everything must have been cleared. */
void qf_cuda_arenas_fini(struct qf_cuda_arenas *arenas);
void qf_cuda_arenas_add(struct qf_cuda_arenas *arenas, void *data, size_t size);
void qf_cuda_arenas_remove(struct qf_cuda_arenas *arenas, void *data);
/* Whether the device can write to [data, data + size). */
bool qf_cuda_arenas_reach(struct qf_cuda_arenas *arenas, const void *data, size_t size);
/* Takes all registrations back; the arenas stay known. No copy may be under way. */
void qf_cuda_arenas_clear(struct qf_cuda_arenas *arenas);

#endif
