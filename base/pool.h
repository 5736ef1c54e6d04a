/* SPDX-License-Identifier: Apache-2.0 */
/* A fixed set of worker threads and one queue. */
#ifndef QF_BASE_POOL_H
#define QF_BASE_POOL_H

#include <stddef.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_pool qf_pool;

/* What a worker runs. Embedded in the owner's struct: queueing allocates nothing. The
 * pool borrows it from qf_pool_submit until run begins. */
struct qf_task {
    void (*run)(struct qf_task *task);
    struct qf_task *next; /* private to the pool while queued */
};

int qf_pool_new(unsigned thread_count, qf_pool **out) QF_MUST_CHECK;
/* Runs what is still queued, then joins the workers. NULL is allowed. */
void qf_pool_free(qf_pool *pool);
/* Queues the task behind all others. */
void qf_pool_submit(qf_pool *pool, struct qf_task *task);
unsigned qf_pool_thread_count(const qf_pool *pool);
/* Processors this process may run on (sched_getaffinity). */
unsigned qf_cpu_count(void);

#ifdef __cplusplus
}
#endif
#endif
