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
    uint64_t damaged; /* values whose checksum did not match: dropped, a miss */
    uint64_t entries;
    uint64_t bytes;       /* stored */
    uint64_t bytes_limit; /* of the store */
};

/* What a store implements (its struct begins with a pointer to this). */
struct qf_store_ops {
    const char *name;
    bool (*get)(qf_store *store, struct qf_hash128 key, struct qf_store_value *out);
    void (*release)(qf_store *store, struct qf_store_value *value);
    void (*put)(qf_store *store, struct qf_hash128 key, const void *data, size_t size,
                void (*done)(void *arg), void *arg);
    void (*flush)(qf_store *store);
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

/* Queues the value and returns at once; `data` is borrowed until done(arg) is called
 * (from any thread, also when the value was dropped, possibly before this returns). */
static inline void qf_store_put(qf_store *store, struct qf_hash128 key,
                                const void *data, size_t size, void (*done)(void *arg),
                                void *arg)
{
    store->ops->put(store, key, data, size, done, arg);
}

/* Waits until everything put so far is kept or dropped. */
static inline void qf_store_flush(qf_store *store)
{
    store->ops->flush(store);
}

static inline void qf_store_stats(qf_store *store, struct qf_store_stats *out)
{
    store->ops->stats(store, out);
}

/* Flushes first. NULL is allowed. */
void qf_store_close(qf_store *store);

/* In memory, least recently used goes first. bytes_limit 0: keeps nothing. */
int qf_store_mem_open(uint64_t bytes_limit, qf_store **out) QF_MUST_CHECK;

struct qf_store_lmdb_options {
    const char *dir;      /* made if it is missing (mode 0700) */
    uint64_t bytes_limit; /* of data.mdb; 0: a tenth of the filesystem */
};

/* In LMDB. Open after fork, once a directory and process. A data.mdb that is damaged or
 * of another version is moved aside and said so in the log. Fails, with err, when the
 * directory cannot be used at all (read-only, a network filesystem, no space): the
 * caller goes on with another store. */
int qf_store_lmdb_open(const struct qf_store_lmdb_options *options, qf_store **out,
                       struct qf_err *err) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
