/* SPDX-License-Identifier: Apache-2.0 */
/* Models that have been looked at, kept while they are what the store holds. */
#ifndef QF_FS_CATALOG_H
#define QF_FS_CATALOG_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "ckpt/srcfile.h"
#include "fs/views.h"
#include "view/variant.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_catalog qf_catalog;
/* One state of one model directory under one view. Immutable to its users, alive until
 * its last reference is dropped, also when the directory has changed meanwhile. */
typedef struct qf_snapshot qf_snapshot;

/* views is borrowed: what names of views stand for. memory_limit: bytes that models
 * nobody uses may keep (an estimate from their headers' sizes). */
int qf_catalog_new(const qf_root *root, struct qf_views *views, uint64_t memory_limit,
                   qf_catalog **out) QF_MUST_CHECK;
/* All references must have been dropped. NULL is allowed. */
void qf_catalog_free(qf_catalog *catalog);

/* The variant of directory `path` under the view of this name, as the store is now: it
 * is renewed when anything it was made of has changed (checked at most once in
 * QF_CATALOG_FRESH_MS; `force`: checked now), and when the policy has. *variant lives
 * as long as *snapshot. */
int qf_catalog_get(qf_catalog *catalog, const char *path, const char *view, bool force,
                   qf_snapshot **snapshot,
                   const struct qf_variant **variant) QF_MUST_CHECK;
void qf_snapshot_release(qf_snapshot *snapshot);

#define QF_CATALOG_FRESH_MS 1000

struct qf_catalog_stats {
    uint64_t models_loaded; /* directories read, again included */
    uint64_t header_bytes_read;
};
void qf_catalog_stats(const qf_catalog *catalog, struct qf_catalog_stats *out);

#ifdef __cplusplus
}
#endif
#endif
