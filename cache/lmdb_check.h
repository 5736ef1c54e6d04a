/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a data.mdb at rest may be given to LMDB. */
#ifndef QF_CACHE_LMDB_CHECK_H
#define QF_CACHE_LMDB_CHECK_H

#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_lmdb_census {
    uint64_t bytes;   /* of the file by its newest meta page; the file may be shorter */
    uint64_t entries; /* of all named databases together */
};

/* Reads the meta pages, the free list and every tree page of the newest snapshot of the
 * open file `fd`, which nobody else may be writing; values are not read. census may be
 * NULL. An empty file is good. -EBADMSG for a damaged file, -ENOTSUP for another
 * version of the format, both with the sentence; -errno when it cannot be read. */
int qf_lmdb_check(int fd, struct qf_lmdb_census *census,
                  struct qf_err *err) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
