/* SPDX-License-Identifier: Apache-2.0 */
/* A directory of a view written as plain files. What is to be written is planned whole
 * first (export_plan.c, export_reshard.c), then written in segments by several threads
 * (export_write.c); a journal in the target says what was written (export_state.c).
 * Private to cli/. */
#ifndef QF_CLI_EXPORT_H
#define QF_CLI_EXPORT_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/hash.h"
#include "cli/progress.h"
#include "cli/source.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_EXPORT_JOBS_DEFAULT 4u
#define QF_EXPORT_JOBS_MAX     256u
#define QF_EXPORT_SEGMENT_SIZE (UINT64_C(16) << 20)
/* The journal; names that begin with it and a '.' are drafts. */
#define QF_EXPORT_JOURNAL ".quantfs-export"

/* A file of the view. */
struct qf_export_source {
    char *path; /* relative to the exported directory; owned */
    uint64_t size;
    struct stat st;
    bool shard;
    struct qf_hash128 key; /* decides its bytes */
    bool taken;            /* goes into other files: is not written by itself */
    bool whole;            /* not to be cut */
};

/* Bytes of a new file: of a source, or of `text`. */
struct qf_export_piece {
    uint64_t off; /* in the new file */
    uint64_t size;
    size_t source; /* index; SIZE_MAX: text */
    uint64_t source_off;
    const char *text; /* borrowed from the file's `texts` */
};

struct qf_export_segment {
    uint64_t hash; /* of the journal, or of what was produced */
    bool known;
};

struct qf_export_file {
    char *path; /* relative; owned */
    uint64_t size;
    mode_t mode;
    struct timespec mtime;
    size_t piece_count;
    struct qf_export_piece *pieces; /* by rising off; owned */
    char *text;                     /* owned; NULL: none of it is made here */
    struct qf_hash128 identity;     /* of everything that decides its bytes */
    size_t segment_count;           /* at least 1 */
    struct qf_export_segment *segments;
    size_t segments_left; /* under the export's lock, as is fd */
    int fd;               /* of the draft; -1: not open (yet) */
};

struct qf_export {
    const struct qf_views_source *source;
    const char *top;     /* the exported directory, as the source names it */
    const char *view;    /* for the journal and the report, as is … */
    const char *origin;  /* … the directory in the store, absolute */
    const char *dir;     /* target */
    uint64_t shard_size; /* 0: shards as the view has them */
    unsigned jobs;
    const atomic_int *stop; /* not 0: end as soon as may be */
    size_t source_count, dir_count, file_count;
    struct qf_export_source *sources;
    char **dirs; /* relative, parents first; owned */
    struct qf_export_file *files;
    mode_t umask;
    bool made_dir; /* the target was made by us */
    int dir_fd, journal_fd;
    struct qf_progress progress;
    pthread_mutex_t lock; /* of what follows */
    size_t next_file, next_segment;
    int rc; /* of the first failure; ends the work */
    struct qf_err err;
    _Atomic uint64_t bytes; /* written or found written */
    _Atomic uint64_t bytes_kept;
};

void qf_export_init(struct qf_export *export);
void qf_export_fini(struct qf_export *export);

/* Looks at the source and decides what is to be written. */
int qf_export_plan(struct qf_export *export, struct qf_err *err) QF_MUST_CHECK;
/* Adds a file that consists of nothing so far; NULL without memory. path: taken. */
struct qf_export_file *qf_export_add_file(struct qf_export *export, char *path,
                                          const struct qf_export_source *like);
/* Appends a piece to it. -ENOMEM. */
int qf_export_add_piece(struct qf_export_file *file,
                        const struct qf_export_piece *piece) QF_MUST_CHECK;
/* Replaces the weight sets that the view changes by shards of at most shard_size. */
int qf_export_reshard(struct qf_export *export, struct qf_err *err) QF_MUST_CHECK;
/* Opens a file of the source and makes sure that it is still what was planned with:
 * -ESTALE. */
int qf_export_open_source(const struct qf_export *export, size_t index,
                          struct qf_source_file *out) QF_MUST_CHECK;

/* Makes or opens the target, refuses one that is none of ours, and reads the journal:
 * segments become known, drafts of another plan go. */
int qf_export_state_open(struct qf_export *export, struct qf_err *err) QF_MUST_CHECK;
/* What was written: a segment; a file, under its name. */
void qf_export_state_segment(struct qf_export *export,
                             const struct qf_export_file *file, size_t segment);
int qf_export_state_file(struct qf_export *export,
                         const struct qf_export_file *file) QF_MUST_CHECK;
/* All is done: takes the journal away. */
int qf_export_state_end(struct qf_export *export, struct qf_err *err) QF_MUST_CHECK;
struct qf_export_draft {
    char name[64];
};
/* The name of a file's draft in the target. */
struct qf_export_draft qf_export_draft(const struct qf_export_file *file);

/* Writes everything. progress_to: NULL for none. The first error ends it; -EINTR when
 * it was stopped. */
int qf_export_write(struct qf_export *export, FILE *progress_to,
                    struct qf_err *err) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
