/* SPDX-License-Identifier: Apache-2.0 */
/* Sealed shards: whole view shards kept by the store as flat files, which are read with
 * one pread, or by the kernel itself. Private to engine/. Not to be confused with seal
 * records (seal.h). */
#ifndef QF_ENGINE_SEALED_H
#define QF_ENGINE_SEALED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/pool.h"
#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Smaller shards are not sealed: one read takes them whole. */
#define QF_SEALED_SIZE_MIN (UINT64_C(1) << 20)

/* What an engine has of it. */
struct qf_sealer {
    pthread_mutex_t lock;
    qf_shard_file *files; /* all with a key that are not released */
    qf_pool *pool;        /* one thread; NULL until sealing is first switched on */
    atomic_bool on;
};

/* What a shard file has of it. */
struct qf_sealed {
    struct qf_task task;        /* while it is to be sealed */
    struct qf_hash128 key;      /* of the sealed file */
    bool listed;                /* in sealer->files; else there is no key */
    qf_shard_file *prev, *next; /* there */
    atomic_bool was_read;       /* since it was last tried to seal it */
    atomic_bool broken;         /* reading fd failed: records again */
    _Atomic int fd;             /* owned; -1: no sealed file */
};

void qf_sealer_init(struct qf_sealer *sealer);
/* Ends sealing: what is being written is given up. */
void qf_sealer_stop(struct qf_sealer *sealer);
void qf_sealer_fini(struct qf_sealer *sealer);

/* Names the sealed file of `file`, whose other members are set, and opens it if there
 * is one. -ENOMEM. */
int qf_sealed_init(qf_shard_file *file) QF_MUST_CHECK;
/* The last work on the file has ended. True: it is to be sealed and has one reference
 * again, which is given back when that is done. False: qf_sealed has ended too, and the
 * file may be freed. */
bool qf_sealed_end(qf_shard_file *file);
/* Reads from the sealed file; false: there is none that can be read. */
bool qf_sealed_read(qf_shard_file *file, void *buf, size_t size, uint64_t off);

#ifdef __cplusplus
}
#endif
#endif
