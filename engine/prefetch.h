/* SPDX-License-Identifier: Apache-2.0 */
/* Look-ahead: which records a reader will want next. Private to engine/. */
#ifndef QF_ENGINE_PREFETCH_H
#define QF_ENGINE_PREFETCH_H

#include <pthread.h>
#include <stdint.h>

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Loaders read one mapping in up to four interleaved streams; the kernel's own requests
 * arrive out of order. */
#define QF_STREAMS 8

struct qf_stream {
    uint64_t next;   /* offset past what was read last */
    uint64_t ahead;  /* everything before it has been asked for */
    uint64_t window; /* bytes to look ahead */
    uint64_t used;   /* clock of the last read */
};

struct qf_prefetch {
    pthread_mutex_t lock;
    uint64_t clock;
    struct qf_stream streams[QF_STREAMS];
};

void qf_prefetch_init(struct qf_prefetch *prefetch);
void qf_prefetch_fini(struct qf_prefetch *prefetch);
/* Tells of a read that is about to be served, and queues what it and those after it
 * need. */
void qf_prefetch_note(qf_shard_file *file, uint64_t off, uint64_t size);

#ifdef __cplusplus
}
#endif
#endif
