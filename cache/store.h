/* SPDX-License-Identifier: Apache-2.0 */
/* A store of immutable values by 128-bit key. It may forget anything at any time; it
 * never returns other bytes than were put (every value carries a checksum). Trouble in
 * a store is never an error of a read: a get that cannot be answered is a miss, a put
 * that cannot be kept is dropped and counted. All calls are thread-safe. */
#ifndef QF_CACHE_STORE_H
#define QF_CACHE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/hash.h"

#define QF_STORE_ORIGIN_SIZE_MAX 1900u /* with NULs: an entry of a page of LMDB */

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_store qf_store;

/* A value found. Its bytes stay valid, and hold a read transaction or a reference,
 * until qf_store_release: keep that short. */
struct qf_store_value {
    const void *data; /* borrowed; 8-byte aligned */
    size_t size;
    void *hold; /* private */
};

struct qf_store_stats {
    uint64_t hits;
    uint64_t misses;
    uint64_t puts;
    uint64_t puts_dropped; /* queue full, value too large, store down */
    uint64_t evictions;
    uint64_t damaged;     /* values and files that were not what was written: dropped */
    uint64_t entries;     /* values */
    uint64_t bytes;       /* stored, flat files included */
    uint64_t bytes_limit; /* of the store */
    uint64_t files;       /* flat files (sealed shards) */
    uint64_t file_bytes;  /* of those, and of files being written in any process */
};

/* A flat file that is being written, by one thread at a time; ends in
 * qf_store_file_commit or _abort, at the latest before the store is closed. */
typedef struct qf_store_draft qf_store_draft;

/* Told once that a value which was put is no longer borrowed, from any thread. lasting:
 * the store has it now, and had room for it without forgetting another; else it was
 * dropped, or is in a store that is too small for what comes and goes. */
typedef void qf_store_done(void *arg, bool lasting);

/* What a store implements (its struct begins with a pointer to this). */
struct qf_store_ops {
    const char *name;
    bool (*get)(qf_store *store, struct qf_hash128 key, struct qf_store_value *out);
    void (*release)(qf_store *store, struct qf_store_value *value);
    void (*put)(qf_store *store, struct qf_hash128 key, uint64_t origin,
                const void *data, size_t size, qf_store_done *done, void *arg);
    void (*flush)(qf_store *store);
    /* NULL, all six, in a store that keeps no files. */
    int (*file_open)(qf_store *store, struct qf_hash128 key, uint64_t size, int *fd);
    int (*file_digest)(qf_store *store, struct qf_hash128 key, uint64_t *digest);
    int (*file_begin)(qf_store *store, struct qf_hash128 key, uint64_t origin,
                      uint64_t size, qf_store_draft **out);
    int (*file_append)(qf_store_draft *draft, const void *data, size_t size);
    int (*file_commit)(qf_store_draft *draft, const struct qf_hash128 *records,
                       size_t record_count);
    void (*file_abort)(qf_store_draft *draft);
    /* NULL in a store that remembers none. */
    uint64_t (*origin)(qf_store *store, const char *view, const char *store_path,
                       const char *model_path);
    /* NULL in a store that has none to change. */
    void (*set_limits)(qf_store *store, uint64_t bytes_limit, uint64_t min_free);
    void (*stats)(qf_store *store, struct qf_store_stats *out);
    void (*close)(qf_store *store);
};

struct qf_store {
    const struct qf_store_ops *ops;
};

/* Whether the key is there; on true the value must be released. */
static inline bool qf_store_get(qf_store *store, struct qf_hash128 key,
                                struct qf_store_value *out)
{
    return store->ops->get(store, key, out);
}

static inline void qf_store_release(qf_store *store, struct qf_store_value *value)
{
    store->ops->release(store, value);
}

/* Where values come from, for people who look at the cache (cache/admin.h); no bytes
 * depend on it. Returns the id to put with: the same for the same names in every
 * process, 0 when nothing is remembered (also for names of more than
 * QF_STORE_ORIGIN_SIZE_MAX bytes together, and past many thousands of places).
 * model_path is relative to store_path, "" the store itself. */
static inline uint64_t qf_store_origin(qf_store *store, const char *view,
                                       const char *store_path, const char *model_path)
{
    return store->ops->origin == NULL
               ? 0
               : store->ops->origin(store, view, store_path, model_path);
}

/* Queues the value and returns at once; `data` is borrowed until done is called
 * (also when the value was dropped, possibly before this returns).
 * origin: of qf_store_origin, or 0; a value that is there keeps the one it has. */
static inline void qf_store_put(qf_store *store, struct qf_hash128 key, uint64_t origin,
                                const void *data, size_t size, qf_store_done *done,
                                void *arg)
{
    store->ops->put(store, key, origin, data, size, done, arg);
}

/* Waits until everything put so far is kept or dropped. */
static inline void qf_store_flush(qf_store *store)
{
    store->ops->flush(store);
}

/* ---- flat files ----
 * A whole view shard as a plain file, which the kernel can read without us. An entry
 * like any other: counted against the limit, evicted by its last use, told from a
 * damaged one by its checksum. An evicted file stays readable through descriptors that
 * are open; its room on disk comes back when they are closed.
 *
 * These calls may wait for what was put before, as qf_store_flush does: hold no lock
 * that a done() takes. */

/* Opens the file of that key (O_RDONLY, owned by the caller). -ENOENT when there is
 * none, or it was not what was written (then it is removed): the caller goes on with
 * records, as after any other error. Reads the whole file when somebody has touched or
 * replaced it since it was last known to be right; a file that has not been touched is
 * not read. */
static inline int qf_store_file_open(qf_store *store, struct qf_hash128 key,
                                     uint64_t size, int *fd)
{
    return store->ops->file_open == NULL ? -ENOENT
                                         : store->ops->file_open(store, key, size, fd);
}

/* XXH3-64 of all bytes of the file, from when it was written. -ENOENT: there is none.
 */
static inline int qf_store_file_digest(qf_store *store, struct qf_hash128 key,
                                       uint64_t *digest)
{
    return store->ops->file_digest == NULL
               ? -ENOENT
               : store->ops->file_digest(store, key, digest);
}

/* Begins to write it: exactly `size` bytes will be appended. Makes room, at the cost of
 * files used longer ago; a cache full of values has none to give. -ENOTSUP: this store
 * keeps no files; -EEXIST: it is there, or somebody (in any process) is writing it;
 * -ENOSPC: the disk is full, or it is larger than the store would give it (half its
 * limit, for the records it is made of lie in the store too). */
static inline int qf_store_file_begin(qf_store *store, struct qf_hash128 key,
                                      uint64_t origin, uint64_t size,
                                      qf_store_draft **out)
{
    return store->ops->file_begin == NULL
               ? -ENOTSUP
               : store->ops->file_begin(store, key, origin, size, out);
}

/* After an error (-ENOSPC: the disk is full) nothing but _abort is of use. */
static inline int qf_store_file_append(qf_store *store, qf_store_draft *draft,
                                       const void *data, size_t size)
{
    return store->ops->file_append(draft, data, size);
}

/* Makes it last (fsync) and visible, then drops the records whose bytes it holds, as
 * far as they are there. Frees the draft, also on failure (then nothing has changed).
 */
static inline int qf_store_file_commit(qf_store *store, qf_store_draft *draft,
                                       const struct qf_hash128 *records,
                                       size_t record_count)
{
    return store->ops->file_commit(draft, records, record_count);
}

static inline void qf_store_file_abort(qf_store *store, qf_store_draft *draft)
{
    store->ops->file_abort(draft);
}

static inline void qf_store_stats(qf_store *store, struct qf_store_stats *out)
{
    store->ops->stats(store, out);
}

/* Other limits from now on (bytes_limit 0: the one that it was opened with). What is
 * over them goes with the next values; a limit above the one that the store was opened
 * with is taken by the next open only. */
static inline void qf_store_set_limits(qf_store *store, uint64_t bytes_limit,
                                       uint64_t min_free)
{
    if (store->ops->set_limits != NULL)
        store->ops->set_limits(store, bytes_limit, min_free);
}

/* Flushes first. NULL is allowed. */
void qf_store_close(qf_store *store);

/* In memory, least recently used goes first. bytes_limit 0: keeps nothing. */
int qf_store_mem_open(uint64_t bytes_limit, qf_store **out) QF_MUST_CHECK;

struct qf_store_lmdb_options {
    const char *dir;      /* made if it is missing (mode 0700) */
    uint64_t bytes_limit; /* of data.mdb and the flat files together; 0: a tenth of the
                           * filesystem */
    uint64_t min_free; /* bytes of the filesystem that the cache leaves free; it takes
                        * less than its limit for that */
    bool existing; /* only one that is there, with the limit it had last, and as it is:
                    * nothing is made, set aside or evicted */
    bool compact;  /* with `existing`: makes data.mdb as small as it can be, which may
                    * take minutes and, for that time, the room of what it holds.
                    * -EBUSY while others use it */
};

/* In LMDB. Open after fork, once a directory and process. A data.mdb that is damaged or
 * of another version is moved aside (its flat files go) and said so in the log. Fails,
 * with err, when the directory cannot be used at all (read-only, a network filesystem,
 * no space): the caller goes on with another store. With `existing` also when there is
 * no cache, or it is damaged or of another version. */
int qf_store_lmdb_open(const struct qf_store_lmdb_options *options, qf_store **out,
                       struct qf_err *err) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
