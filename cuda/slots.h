/* SPDX-License-Identifier: Apache-2.0 */
/* A slot is what one batch of chunks needs on its way through the device: a queue, a
 * buffer for the source and one for the results, and pinned host buffers for what the
 * device cannot reach. Private to cuda/. */
#ifndef QF_CUDA_SLOTS_H
#define QF_CUDA_SLOTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda/arenas.h"
#include "cuda/cuda_backend.h"
#include "cuda/device.h"
#include "cuda/fault.h"
#include "cuda/turns.h"
#include "cuda/windows.h"

#define QF_CUDA_SLOT_IN  ((size_t)16 << 20)
#define QF_CUDA_SLOT_OUT ((size_t)8 << 20)
/* A chunk's source lies in one window or two. */
#define QF_CUDA_SLOT_HOLDS (2 * QF_CUDA_LAUNCH_MAX)

struct qf_cuda_counters {
    uint64_t chunks, chunks_fallback, failures, source_mapped, source_read,
        records_direct, records_staged, contexts;
};

struct qf_cuda_backend {
    qf_backend base;
    qf_backend *fallback; /* borrowed */
    int device;
    uint64_t idle_ns;
    uint64_t windows_idle_ns;
    unsigned slot_max;
    struct qf_cuda_faults faults;
    struct qf_cuda_turns turns;
    struct qf_cuda_windows windows;
    struct qf_cuda_arenas arenas;
    pthread_t keeper;
    pthread_mutex_t stats_lock; /* of the next two */
    struct qf_cuda_counters stats;
    bool warned;
    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t changed;
    struct qf_cuda_slot *idle; /* last used first */
    unsigned slot_count;
    unsigned active;   /* encode calls under way on the device */
    bool context;      /* the device is taken up */
    bool switching;    /* … and is being given back, or taken up by the keeper */
    bool wanted;       /* the keeper shall take it up */
    bool no_waiting;   /* for that; constant */
    bool down;         /* for ever */
    bool closing;      /* the keeper must end */
    uint64_t used_ns;  /* when the last call ended */
    uint64_t retry_ns; /* not before: the device had no memory */
};

struct qf_cuda_slot {
    struct qf_cuda_slot *next;
    qf_cuda_queue *queue;
    char *in; /* on the device */
    char *out;
    char *staging_in; /* pinned; NULL until needed */
    char *staging_out;
    /* The batch on its way. */
    struct qf_job *jobs;
    size_t count;
    int rc; /* of what was queued so far */
    size_t hold_count;
    struct qf_cuda_window *holds[QF_CUDA_SLOT_HOLDS];
    size_t out_off[QF_CUDA_LAUNCH_MAX]; /* of a record in out and staging_out */
    bool staged[QF_CUDA_LAUNCH_MAX];    /* goes through staging_out */
};

/* *counter += n, a counter of cuda->stats. */
void qf_cuda_count(struct qf_cuda_backend *cuda, uint64_t *counter, uint64_t n);
uint64_t qf_cuda_now_ns(void);
/* The device had no memory: leaves it alone for a while. */
void qf_cuda_retry_later(struct qf_cuda_backend *cuda);

/* An idle or a new slot; waits for another call's when there can be no more and
 * may_wait. NULL: none to be had (now, if not may_wait). */
struct qf_cuda_slot *qf_cuda_slot_take(struct qf_cuda_backend *cuda, bool may_wait);
void qf_cuda_slot_give(struct qf_cuda_backend *cuda, struct qf_cuda_slot *slot);
/* Frees the idle slots. */
void qf_cuda_slots_clear(struct qf_cuda_backend *cuda);
/* The pinned buffer, made when it is not there yet. */
int qf_cuda_slot_staging(struct qf_cuda_backend *cuda, char **buffer,
                         size_t size) QF_MUST_CHECK;

/* Whether the device can do this job at all. */
bool qf_cuda_job_fits(const struct qf_job *job);
/* How many of the jobs (at least 1, all of which fit) make one batch. */
size_t qf_cuda_batch_size(const struct qf_job *jobs, size_t count);
/* Queues jobs[0 … n) of the `count` that are still to come; qf_cuda_batch_end must
 * follow, whatever happens. */
void qf_cuda_batch_start(struct qf_cuda_backend *cuda, struct qf_cuda_slot *slot,
                         struct qf_job *jobs, size_t n, size_t count);
/* Waits and completes the records. Not 0: the device failed, and no job of the batch
 * whose rc is 0 has a record. */
int qf_cuda_batch_end(struct qf_cuda_backend *cuda, struct qf_cuda_slot *slot);

#endif
