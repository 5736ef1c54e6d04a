/* SPDX-License-Identifier: Apache-2.0 */
/* The engine: bytes of view shards, encoded when they are first read, from the cache
 * afterwards. Knows nothing of FUSE. All calls are thread-safe. */
#ifndef QF_ENGINE_ENGINE_H
#define QF_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "base/hash.h"
#include "cache/store.h"
#include "ckpt/srcfile.h"
#include "quant/backend.h"
#include "view/layout.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_engine qf_engine;
typedef struct qf_shard_file qf_shard_file;

struct qf_engine_options {
    qf_backend *backend;   /* borrowed */
    qf_store *store;       /* borrowed */
    unsigned thread_count; /* workers that encode ahead; 0: one per processor */
    uint64_t memory_limit; /* bytes of records in flight and kept; 0: the default */
    bool storing_first;    /* reads are for the store's sake: who encodes in a reader's
                            * thread waits for the store as long as a worker does */
};

#define QF_ENGINE_MEMORY_DEFAULT (UINT64_C(512) << 20)
#define QF_ENGINE_MEMORY_MIN     (UINT64_C(32) << 20)

struct qf_engine_stats {
    uint64_t chunks_encoded;
    uint64_t chunks_prefetched; /* of those: encoded before a reader asked */
    const char *backend_name;
    struct qf_backend_stats backend; /* all zero without a device */
    uint64_t seals;                  /* tensors sealed */
    uint64_t source_bytes_read; /* weights only; headers are counted by ckpt's users */
    uint64_t cache_hits;        /* chunk or seal records found in the store */
    uint64_t cache_misses;
    uint64_t bytes_served;
    uint64_t bytes_memory;  /* of those: headers, and records that were in memory, */
    uint64_t bytes_cache;   /* from the store, */
    uint64_t bytes_encoded; /* encoded while the reader waited, */
    uint64_t bytes_source;  /* kept tensors; the others are sealed_bytes */
    uint64_t read_errors;
    uint64_t shards_sealed; /* written as flat files */
    uint64_t sealed_reads;  /* served from such files; in bytes_served too */
    uint64_t sealed_bytes;
    uint64_t memory_used; /* bytes of records held now */
    uint64_t memory_peak;
    uint64_t memory_limit;
    uint64_t chunks_queued;   /* now: asked for ahead, not begun */
    uint64_t chunks_encoding; /* now: until they are handed to the store */
    uint64_t readers_waiting; /* now: for a chunk that somebody else encodes */
    uint64_t storing_bytes;   /* now: handed to the store, not kept yet */
};

int qf_engine_new(const struct qf_engine_options *options,
                  qf_engine **out) QF_MUST_CHECK;
/* Waits for what is in flight, but gives up what is being sealed. All files must be
 * closed. NULL is allowed. */
void qf_engine_free(qf_engine *engine);
void qf_engine_stats(const qf_engine *engine, struct qf_engine_stats *out);

/* Whether shards are sealed: written to the store as flat files, in the background,
 * when a shard that has been read is closed for the last time and the store has all its
 * records. These are then dropped; a view that shares them and whose headers differ
 * (another quant_storage, other skipped modules) encodes them again. Off at first; of
 * no effect with a store that keeps no files. Sealed files that are there are read in
 * any case. */
void qf_engine_set_sealing(qf_engine *engine, bool on);

/* Buffers from the engine's memory, for a front-end's own reads. NULL: no memory. */
void *qf_engine_buffer_get(qf_engine *engine, size_t size);
void qf_engine_buffer_put(qf_engine *engine, void *buffer, size_t size);

/* What identifies the contents of a source file in cache keys: which file in which
 * version. */
struct qf_hash128 qf_source_id(const struct qf_ident *ident,
                               struct qf_hash128 header_hash);
/* The same for a blob of a hub cache, whose name (blobs/<64 hex digits>) is the SHA-256
 * of its contents: moved, copied or downloaded again it keeps what is cached. False
 * when `path` (without links) names no blob. The name is believed: whoever changes a
 * blob in place must prune the cache. */
bool qf_source_id_of_blob(const char *path, uint64_t size,
                          struct qf_hash128 header_hash, struct qf_hash128 *out);

/* One of the files whose tensors a view file shows. */
struct qf_shard_source {
    const qf_srcfile *src; /* borrowed */
    struct qf_hash128 id;  /* of qf_source_id */
};

/* A view shard to read from. tensors[].source of the layout counts `sources`, which are
 * copied; `layout` and the source files are borrowed until `released(owner)` is
 * called: after qf_shard_file_close, when the last work on the file has ended. `origin`
 * (of qf_store_origin, or 0) is what the store shall remember of where it is from. */
int qf_shard_file_open(qf_engine *engine, const struct qf_layout *layout,
                       const struct qf_shard_source *sources, size_t source_count,
                       uint64_t origin, void (*released)(void *owner), void *owner,
                       qf_shard_file **out) QF_MUST_CHECK;
void qf_shard_file_close(qf_shard_file *file);
/* The sealed file with the whole shard's bytes, read-only; -1: there is none (yet).
 * Borrowed until the shard file is closed. Who reads it does without the check whether
 * the source has changed. */
int qf_shard_file_sealed_fd(const qf_shard_file *file);
/* XXH3-64 of the whole shard's bytes, known of a sealed file only. -ENODATA. */
int qf_shard_file_digest(const qf_shard_file *file, uint64_t *out) QF_MUST_CHECK;

/* One read's bytes, as pieces in memory that belong to others. */
struct qf_read;

/* Reads up to `size` bytes at `off`, fewer only at the end of the file and past
 * QF_FUSE_READ_SIZE_MAX. On 0, *out holds the bytes until qf_read_release, also after
 * the file is closed. -ESTALE when a source that they come from has changed since it
 * was opened, -EIO and other errnos of the source, -ENOMEM. */
int qf_engine_read(qf_shard_file *file, uint64_t off, size_t size,
                   struct qf_read **out) QF_MUST_CHECK;
/* Like qf_engine_read, but from records alone and without encoding, and leaves no trace
 * in counters of reads and in look-ahead. -ENOENT when a record is not there. */
int qf_engine_read_stored(qf_shard_file *file, uint64_t off, size_t size,
                          struct qf_read **out) QF_MUST_CHECK;
const struct iovec *qf_read_pieces(const struct qf_read *read, size_t *count);
size_t qf_read_size(const struct qf_read *read);
void qf_read_release(struct qf_read *read);

#ifdef __cplusplus
}
#endif
#endif
