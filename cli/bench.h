/* SPDX-License-Identifier: Apache-2.0 */
/* The machine's own numbers: kernels, the engine over a cache, a mount. All rates are
 * source bytes a second. Private to cli/. */
#ifndef QF_CLI_BENCH_H
#define QF_CLI_BENCH_H

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "cli/source.h"
#include "fs/opts.h"
#include "quant/measure.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_BENCH_DEVICES_MAX 2u
#define QF_BENCH_LISTS_MAX   16u
#define QF_BENCH_DIR_SIZE    (PATH_MAX - 512) /* room for the names below it */
#define QF_BENCH_ROWS_MAX    (QF_BENCH_DEVICES_MAX * QF_VIEWS_MAX)

struct qf_bench_pass {
    double rate;
    uint64_t chunks_encoded;
    uint64_t cache_hits;
};

/* A view read twice; the second time from the cache, by whoever has opened it anew. */
struct qf_bench_row {
    char device[32];
    char view[QF_VIEW_NAME_SIZE];
    struct qf_bench_pass first, second;
};

struct qf_bench_kernels {
    size_t count;
    struct qf_measure_row rows[QF_MEASURE_ROWS_MAX];
};

struct qf_bench {
    struct qf_mount_options options;
    const char *lists[QF_BENCH_LISTS_MAX]; /* of -o, as they came */
    size_t list_count;
    uint64_t size; /* asked for */
    unsigned jobs;
    const atomic_int *stop;
    void (*stage)(const struct qf_bench *bench, const char *what, const char *detail);
    bool shows_progress;

    char dir[QF_BENCH_DIR_SIZE]; /* ours, and all that is in it; "": not made yet */
    uint64_t source_size;
    double seconds;
    struct qf_bench_kernels kernels[QF_FLOAT_COUNT];
    double source_rate; /* of plain read(), out of the page cache */
    size_t row_count;
    struct qf_bench_row rows[QF_BENCH_ROWS_MAX];
    struct qf_bench_row mount;
    struct qf_err mount_problem; /* "": it was measured */
};

bool qf_bench_stopped(const struct qf_bench *bench);

/* A directory on the filesystem of the cache. wanted: where the user wants it; NULL:
 * where the default cache is or, if that may not be, $TMPDIR. */
int qf_bench_make_dir(struct qf_bench *bench, const char *wanted,
                      struct qf_err *err) QF_MUST_CHECK;
/* DIR/name. */
void qf_bench_path(const struct qf_bench *bench, const char *name, char out[PATH_MAX]);
/* A directory and all that is below it, on its filesystem. */
void qf_bench_remove(const char *path);

/* All -EINTR when stopped. */
int qf_bench_run_kernels(struct qf_bench *bench, struct qf_err *err) QF_MUST_CHECK;
int qf_bench_write_model(struct qf_bench *bench, struct qf_err *err) QF_MUST_CHECK;
int qf_bench_run_engine(struct qf_bench *bench, struct qf_err *err) QF_MUST_CHECK;
/* What cannot be mounted is a problem, not an error. */
int qf_bench_run_mount(struct qf_bench *bench, struct qf_err *err) QF_MUST_CHECK;

/* Reads the model of a view whole. */
int qf_bench_read_view(const struct qf_bench *bench,
                       const struct qf_views_source *source, const char *view,
                       const char *path, struct qf_bench_pass *pass,
                       struct qf_err *err) QF_MUST_CHECK;

void qf_bench_json(const struct qf_bench *bench, struct qf_buf *out);
void qf_bench_text(const struct qf_bench *bench, struct qf_buf *out);

#ifdef __cplusplus
}
#endif
#endif
