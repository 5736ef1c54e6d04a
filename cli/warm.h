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
#include "cli/stack.h"
#include "view/names.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_WARM_JOBS_DEFAULT 4u
#define QF_WARM_JOBS_MAX     256u

/* Sums since the server was started. */
struct qf_warm_counts {
    uint64_t chunks_encoded;
    uint64_t cache_hits; /* records found in the cache */
    uint64_t evictions;
    uint64_t dropped; /* records that the cache did not keep */
};

/* A shard that is open. */
struct qf_warm_file {
    uint64_t size;
    bool sealed; /* the cache has it whole: there is nothing to read */
    int fd;
    uint64_t id;
    struct qf_file *file;
};

/* Where shards are read: through a mount, or from a stack of our own. Calls are
 * thread-safe. */
struct qf_warm_source {
    const struct qf_warm_source_ops *ops;
    const struct qf_stack *stack; /* of ours; NULL: */
    const char *top;              /* of a mount */
};

struct qf_warm_source_ops {
    /* Calls `each` for every entry until it returns non-zero, which is returned.
     * -ENOTDIR for a file. */
    int (*list)(const struct qf_warm_source *source, const char *path,
                int (*each)(void *arg, const char *name, bool is_dir), void *arg);
    /* -ENODATA: no view shard, so nothing of it is encoded. */
    int (*open)(const struct qf_warm_source *source, const char *path,
                struct qf_warm_file *out);
    /* Bytes read, 0 at the end. */
    ssize_t (*read)(struct qf_warm_file *file, void *buf, size_t size, uint64_t off);
    void (*close)(const struct qf_warm_source *source, struct qf_warm_file *file);
    /* Waits until what was encoded is in the cache. */
    void (*settle)(const struct qf_warm_source *source);
    void (*counts)(const struct qf_warm_source *source, struct qf_warm_counts *out);
};

extern const struct qf_warm_source_ops qf_warm_mount_ops;
extern const struct qf_warm_source_ops qf_warm_stack_ops;

struct qf_warm_shard {
    char *path; /* for the source; owned */
    uint64_t size;
    bool sealed;
    bool failed;
};

/* The shards of one directory in one view. */
struct qf_warm_model {
    const struct qf_warm_source *source;
    char *path; /* as it is told; owned */
    char view[QF_VIEW_NAME_SIZE];
    size_t shard_count;
    struct qf_warm_shard *shards;
    uint64_t bytes; /* read, or found sealed */
    struct qf_warm_counts counts;
    double seconds;
};

struct qf_warm_trouble {
    char *path; /* owned */
    int rc;
};

struct qf_warm {
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
int qf_warm_add(struct qf_warm *warm, const struct qf_warm_source *source,
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
