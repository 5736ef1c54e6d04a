/* SPDX-License-Identifier: Apache-2.0 */
/* The single-flight table of records (chunk and seal records). Private to engine/.
 *
 *            prefetch                worker or reader          done
 *   ABSENT ------------> QUEUED ------------------> ENCODING ---------> READY
 *      |                                               ^   |
 *      +------------------- reader --------------------+   +-> FAILED (leaves the
 * table)
 *
 * One owner encodes, everybody else waits for it. A READY record stays in memory while
 * somebody uses it (readers, the store's writer) and then, least recently used first to
 * go, as long as there is room; not for long when the store has it, too: encoding into
 * memory that was used before is cheaper than into fresh pages. */
#ifndef QF_ENGINE_CHUNK_H
#define QF_ENGINE_CHUNK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/pool.h"
#include "cache/key.h"
#include "engine/engine.h"
#include "engine/memory.h"
#include "engine/prefetch.h"
#include "engine/sealed.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_CHUNK_BUCKETS 1024

struct qf_chunk_list {
    struct qf_chunk *head, *tail;
    uint64_t count;
    uint64_t cost; /* bytes of memory that they take, or will take */
};

struct qf_chunk_table {
    pthread_mutex_t lock;
    struct qf_chunk *buckets[QF_CHUNK_BUCKETS];
    struct qf_chunk_list idle_only;   /* READY, unused: least recently used first */
    struct qf_chunk_list idle_stored; /* the same, of records that the store has */
    struct qf_chunk_list queue; /* QUEUED, in the order in which they were asked for */
    uint64_t encoding_count;    /* owned by somebody, until handed to the store */
    uint64_t waiting_count;     /* readers that wait for an owner */
    uint64_t storing_size;      /* bytes on their way to the store */
    pthread_cond_t stored;      /* storing_size has fallen */
};

struct qf_engine_counters {
    _Atomic uint64_t chunks_encoded, chunks_prefetched, seals, source_bytes_read,
        cache_hits, cache_misses, bytes_served, read_errors, shards_sealed,
        sealed_reads, sealed_bytes, bytes_memory, bytes_cache, bytes_encoded,
        bytes_source;
};

struct qf_engine {
    qf_backend *backend; /* borrowed */
    qf_store *store;     /* borrowed */
    bool storing_first;  /* as in the options */
    qf_pool *pool;
    struct qf_memory memory;
    struct qf_chunk_table chunks;
    struct qf_sealer sealer;
    struct qf_engine_counters count;
};

struct qf_shard_file {
    qf_engine *engine;
    const struct qf_layout *layout; /* borrowed until released */
    uint64_t origin;                /* what the store is told */
    void (*released)(void *owner);
    void *owner;
    _Atomic uint32_t refs; /* the opener and every piece of work in flight */
    struct qf_prefetch prefetch;
    struct qf_sealed sealed;
    size_t source_count;
    struct qf_shard_source sources[]; /* files borrowed until released */
};

/* A record in use: from the table or straight from the store. */
struct qf_record {
    const uint8_t *data;
    size_t size;
    struct qf_chunk *chunk;      /* or NULL: */
    bool loaded;                 /* the chunk's bytes were found in the store */
    struct qf_store_value value; /* held */
};

/* Which record: a chunk of a tensor, or its seal. */
struct qf_record_id {
    uint32_t tensor; /* index in layout->tensors, one with a plan */
    uint64_t number; /* chunk, or QF_KEY_SEAL */
};

void qf_chunks_init(struct qf_chunk_table *table);
/* Frees the idle records. Nothing may be in flight. */
void qf_chunks_fini(qf_engine *engine);

/* The record if it can be had without encoding or waiting; false: call qf_record_get.
 */
bool qf_record_try(qf_shard_file *file, struct qf_record_id id, struct qf_record *out);
/* The same, without counting it as a hit. */
bool qf_record_peek(qf_shard_file *file, struct qf_record_id id, struct qf_record *out);
/* The record, encoded by this thread or waited for if need be. */
int qf_record_get(qf_shard_file *file, struct qf_record_id id,
                  struct qf_record *out) QF_MUST_CHECK;
void qf_record_release(qf_engine *engine, struct qf_record *record);
/* Queues the record for the workers unless it is there or on its way. False when the
 * memory that work ahead may take is used up. */
bool qf_record_prefetch(qf_shard_file *file, struct qf_record_id id);

struct qf_hash128 qf_record_key(const qf_shard_file *file, struct qf_record_id id,
                                uint64_t piece);
size_t qf_record_size(const qf_shard_file *file, struct qf_record_id id);

/* Where a tensor is from. */
const struct qf_shard_source *qf_shard_file_source(const qf_shard_file *file,
                                                   uint32_t tensor);
/* 0 while all sources are what they were when they were opened; else -ESTALE. */
int qf_shard_file_check(const qf_shard_file *file) QF_MUST_CHECK;
void qf_shard_file_ref(qf_shard_file *file);
void qf_shard_file_unref(qf_shard_file *file);

#ifdef __cplusplus
}
#endif
#endif
