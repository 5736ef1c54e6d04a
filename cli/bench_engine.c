/* SPDX-License-Identifier: Apache-2.0 */
/* A view is read through a stack, as the daemon would serve it, into an empty cache;
 * then through another stack over the same cache: nothing is in its memory, all of it
 * comes from the disk's cache. */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/pool.h"
#include "cli/bench.h"
#include "cli/cli.h"
#include "cli/demo.h"
#include "cli/warm.h"

#define KERNEL_SIZE_MIN  ((uint64_t)8 << 20)
#define KERNEL_SIZE_MAX  ((uint64_t)512 << 20)
#define KERNEL_PASSES    5u
#define READ_SIZE        ((size_t)1 << 20)
#define SECONDS_MIN      1e-9 /* of a clock that did not move */
#define REMOVE_FILES_MAX 16

bool qf_bench_stopped(const struct qf_bench *bench)
{
    return atomic_load(bench->stop) != 0;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double rate_since(const struct qf_bench *bench, double start)
{
    double seconds = now() - start;
    return (double)bench->source_size / (seconds > 0 ? seconds : SECONDS_MIN);
}

/* ---- the directory ---- */

void qf_bench_path(const struct qf_bench *bench, const char *name, char out[PATH_MAX])
{
    snprintf(out, PATH_MAX, "%s/%s", bench->dir, name);
}

static int remove_one(const char *path, const struct stat *st, int type,
                      struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    remove(path);
    return 0;
}

void qf_bench_remove(const char *path)
{
    nftw(path, remove_one, REMOVE_FILES_MAX, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

/* In the directory itself, or in the nearest one above it that exists. */
static int make_below(struct qf_bench *bench, const char *dir)
{
    char base[PATH_MAX];
    if ((size_t)snprintf(base, sizeof base, "%s", dir) >= sizeof base)
        return -ENAMETOOLONG;
    while (access(base, F_OK) != 0 && errno == ENOENT) {
        char *slash = strrchr(base, '/');
        if (slash == NULL)
            strcpy(base, ".");
        else
            slash[slash == base] = '\0';
    }
    char real[PATH_MAX]; /* the daemon has another working directory */
    if (realpath(base, real) == NULL)
        return -errno;
    if ((size_t)snprintf(bench->dir, sizeof bench->dir, "%s/.quantfs-bench-XXXXXX",
                         real) >= sizeof bench->dir) {
        bench->dir[0] = '\0';
        return -ENAMETOOLONG;
    }
    if (mkdtemp(bench->dir) != NULL)
        return 0;
    int rc = -errno;
    bench->dir[0] = '\0';
    return rc;
}

int qf_bench_make_dir(struct qf_bench *bench, const char *wanted, struct qf_err *err)
{
    char cache[PATH_MAX];
    const char *dir = wanted;
    int rc = 0;
    if (wanted == NULL) {
        rc = qf_cli_cache_dir(cache, sizeof cache, err);
        dir = cache;
    }
    if (rc == 0)
        rc = make_below(bench, dir);
    if (rc != 0 && wanted == NULL) {
        const char *tmp = getenv("TMPDIR");
        dir = tmp != NULL && tmp[0] != '\0' ? tmp : "/tmp";
        rc = make_below(bench, dir);
    }
    return rc == 0 ? 0
                   : qf_err_set(err, rc,
                                "%.200s: cannot make a directory there: %s (--cache "
                                "DIR names another one)",
                                dir, strerror(-rc));
}

/* ---- kernels, and the source ---- */

static bool is_stopped(void *arg)
{
    return qf_bench_stopped(arg);
}

int qf_bench_run_kernels(struct qf_bench *bench, struct qf_err *err)
{
    uint64_t size = bench->size / 2;
    size = size < KERNEL_SIZE_MIN ? KERNEL_SIZE_MIN : size;
    size = size > KERNEL_SIZE_MAX ? KERNEL_SIZE_MAX : size;
    struct qf_measure_options options = {
        .size = (size_t)size,
        .passes = KERNEL_PASSES,
        .stop = is_stopped,
        .arg = bench,
    };
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        struct qf_bench_kernels *k = &bench->kernels[d];
        enum qf_dtype dtype = (enum qf_dtype)d;
        bench->stage(bench, "kernels", qf_dtype_name(dtype));
        int rc = qf_measure_kernels(&options, dtype, k->rows, &k->count);
        if (rc != 0)
            return qf_err_set(err, rc, "measuring the kernels: %s", strerror(-rc));
    }
    return 0;
}

/* The bytes of a file, read and thrown away. */
static int read_file(const struct qf_bench *bench, const char *path, char *buffer,
                     uint64_t *size, struct qf_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? 1 : -1;
    while (n > 0 && !qf_bench_stopped(bench)) {
        n = read(fd, buffer, READ_SIZE);
        *size += n > 0 ? (uint64_t)n : 0;
    }
    int rc = n < 0 ? qf_err_set(err, -errno, "%s: %s", path, strerror(errno)) : 0;
    if (fd >= 0)
        close(fd);
    return rc == 0 && qf_bench_stopped(bench) ? -EINTR : rc;
}

static int read_source(const struct qf_bench *bench, char *buffer, uint64_t *size,
                       struct qf_err *err)
{
    char dir_path[PATH_MAX];
    int rc = 0;
    *size = 0;
    qf_bench_path(bench, "store/model", dir_path);
    DIR *dir = opendir(dir_path);
    if (dir == NULL)
        return qf_err_set(err, -errno, "%s: %s", dir_path, strerror(errno));
    const struct dirent *d;
    while (rc == 0 && (d = readdir(dir)) != NULL) {
        const char *dot = strrchr(d->d_name, '.');
        if (dot == NULL || strcmp(dot, ".safetensors") != 0)
            continue;
        char name[NAME_MAX + 16], path[PATH_MAX];
        snprintf(name, sizeof name, "store/model/%s", d->d_name);
        qf_bench_path(bench, name, path);
        rc = read_file(bench, path, buffer, size, err);
    }
    closedir(dir);
    return rc;
}

int qf_bench_write_model(struct qf_bench *bench, struct qf_err *err)
{
    char store[PATH_MAX], model[PATH_MAX];
    qf_bench_path(bench, "store", store);
    qf_bench_path(bench, "store/model", model);
    bench->stage(bench, "writing a model", "");
    if (mkdir(store, 0700) != 0)
        return qf_err_set(err, -errno, "%s: %s", store, strerror(errno));
    int rc = qf_demo_write_large(model, bench->size, bench->stop, err);
    char *buffer = rc == 0 ? malloc(READ_SIZE) : NULL;
    if (rc == 0 && buffer == NULL)
        rc = qf_err_set(err, -ENOMEM, "out of memory");
    bench->stage(bench, "plain read", "");
    double start = now();
    if (rc == 0)
        rc = read_source(bench, buffer, &bench->source_size, err);
    bench->source_rate = rate_since(bench, start);
    free(buffer);
    return rc;
}

/* ---- views ---- */

int qf_bench_read_view(const struct qf_bench *bench,
                       const struct qf_views_source *source, const char *view,
                       const char *path, struct qf_bench_pass *pass, struct qf_err *err)
{
    struct qf_warm warm;
    qf_warm_init(&warm, bench->jobs, bench->stop);
    warm.command = NULL;
    warm.copies = true;
    int rc = qf_warm_add(&warm, source, view, path, 0);
    double start = now();
    if (rc == 0)
        rc = qf_warm_run(&warm, NULL);
    pass->rate = rate_since(bench, start);
    for (size_t i = 0; i < warm.model_count; i++) {
        pass->chunks_encoded += warm.models[i].counts.chunks_encoded;
        pass->cache_hits += warm.models[i].counts.cache_hits;
    }
    if (rc != 0)
        qf_err_set(err, rc, "reading %s: %s", view, strerror(-rc));
    else if (qf_bench_stopped(bench))
        rc = -EINTR;
    else if (warm.trouble_count != 0)
        rc = qf_err_set(err, warm.troubles[0].rc, "%s: %s",
                        warm.troubles[0].path != NULL ? warm.troubles[0].path : path,
                        strerror(-warm.troubles[0].rc));
    else if (warm.model_count == 0)
        rc = qf_err_set(err, -ENODATA,
                        "view %s quantizes nothing of the model: leave -o policy= and "
                        "patterns out",
                        view);
    qf_warm_fini(&warm);
    return rc;
}

static int run_pass(const struct qf_bench *bench, const struct qf_mount_options *mount,
                    const char *store, struct qf_bench_row *row,
                    struct qf_bench_pass *pass, struct qf_err *err)
{
    static struct qf_stack stack; /* kilobytes */
    char path[QF_VIEW_NAME_SIZE + 16];
    const struct qf_stack_options options = {.mount = mount,
                                             .store_path = store,
                                             .cache_only = true};
    stack = (struct qf_stack){0};
    int rc = qf_stack_open(&stack, &options, err);
    if (rc == 0) {
        const struct qf_views_source source = {.ops = &qf_source_stack_ops,
                                               .stack = &stack};
        snprintf(row->device, sizeof row->device, "%s", qf_stack_backend_name(&stack));
        snprintf(path, sizeof path, "%s/model", stack.views[0].name);
        rc = qf_bench_read_view(bench, &source, row->view, path, pass, err);
    }
    qf_stack_close(&stack);
    return rc;
}

static int run_view(struct qf_bench *bench, const struct qf_view *view,
                    const char *device, struct qf_err *err)
{
    static struct qf_mount_options options; /* kilobytes */
    struct qf_bench_row *row = &bench->rows[bench->row_count];
    char store[PATH_MAX], cache[PATH_MAX];
    qf_bench_path(bench, "store", store);
    qf_bench_path(bench, "cache", cache);
    options = bench->options;
    options.views[0] = *view;
    options.view_count = 1;
    snprintf(options.device, sizeof options.device, "%s", device);
    snprintf(options.cache, sizeof options.cache, "%s", cache);
    snprintf(row->view, sizeof row->view, "%s", view->name);
    bench->stage(bench, "encoding", view->name);
    int rc = run_pass(bench, &options, store, row, &row->first, err);
    bench->stage(bench, "from the cache", view->name);
    if (rc == 0)
        rc = run_pass(bench, &options, store, row, &row->second, err);
    qf_bench_remove(cache); /* room for the next one */
    bench->row_count += rc == 0;
    return rc;
}

int qf_bench_run_engine(struct qf_bench *bench, struct qf_err *err)
{
    const char *devices[QF_BENCH_DEVICES_MAX] = {"cpu", bench->options.device};
    bool other = devices[1][0] != '\0' && strcmp(devices[1], "cpu") != 0;
    int rc = 0;
    for (size_t d = 0; d < (other ? 2u : 1u) && rc == 0; d++)
        for (size_t i = 0; i < bench->options.view_count && rc == 0; i++)
            rc = run_view(bench, &bench->options.views[i], devices[d], err);
    return rc;
}
