/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the LMDB store share; for cache/ only.
 *
 * data.mdb holds two databases, "values" (key -> record.h) and "uses" (key -> struct
 * qf_lmdb_use), and in the main one the records "quantfs" (whose file this is) and
 * "clock" (the logical time of the last use). Nothing about them is kept in memory from
 * one transaction to the next, so several processes can share a cache. */
#ifndef QF_CACHE_LMDB_STORE_H
#define QF_CACHE_LMDB_STORE_H

#include <lmdb.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"
#include "cache/lmdb_dir.h"
#include "cache/recency.h"
#include "cache/store.h"
#include "cache/verified.h"

struct qf_lmdb_use {
    uint64_t last_use; /* logical clock */
    uint64_t size;     /* of the value, without its head */
};

/* A read transaction that is renewed for each get. */
struct qf_lmdb_slot {
    _Alignas(64) atomic_bool busy;
    MDB_txn *txn; /* NULL until first used */
};

struct qf_lmdb_writer;

typedef struct qf_lmdb_store {
    qf_store base;
    struct qf_lmdb_dir dir;
    MDB_env *env;
    MDB_dbi main;
    MDB_dbi values;
    MDB_dbi uses;
    size_t page_size;
    const char *map;  /* where LMDB has mapped data.mdb */
    atomic_bool down; /* LMDB failed: every get a miss, every put dropped */
    qf_verified *verified;
    qf_recency *recency;
    struct qf_lmdb_writer *writer;
    _Atomic uint64_t hits;
    _Atomic uint64_t misses;
    _Atomic uint64_t puts;
    _Atomic uint64_t puts_dropped;
    _Atomic uint64_t evictions;
    _Atomic uint64_t damaged;
    struct qf_lmdb_slot slots[QF_CACHE_HOLDS_MAX];
} qf_lmdb_store;

static inline MDB_val qf_lmdb_key(const struct qf_hash128 *key)
{
    return (MDB_val){.mv_size = sizeof *key, .mv_data = (void *)(uintptr_t)key};
}

/* The least size of a stored value: it fills one page of its own. */
static inline size_t qf_lmdb_size_min(const qf_lmdb_store *store)
{
    return store->page_size - 16;
}

/* Pages that a stored value takes. */
static inline uint64_t qf_lmdb_pages(const qf_lmdb_store *store, size_t stored_size)
{
    return (stored_size + 15) / store->page_size + 1;
}

/* ---- lmdb_env.c ---- */

/* Opens the environment in store->dir. A file that LMDB or we cannot use is -EBADMSG.
 */
int qf_lmdb_env_open(qf_lmdb_store *store, struct qf_err *err) QF_MUST_CHECK;
void qf_lmdb_env_close(qf_lmdb_store *store);

/* Runs fn; an assertion that fails within LMDB ends it with MDB_CORRUPTED instead of
 * ending the process. */
int qf_lmdb_guard(int (*fn)(void *arg), void *arg) QF_MUST_CHECK;

/* Takes the store down after an error from which it does not recover. */
void qf_lmdb_fail(qf_lmdb_store *store, int rc);

/* The logical clock. */
int qf_lmdb_clock_get(qf_lmdb_store *store, MDB_txn *txn,
                      uint64_t *clock) QF_MUST_CHECK;
int qf_lmdb_clock_put(qf_lmdb_store *store, MDB_txn *txn, uint64_t clock) QF_MUST_CHECK;

/* Whether, within a short wait, no reader (of any process) looks at a snapshot older
 * than the newest one: only then can pages that are freed come back. */
bool qf_lmdb_readers_pass(qf_lmdb_store *store);

/* Pages of data.mdb that are in use in this transaction. */
int qf_lmdb_used_pages(qf_lmdb_store *store, MDB_txn *txn, uint64_t *pages,
                       uint64_t *use_pages) QF_MUST_CHECK;

/* ---- lmdb_room.c ---- */

struct qf_lmdb_candidate {
    struct qf_hash128 key;
    uint64_t last_use;
};

struct qf_lmdb_room {
    uint64_t pages_limit; /* of the map */
    uint64_t pages_cap;   /* less than that while the disk is full */
    int64_t cap_until_ms;
    uint64_t slack; /* pages kept free: freed ones come back two transactions later */
    uint64_t slack_min;
    struct qf_lmdb_candidate *candidates; /* least recently used first */
    size_t candidate_count;
    size_t candidate_next;
};

int qf_lmdb_room_init(struct qf_lmdb_room *room,
                      const qf_lmdb_store *store) QF_MUST_CHECK;
void qf_lmdb_room_fini(struct qf_lmdb_room *room);

/* Evicts the least recently used until `need` pages can come. Having nothing more to
 * evict is no error. Adds to *evicted and *clock. */
int qf_lmdb_room_make(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn,
                      uint64_t need, uint64_t *clock, uint64_t *evicted) QF_MUST_CHECK;
/* Evicts `count` of them, whether there is room or not. */
int qf_lmdb_room_evict(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn,
                       uint64_t count, uint64_t *clock,
                       uint64_t *evicted) QF_MUST_CHECK;
/* A transaction failed for want of room: keep more pages free from now on. */
void qf_lmdb_room_failed(struct qf_lmdb_room *room, const qf_lmdb_store *store,
                         uint64_t need, bool disk_full, int64_t now_ms);
/* A transaction succeeded: keep fewer. */
void qf_lmdb_room_succeeded(struct qf_lmdb_room *room, int64_t now_ms);

/* Whether the head of the value's pages is whole, without which LMDB must not free
 * them. */
bool qf_lmdb_value_freeable(const qf_lmdb_store *store, const MDB_val *value);
/* Removes a value and its use. EUCLEAN: it cannot be removed; MDB_NOTFOUND. */
int qf_lmdb_remove(qf_lmdb_store *store, MDB_txn *txn,
                   const struct qf_hash128 *key) QF_MUST_CHECK;
/* Gives uses to values that lack one. */
int qf_lmdb_reconcile(qf_lmdb_store *store) QF_MUST_CHECK;

/* ---- lmdb_writer.c ---- */

int qf_lmdb_writer_start(qf_lmdb_store *store) QF_MUST_CHECK;
/* Writes what is queued and ends the thread. */
void qf_lmdb_writer_stop(qf_lmdb_store *store);
void qf_lmdb_writer_put(qf_lmdb_store *store, struct qf_hash128 key, const void *data,
                        size_t size, void (*done)(void *arg), void *arg);
/* Waits until what was put before, and the uses noted before, are written or dropped.
 */
void qf_lmdb_writer_flush(qf_lmdb_store *store);
/* Asks for a damaged value to be removed. */
void qf_lmdb_writer_remove(qf_lmdb_store *store, struct qf_hash128 key);
/* There are uses to be written, some time soon. */
void qf_lmdb_writer_nudge(qf_lmdb_store *store);

#endif
