/* SPDX-License-Identifier: Apache-2.0 */
/* The directory of an LMDB cache: who may use it, and what to do with a data.mdb that
 * is not what it should be. Knows nothing of LMDB but the names of its files. */
#ifndef QF_CACHE_LMDB_DIR_H
#define QF_CACHE_LMDB_DIR_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_lmdb_dir {
    char *path; /* owned */
    int fd;
    int lock_fd;
    bool existing; /* by qf_lmdb_dir_join */
    bool alone;    /* no other process uses the cache; until qf_lmdb_dir_share */
    dev_t dev;
    ino_t ino;
    uint64_t bytes_limit; /* asked for or, when not alone, what the others use */
};

/* Makes the directory (and those above it) if need be and takes its lock: alone, or
 * together with processes that have it open already. Whoever is alone has data.mdb
 * checked and, when it is damaged, of another version or larger than the limit, set
 * aside. bytes_limit 0: a tenth of the filesystem; rounded to what a map can be.
 * -EBUSY: open in this process. On failure *dir needs no close. */
int qf_lmdb_dir_open(struct qf_lmdb_dir *dir, const char *path, uint64_t bytes_limit,
                     struct qf_err *err) QF_MUST_CHECK;

/* The same for a cache that is there, which it changes in no way: -ENOENT when there is
 * none, -EBADMSG (…) with the sentence when it is damaged. The limit is the one that
 * its users agreed on last. */
int qf_lmdb_dir_join(struct qf_lmdb_dir *dir, const char *path,
                     struct qf_err *err) QF_MUST_CHECK;

/* Moves data.mdb to data.mdb.damaged-<n> and says so in the log; only the newest such
 * file is kept. Only when alone. */
int qf_lmdb_dir_set_aside(struct qf_lmdb_dir *dir, const char *reason,
                          struct qf_err *err) QF_MUST_CHECK;

/* Lets other processes in, now that data_fd is the data.mdb that all shall use; or,
 * when not alone, makes sure that it is the one that the others use. */
int qf_lmdb_dir_share(struct qf_lmdb_dir *dir, int data_fd,
                      struct qf_err *err) QF_MUST_CHECK;

/* Leaves a mark that makes the next process that is alone set data.mdb aside. */
void qf_lmdb_dir_suspect(const struct qf_lmdb_dir *dir);

void qf_lmdb_dir_close(struct qf_lmdb_dir *dir);

#ifdef __cplusplus
}
#endif
#endif
