/* SPDX-License-Identifier: Apache-2.0 */
/* Looking after a cache in LMDB: what is in it, from where, is it whole, away with it.
 * All of it may be done while other processes use the same directory: reads and writes
 * go in short steps, so what is told may be a little old. `store` is one of
 * qf_store_lmdb_open, as a rule with `existing`. */
#ifndef QF_CACHE_ADMIN_H
#define QF_CACHE_ADMIN_H

#include "cache/store.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is kept of one model under one view. */
struct qf_admin_origin {
    uint64_t id; /* 0: all that has no known origin, with "" as names */
    bool pinned;
    char *view;
    char *store;
    char *model; /* directory in the store, "" the store itself */
    uint64_t values;
    uint64_t bytes; /* of them */
    uint64_t files; /* flat files */
    uint64_t file_bytes;
    uint64_t hits;   /* of what is there now; a file's: how often it was opened */
    uint64_t last_s; /* of the last use, wall clock; 0: never */
};

/* Only origins of which something is kept, and pinned ones. */
struct qf_admin_list {
    size_t count;
    struct qf_admin_origin *origins; /* by store, model, view */
};

/* -EIO: LMDB failed, and said so in the log; -ENOMEM. */
int qf_admin_list(qf_store *store, struct qf_admin_list *out) QF_MUST_CHECK;
void qf_admin_list_fini(struct qf_admin_list *list);

struct qf_admin_which {
    bool all;                /* whatever its origin, pinned or not; else: */
    const uint64_t *origins; /* ids */
    size_t origin_count;
    uint64_t before_s; /* last used before that; 0: whenever */
};

struct qf_admin_removed {
    uint64_t values;
    uint64_t bytes;
    uint64_t files;
    uint64_t file_bytes;
};

/* Removes it, pinned or not, and forgets origins of which nothing is left (that takes
 * one write transaction as long as a walk over all uses). With `dry_run` only counts.
 * data.mdb gets no smaller by it; see docs/CACHE.md. */
int qf_admin_remove(qf_store *store, const struct qf_admin_which *which, bool dry_run,
                    struct qf_admin_removed *out) QF_MUST_CHECK;

struct qf_admin_verified {
    uint64_t values;
    uint64_t bytes; /* read so far, files included */
    uint64_t bytes_total;
    uint64_t files;
    uint64_t damaged_values; /* removed, unless their pages are damaged too */
    uint64_t damaged_files;  /* removed */
};

struct qf_admin_damage {
    struct qf_hash128 key;
    bool is_file;
    uint64_t origin;
    uint64_t size;
};

struct qf_admin_watch {
    void (*progress)(void *arg, const struct qf_admin_verified *so_far); /* or NULL */
    void (*damaged)(void *arg, const struct qf_admin_damage *damage);    /* or NULL */
    void *arg;
};

/* Reads every value and flat file and compares it with its checksum. What is not what
 * was written is removed. Uses do not count. */
int qf_admin_verify(qf_store *store, const struct qf_admin_watch *watch,
                    struct qf_admin_verified *out) QF_MUST_CHECK;

/* -ENOENT: no such origin. */
int qf_admin_pin(qf_store *store, uint64_t origin, bool pinned) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
