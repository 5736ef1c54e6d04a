/* SPDX-License-Identifier: Apache-2.0 */
/* Shards one after the other, within a shard the segments in the order of the file by
 * as many threads as there are: that keeps the engine's look-ahead on few streams. Each
 * segment has a place of its own for what it gives, and those are added up in order
 * when the shard is done. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/path.h"
#include "base/pool.h"
#include "compare/compare_internal.h"

#define TICK_MS 50

struct run {
    const struct qf_compare_options *options;
    const struct qf_compare_input *input;
    struct qf_compare *compare;
    qf_pool *pool;
    unsigned thread_count;
    struct worker *workers;
    _Atomic uint64_t done; /* bytes of the source */
};

/* One shard on its way. */
struct pass {
    struct run *run;
    struct qf_compare_shard shard;
    size_t segment_count;
    struct qf_segment *segments;
    struct qf_errors *errors; /* [segment][view] */
    uint64_t *differing;      /* [segment][pair] */
    _Atomic size_t next;
    _Atomic int rc;       /* the first error */
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t ended;
    unsigned running;    /* threads */
    unsigned open_files; /* the engine may be at work on them after they are closed */
};

struct worker {
    struct qf_task task; /* first */
    struct pass *pass;
    struct qf_segment_buffers buffers;
};

/* ---- the work of a thread ---- */

static void work(struct qf_task *task)
{
    struct worker *worker = (struct worker *)task;
    struct pass *pass = worker->pass;
    size_t views = pass->shard.view_count, pairs = pass->shard.pair_count;
    size_t i;
    while (atomic_load(&pass->rc) == 0 &&
           (i = atomic_fetch_add(&pass->next, 1)) < pass->segment_count) {
        const struct qf_segment *segment = &pass->segments[i];
        int rc =
            qf_segment_measure(&pass->shard, segment, &worker->buffers,
                               pass->errors + i * views, pass->differing + i * pairs);
        int none = 0;
        if (rc != 0)
            atomic_compare_exchange_strong(&pass->rc, &none, rc);
        const struct qf_tensor *src =
            pass->shard.layouts[0]->tensors[segment->tensor].src;
        atomic_fetch_add(&pass->run->done, segment->count * qf_dtype_size(src->dtype));
    }
    pthread_mutex_lock(&pass->lock);
    pass->running--;
    pthread_cond_signal(&pass->ended);
    pthread_mutex_unlock(&pass->lock);
}

static void wait_for_workers(struct pass *pass)
{
    const struct qf_compare_options *options = pass->run->options;
    pthread_mutex_lock(&pass->lock);
    while (pass->running > 0) {
        int64_t until_ms = qf_clock_ms() + TICK_MS;
        struct timespec until = {.tv_sec = until_ms / 1000,
                                 .tv_nsec = until_ms % 1000 * 1000000};
        pthread_cond_timedwait(&pass->ended, &pass->lock, &until);
        pthread_mutex_unlock(&pass->lock);
        if (options->progress != NULL)
            options->progress(options->progress_arg, atomic_load(&pass->run->done));
        pthread_mutex_lock(&pass->lock);
    }
    pthread_mutex_unlock(&pass->lock);
}

static int run_segments(struct pass *pass)
{
    struct run *run = pass->run;
    pass->running = run->thread_count;
    for (unsigned i = 0; i < run->thread_count; i++) {
        run->workers[i].task.run = work;
        run->workers[i].pass = pass;
        qf_pool_submit(run->pool, &run->workers[i].task);
    }
    wait_for_workers(pass);
    return atomic_load(&pass->rc);
}

/* ---- a shard ---- */

static uint64_t segments_of(const struct qf_compare_tensor *tensor)
{
    return tensor->compared ? qf_div_up(tensor->elem_count, QF_SEGMENT_ELEMS) : 0;
}

/* Appends the shard's tensors and cuts them into segments. */
static int plan_segments(struct pass *pass)
{
    struct qf_compare *compare = pass->run->compare;
    const struct qf_layout *layout = pass->shard.layouts[0];
    size_t first = compare->tensor_count;
    for (size_t i = 0; i < layout->tensor_count; i++) {
        int rc = qf_compare_add_tensor(compare, pass->shard.layouts, i);
        if (rc != 0)
            return rc;
        pass->segment_count += segments_of(&compare->tensors[first + i]);
    }
    size_t n = pass->segment_count + 1;
    pass->segments = calloc(n, sizeof *pass->segments);
    pass->errors = calloc(n * compare->view_count, sizeof *pass->errors);
    pass->differing = calloc(n * (compare->pair_count + 1), sizeof *pass->differing);
    if (pass->segments == NULL || pass->errors == NULL || pass->differing == NULL)
        return -ENOMEM;
    size_t k = 0;
    for (uint32_t i = 0; i < layout->tensor_count; i++) {
        uint64_t end = compare->tensors[first + i].elem_count;
        uint64_t count = segments_of(&compare->tensors[first + i]);
        for (uint64_t s = 0; s < count; s++) {
            uint64_t at = s * QF_SEGMENT_ELEMS;
            size_t size =
                end - at < QF_SEGMENT_ELEMS ? (size_t)(end - at) : QF_SEGMENT_ELEMS;
            pass->segments[k++] = (struct qf_segment){i, at, size};
        }
    }
    return 0;
}

/* Adds up what the segments have given, in their order. */
static void collect(struct pass *pass)
{
    struct qf_compare *compare = pass->run->compare;
    size_t first = compare->tensor_count - pass->shard.layouts[0]->tensor_count;
    for (size_t i = 0; i < pass->segment_count; i++) {
        struct qf_compare_tensor *tensor =
            &compare->tensors[first + pass->segments[i].tensor];
        for (size_t v = 0; v < compare->view_count; v++)
            qf_errors_add(&tensor->cells[v].errors,
                          &pass->errors[i * compare->view_count + v]);
        for (size_t p = 0; p < compare->pair_count; p++)
            if (tensor->differing[p] != QF_COMPARE_NO_CODES)
                tensor->differing[p] += pass->differing[i * compare->pair_count + p];
    }
}

/* Where the parts of each tensor begin in the view's file. */
static int find_parts(struct qf_compare_shard *shard, size_t view)
{
    const struct qf_layout *layout = shard->layouts[view];
    shard->part_off[view] =
        calloc(layout->tensor_count + 1, sizeof *shard->part_off[view]);
    if (shard->part_off[view] == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < layout->span_count; i++) {
        const struct qf_span *span = &layout->spans[i];
        if (span->kind == QF_SPAN_PART)
            shard->part_off[view][span->tensor][span->part] = span->off;
    }
    return 0;
}

static void file_released(void *arg)
{
    struct pass *pass = arg;
    pthread_mutex_lock(&pass->lock);
    pass->open_files--;
    pthread_cond_signal(&pass->ended);
    pthread_mutex_unlock(&pass->lock);
}

static int open_view(struct pass *pass, size_t view, struct qf_hash128 source)
{
    const struct run *run = pass->run;
    int rc = find_parts(&pass->shard, view);
    if (rc == 0)
        rc = qf_shard_file_open(run->options->engine, pass->shard.layouts[view],
                                &(struct qf_shard_source){pass->shard.src, source}, 1,
                                run->input->origins[view], file_released, pass,
                                &pass->shard.files[view]);
    pass->open_files += rc == 0;
    return rc;
}

static int open_views(struct pass *pass, const struct qf_model_shard *shard,
                      const char *real)
{
    struct qf_compare *compare = pass->run->compare;
    struct qf_hash128 header = shard->header->header_hash, id;
    if (!qf_source_id_of_blob(real, shard->ident.size, header, &id))
        id = qf_source_id(&shard->ident, header);
    pass->shard.view_count = compare->view_count;
    pass->shard.pair_count = compare->pair_count;
    pass->shard.pairs = compare->pairs;
    int rc = 0;
    for (size_t v = 0; v < compare->view_count && rc == 0; v++) {
        const struct qf_variant *variant = compare->views[v].variant;
        pass->shard.layouts[v] = qf_variant_find(variant, shard->name)->layout;
        rc = open_view(pass, v, id);
    }
    return rc;
}

static void close_views(struct pass *pass)
{
    struct qf_compare_shard *shard = &pass->shard;
    for (size_t v = 0; v < shard->view_count; v++)
        if (shard->files[v] != NULL)
            qf_shard_file_close(shard->files[v]);
    pthread_mutex_lock(&pass->lock);
    while (pass->open_files > 0)
        pthread_cond_wait(&pass->ended, &pass->lock);
    pthread_mutex_unlock(&pass->lock);
    for (size_t v = 0; v < shard->view_count; v++)
        free(shard->part_off[v]);
}

static void pass_init(struct pass *pass, struct run *run)
{
    *pass = (struct pass){.run = run};
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&pass->lock, NULL);
    pthread_cond_init(&pass->ended, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

static void pass_fini(struct pass *pass)
{
    pthread_cond_destroy(&pass->ended);
    pthread_mutex_destroy(&pass->lock);
    free(pass->segments);
    free(pass->errors);
    free(pass->differing);
}

static int run_shard(struct run *run, const struct qf_model_shard *shard,
                     struct qf_err *err)
{
    const qf_root *root = run->options->root;
    struct pass pass;
    qf_srcfile *src = NULL;
    char *real = NULL;
    struct stat st;
    pass_init(&pass, run);
    char *path = qf_path_join(run->input->path, shard->name);
    int rc = path != NULL ? qf_root_resolve(root, path, &real, &st) : -ENOMEM;
    if (rc == 0)
        rc = qf_srcfile_open(root, path, &src, NULL);
    if (rc == 0 && !qf_ident_eq(qf_srcfile_ident(src), &shard->ident))
        rc = -ESTALE;
    pass.shard.src = src;
    if (rc == 0)
        rc = open_views(&pass, shard, real);
    if (rc == 0)
        rc = plan_segments(&pass);
    if (rc == 0)
        rc = run_segments(&pass);
    if (rc == 0)
        collect(&pass);
    close_views(&pass);
    qf_srcfile_close(src);
    if (rc != 0)
        qf_err_set(err, rc, "%s: %s", shard->name,
                   rc == -ESTALE ? "changed while it was read" : strerror(-rc));
    pass_fini(&pass);
    free(real);
    free(path);
    return rc;
}

/* ---- a model ---- */

static int start(struct run *run)
{
    unsigned count = run->options->thread_count;
    if (count == 0)
        count = qf_cpu_count();
    if (count > QF_COMPARE_THREADS_MAX)
        count = QF_COMPARE_THREADS_MAX;
    run->workers = calloc(count, sizeof *run->workers);
    if (run->workers == NULL)
        return -ENOMEM;
    int rc = 0;
    while (run->thread_count < count && rc == 0)
        rc = qf_segment_buffers_init(&run->workers[run->thread_count++].buffers);
    return rc == 0 ? qf_pool_new(count, &run->pool) : rc;
}

static void stop(struct run *run)
{
    qf_pool_free(run->pool);
    for (unsigned i = 0; i < run->thread_count; i++)
        qf_segment_buffers_fini(&run->workers[i].buffers);
    free(run->workers);
}

int qf_compare_run(const struct qf_compare_options *options,
                   const struct qf_compare_input *input, struct qf_compare **out,
                   struct qf_err *err)
{
    struct run run = {.options = options, .input = input};
    const struct qf_weight_set *set = &input->model->sets[0];
    int rc = qf_compare_new(input, &run.compare);
    if (rc == 0)
        rc = start(&run);
    if (rc != 0)
        qf_err_set(err, rc, "starting: %s", strerror(-rc));
    for (size_t i = 0; rc == 0 && i < set->shard_count; i++)
        rc = run_shard(&run, &set->shards[i], err);
    stop(&run);
    if (rc == 0) {
        qf_compare_sum_up(run.compare);
        *out = run.compare;
    } else {
        qf_compare_free(run.compare);
    }
    return rc;
}
