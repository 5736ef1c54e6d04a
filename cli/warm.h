/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding ahead: every view shard below some paths is read once, by several readers,
 * and its bytes thrown away; whoever serves them puts them into the cache. Private to
 * cli/. */
#ifndef QF_CLI_WARM_H
#define QF_CLI_WARM_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "cli/progress.h"
#include "cli/source.h"
#include "view/names.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_WARM_JOBS_DEFAULT 4u
#define QF_WARM_JOBS_MAX     256u

struct qf_warm_shard {
    char *path; /* for the source; owned */
    uint64_t size;
    bool sealed;
    bool failed;
};

/* The shards of one directory in one view. */
struct qf_warm_model {
    const struct qf_views_source *source;
    char *path; /* as it is told; owned */
    char view[QF_VIEW_NAME_SIZE];
    size_t shard_count;
    struct qf_warm_shard *shards;
    uint64_t bytes; /* read, or found sealed */
    struct qf_source_counts counts;
    double seconds;
};

struct qf_warm_trouble {
    char *path; /* owned */
    int rc;
};

struct qf_warm {
    const char *command; /* in front of troubles; NULL: who runs it tells them */
    bool copies;         /* also what lies in memory is copied, as for a reader */
    unsigned jobs;
    const atomic_int *stop; /* not 0: end as soon as may be */
    struct qf_progress progress;
    size_t model_count;
    struct qf_warm_model *models;
    pthread_mutex_t lock; /* of what follows */
    size_t trouble_count, trouble_told;
    struct qf_warm_trouble *troubles;
    _Atomic uint64_t bytes;
};

void qf_warm_init(struct qf_warm *warm, unsigned jobs, const atomic_int *stop);
void qf_warm_fini(struct qf_warm *warm);

/* Adds what is at and below `path` of the source; tell_skip: so many bytes of a path
 * are not told. What cannot be read is a trouble, not an error. -ENOMEM. */
int qf_warm_add(struct qf_warm *warm, const struct qf_views_source *source,
                const char *view, const char *path, size_t tell_skip) QF_MUST_CHECK;
/* Notes that something failed. */
void qf_warm_fail(struct qf_warm *warm, const char *path, int rc);
/* Reads it all. progress_to: NULL for none. -ENOMEM, -EAGAIN (no threads). */
int qf_warm_run(struct qf_warm *warm, FILE *progress_to) QF_MUST_CHECK;
/* Prints the troubles that were not printed yet. */
void qf_warm_tell_troubles(struct qf_warm *warm);

/* The results, as JSON and as text. */
void qf_warm_json(const struct qf_warm *warm, double seconds, struct qf_buf *out);
void qf_warm_text(const struct qf_warm *warm, double seconds, struct qf_buf *out);

#ifdef __cplusplus
}
#endif
#endif
