/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the LMDB store share; for cache/ only.
 *
 * data.mdb holds four databases, "values" (key -> record.h), "files" (key -> struct
 * qf_lmdb_file), "uses" (key -> struct qf_lmdb_use, of values and files) and "origins"
 * (id -> flags, view, store and model), and in the main one the records "quantfs"
 * (whose file this is), "clock" (the logical time of the last use) and "file bytes"
 * (the sum of the sizes in "files"). Nothing about them is kept in memory from one
 * transaction to the next, so several processes can share a cache. */
#ifndef QF_CACHE_LMDB_STORE_H
#define QF_CACHE_LMDB_STORE_H

#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/limits.h"
#include "cache/lmdb_dir.h"
#include "cache/recency.h"
#include "cache/store.h"
#include "cache/verified.h"

struct qf_lmdb_use {
    uint64_t last_use; /* logical clock */
    uint64_t size;     /* of the value, without its head, or of the file */
    uint64_t origin;   /* 0: not known */
    uint64_t last_s;   /* of the last use, wall clock */
    uint64_t hits;
};

/* As read from "origins"; the texts are borrowed. */
struct qf_lmdb_origin {
    uint64_t id;
    bool pinned;
    const char *view;
    const char *store;
    const char *model;
};

enum qf_lmdb_file_state {
    QF_LMDB_FILE_DRAFT = 1,  /* being written, or left over by a writer that died */
    QF_LMDB_FILE_SEALED = 2, /* whole, and lasting */
};

/* The record of a flat file, as it lies in data.mdb. */
struct qf_lmdb_file {
    uint64_t magic;
    uint32_t version;
    uint32_t state;
    uint64_t size;   /* counted against the limit from the first moment */
    uint64_t digest; /* XXH3-64 of all its bytes; 0 of a draft */
    uint64_t dev;    /* its identity: of a draft dev and ino alone */
    uint64_t ino;
    uint64_t mtime_ns;
    uint64_t ctime_ns;
    uint64_t check; /* XXH3-64 of the key and the above */
};

/* A read transaction that is renewed for each get. */
struct qf_lmdb_slot {
    _Alignas(64) atomic_bool busy;
    MDB_txn *txn; /* NULL until first used */
};

struct qf_lmdb_writer;
struct qf_lmdb_names;

typedef struct qf_lmdb_store {
    qf_store base;
    struct qf_lmdb_dir dir;
    MDB_env *env;
    MDB_dbi main;
    MDB_dbi values;
    MDB_dbi uses;
    MDB_dbi files;
    MDB_dbi origins;
    bool keeps_files;
    _Atomic uint64_t bytes_limit; /* at most dir.bytes_limit */
    _Atomic uint64_t min_free;    /* bytes of the filesystem */
    int sealed_fd;                /* the directory of flat files; -1: keeps none */
    pthread_mutex_t verify_lock;
    _Atomic unsigned drafts; /* begun, and neither committed nor aborted */
    size_t page_size;
    const char *map;         /* where LMDB has mapped data.mdb */
    void *lock_page;         /* of lock.mdb, for qf_lmdb_kick; NULL: none */
    atomic_size_t looked_at; /* bytes of it, since qf_lmdb_trim_map took it back */
    atomic_bool down;        /* LMDB failed: every get a miss, every put dropped */
    qf_verified *verified;
    qf_recency *recency;
    struct qf_lmdb_names *names; /* of origins, which the writer puts down */
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

/* ---- store_lmdb.c ---- */

/* A read transaction with a fresh snapshot; NULL when there is none to be had. Keep it
 * short. */
struct qf_lmdb_slot *qf_lmdb_read_begin(qf_lmdb_store *store);
void qf_lmdb_read_end(struct qf_lmdb_slot *slot);
/* Whether the value, which lies in the map, is what was written by that key. */
bool qf_lmdb_value_whole(const qf_lmdb_store *store, const struct qf_hash128 *key,
                         const MDB_val *val);

/* ---- lmdb_env.c ---- */

/* Opens the environment in store->dir. A file that LMDB or we cannot use is -EBADMSG.
 */
int qf_lmdb_env_open(qf_lmdb_store *store, struct qf_err *err) QF_MUST_CHECK;
void qf_lmdb_env_close(qf_lmdb_store *store);

/* Runs fn; an assertion that fails within LMDB ends it with MDB_CORRUPTED instead of
 * ending the process. */
int qf_lmdb_guard(int (*fn)(void *arg), void *arg) QF_MUST_CHECK;

/* Wakes whoever waits for LMDB's locks, in any process. They are robust mutexes: when a
 * waiter is killed between being woken and taking the lock, and another takes it
 * meanwhile, those behind him sleep on though it is free. Where in lock.mdb a lock lies
 * is LMDB's affair, so every word of the page is tried; a wake-up too many is harmless.
 */
void qf_lmdb_kick(const qf_lmdb_store *store);
/* `size` bytes of the map were looked at or written to the file. */
void qf_lmdb_trim_map(qf_lmdb_store *store, size_t size);

/* Takes the store down after an error from which it does not recover. */
void qf_lmdb_fail(qf_lmdb_store *store, int rc);

/* The logical clock. */
int qf_lmdb_clock_get(qf_lmdb_store *store, MDB_txn *txn,
                      uint64_t *clock) QF_MUST_CHECK;
int qf_lmdb_clock_put(qf_lmdb_store *store, MDB_txn *txn, uint64_t clock) QF_MUST_CHECK;
/* The bytes of all files, drafts included. 0 in a store that keeps none. */
int qf_lmdb_file_bytes_get(qf_lmdb_store *store, MDB_txn *txn,
                           uint64_t *bytes) QF_MUST_CHECK;
int qf_lmdb_file_bytes_put(qf_lmdb_store *store, MDB_txn *txn,
                           uint64_t bytes) QF_MUST_CHECK;

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
    uint64_t *pinned; /* ids of origins whose values and files stay, in order */
    size_t pinned_count;
    size_t pinned_capacity;
    bool pinned_met;      /* by the walk for candidates */
    bool values_only;     /* files are no candidates */
    bool full;            /* what is left to evict is pinned */
    uint64_t bytes_limit; /* the limit, or less while the filesystem is short of room */
    int64_t short_until_ms; /* no file is evicted for that again before */
    uint64_t file_bytes;    /* as of this transaction */
    uint64_t high_pages;    /* of data.mdb when it began: it never shrinks */
};

int qf_lmdb_room_init(struct qf_lmdb_room *room,
                      const qf_lmdb_store *store) QF_MUST_CHECK;
void qf_lmdb_room_fini(struct qf_lmdb_room *room);

/* At the beginning of a transaction: reads file_bytes, high_pages and bytes_limit. */
int qf_lmdb_room_enter(struct qf_lmdb_room *room, qf_lmdb_store *store,
                       MDB_txn *txn) QF_MUST_CHECK;
/* data.mdb and the files together are past the limit. Pages of the trees may do that:
 * then files go, in the next transaction. */
bool qf_lmdb_room_over(const struct qf_lmdb_room *room, const qf_lmdb_store *store);
/* Whether a value just put, which is not in the map yet, lies within the limit less the
 * files: LMDB knows only the whole limit. */
bool qf_lmdb_room_covers(const struct qf_lmdb_room *room, const qf_lmdb_store *store,
                         const MDB_val *value);
/* Makes room for a file of that size by evicting files, for data.mdb cannot shrink.
 * When that would not be enough, nothing is evicted and *fits is false. */
int qf_lmdb_room_make_file(struct qf_lmdb_room *room, qf_lmdb_store *store,
                           MDB_txn *txn, uint64_t size, uint64_t *evicted,
                           bool *fits) QF_MUST_CHECK;
/* Evicts files while the sum is past the limit, pinned ones last; and, now and then and
 * but for pinned ones, while the filesystem is short of room. */
int qf_lmdb_room_trim(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn,
                      uint64_t *evicted) QF_MUST_CHECK;

/* Evicts the least recently used until `need` pages can come. Having nothing more to
 * evict is no error; room->full when that is for pins: then nothing is to be put, or
 * the pages would be used up that LMDB itself needs. Adds to *evicted and *clock. */
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

/* ---- lmdb_shrink.c ---- */

/* A file found no room for data.mdb's size: whoever is alone next makes it smaller. */
void qf_lmdb_shrink_mark(const qf_lmdb_store *store);
/* When alone, before the writer starts: makes data.mdb smaller where that is worth it
 * and takes no minutes (compact: in any case), by a copy; evicts values for that when
 * there is the mark. Fails only when the environment, which it opens anew, does. */
int qf_lmdb_shrink(qf_lmdb_store *store, bool compact,
                   struct qf_err *err) QF_MUST_CHECK;

/* ---- lmdb_sealed.c: records and names of files, in transactions ---- */

#define QF_LMDB_FILE_NAME_SIZE 40u /* of the longer one, with its NUL */

struct qf_lmdb_file_names {
    char sealed[QF_LMDB_FILE_NAME_SIZE];
    char part[QF_LMDB_FILE_NAME_SIZE];
};

void qf_lmdb_file_names(const struct qf_hash128 *key, struct qf_lmdb_file_names *out);
void qf_lmdb_file_identify(struct qf_lmdb_file *file, const struct stat *st);
bool qf_lmdb_file_is(const struct qf_lmdb_file *file, const struct stat *st);
/* Whether that name in sealed/ is a name of the open file. */
bool qf_lmdb_file_named(const qf_lmdb_store *store, int fd, const char *name);
/* Unlinks a file that no writer holds; 0 also when there is none. EBUSY. */
int qf_lmdb_file_unlink_dead(const qf_lmdb_store *store,
                             const char *name) QF_MUST_CHECK;

/* MDB_NOTFOUND: none, or the record is damaged. */
int qf_lmdb_file_get(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                     struct qf_lmdb_file *out) QF_MUST_CHECK;
/* Fills in magic, version and check. Does not change file_bytes. */
int qf_lmdb_file_put(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                     struct qf_lmdb_file *file) QF_MUST_CHECK;
/* Removes the record and its use, and takes it from room->file_bytes. */
int qf_lmdb_file_drop(qf_lmdb_store *store, struct qf_lmdb_room *room, MDB_txn *txn,
                      const struct qf_hash128 *key,
                      const struct qf_lmdb_file *file) QF_MUST_CHECK;
/* Unlinks and drops a sealed file. MDB_NOTFOUND: it is none. EUCLEAN: cannot be
 * unlinked. */
int qf_lmdb_file_evict(qf_lmdb_store *store, struct qf_lmdb_room *room, MDB_txn *txn,
                       const struct qf_hash128 *key, uint64_t *size) QF_MUST_CHECK;
/* Removes drafts whose writers died. */
int qf_lmdb_files_reap(qf_lmdb_store *store, struct qf_lmdb_room *room,
                       MDB_txn *txn) QF_MUST_CHECK;
/* Calls fn for every good record. */
int qf_lmdb_files_each(qf_lmdb_store *store, MDB_txn *txn,
                       int (*fn)(const struct qf_hash128 *key,
                                 const struct qf_lmdb_file *file, void *arg),
                       void *arg) QF_MUST_CHECK;
/* Opens sealed/. When alone makes it and "files" agree: what has no record or is not of
 * the recorded size goes, as do drafts. Without the directory the store keeps no files.
 */
int qf_lmdb_files_open(qf_lmdb_store *store) QF_MUST_CHECK;
void qf_lmdb_files_close(qf_lmdb_store *store);

/* ---- lmdb_files.c: the calls of store.h ---- */

int qf_lmdb_file_open(qf_store *base, struct qf_hash128 key, uint64_t size,
                      int *fd) QF_MUST_CHECK;
int qf_lmdb_file_digest(qf_store *base, struct qf_hash128 key,
                        uint64_t *out) QF_MUST_CHECK;
int qf_lmdb_file_begin(qf_store *base, struct qf_hash128 key, uint64_t origin,
                       uint64_t size, qf_store_draft **out) QF_MUST_CHECK;
int qf_lmdb_file_append(qf_store_draft *draft, const void *data,
                        size_t size) QF_MUST_CHECK;
int qf_lmdb_file_commit(qf_store_draft *draft, const struct qf_hash128 *records,
                        size_t record_count) QF_MUST_CHECK;
void qf_lmdb_file_abort(qf_store_draft *draft);
/* Reads the whole file. *damaged: it was not what was written, and is gone. -EMFILE and
 * the like, -ENOMEM. */
int qf_lmdb_file_verify(qf_lmdb_store *store, struct qf_hash128 key, uint64_t size,
                        bool *damaged) QF_MUST_CHECK;

/* ---- lmdb_origins.c ---- */

struct qf_lmdb_names *qf_lmdb_names_new(void); /* NULL without memory */
void qf_lmdb_names_free(struct qf_lmdb_names *names);
uint64_t qf_lmdb_origin(qf_store *base, const char *view, const char *store_path,
                        const char *model_path);
/* Puts down what qf_lmdb_origin knows by that id, unless it is there. */
int qf_lmdb_origin_write(qf_lmdb_store *store, MDB_txn *txn, uint64_t id) QF_MUST_CHECK;
/* False when no record of this id is there, or a damaged one. What it gives points into
 * the transaction. */
bool qf_lmdb_origin_get(qf_lmdb_store *store, MDB_txn *txn, uint64_t id,
                        struct qf_lmdb_origin *out);
bool qf_lmdb_origin_pinned(qf_lmdb_store *store, MDB_txn *txn, uint64_t id);
/* MDB_NOTFOUND */
int qf_lmdb_origin_pin(qf_lmdb_store *store, MDB_txn *txn, uint64_t id,
                       bool pinned) QF_MUST_CHECK;
/* Calls fn for every good one. */
int qf_lmdb_origins_each(qf_lmdb_store *store, MDB_txn *txn,
                         int (*fn)(const struct qf_lmdb_origin *origin, void *arg),
                         void *arg) QF_MUST_CHECK;

/* MDB_NOTFOUND: none, or it is not one. */
int qf_lmdb_use_get(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                    struct qf_lmdb_use *out) QF_MUST_CHECK;
int qf_lmdb_use_put(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                    const struct qf_lmdb_use *use) QF_MUST_CHECK;
/* A value or file that has just been put down: the record of its origin too. */
int qf_lmdb_use_begin(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                      uint64_t clock, uint64_t size, uint64_t origin) QF_MUST_CHECK;
uint64_t qf_lmdb_now_s(void);

/* ---- lmdb_walk.c ---- */

/* A walk over a database in steps. */
struct qf_lmdb_walk {
    qf_lmdb_store *store;
    MDB_dbi dbi;
    struct qf_hash128 from;
    bool more; /* true at first */
    /* In a read transaction; not 0: the step ends with this entry. */
    int (*each)(void *arg, MDB_txn *txn, const struct qf_hash128 *key,
                const MDB_val *val);
    void *arg;
    unsigned entries_max; /* of a step */
    MDB_txn *txn;         /* private */
};

/* One step. -EIO (then the store is down), -ENOMEM. */
int qf_lmdb_walk_on(struct qf_lmdb_walk *walk) QF_MUST_CHECK;

/* ---- lmdb_writer.c ---- */

/* What a job may use of the transaction in which it runs. */
struct qf_lmdb_work {
    qf_lmdb_store *store;
    struct qf_lmdb_room *room;
    MDB_txn *txn;
    uint64_t clock;
    uint64_t evicted;
};

int qf_lmdb_writer_start(qf_lmdb_store *store) QF_MUST_CHECK;
/* Writes what is queued and ends the thread. */
void qf_lmdb_writer_stop(qf_lmdb_store *store);
void qf_lmdb_writer_put(qf_lmdb_store *store, struct qf_hash128 key, uint64_t origin,
                        const void *data, size_t size, qf_store_done *done, void *arg);
/* Waits until what was put before, and the uses noted before, are written or dropped.
 */
void qf_lmdb_writer_flush(qf_lmdb_store *store);
/* Runs a job in a write transaction of the writer's thread, after what was put before,
 * with room for `need` pages, and waits for it. The job may run several times: a
 * transaction that finds no room is begun anew. The job returns 0 or LMDB's error; this
 * returns 0 when the transaction was committed, -ENOSPC, or -EIO when the store is
 * down. */
int qf_lmdb_writer_run(qf_lmdb_store *store,
                       int (*job)(struct qf_lmdb_work *work, void *arg), void *arg,
                       uint64_t need) QF_MUST_CHECK;
/* Asks for a damaged value to be removed. */
void qf_lmdb_writer_remove(qf_lmdb_store *store, struct qf_hash128 key);
/* There are uses to be written, some time soon. */
void qf_lmdb_writer_nudge(qf_lmdb_store *store);

#endif
