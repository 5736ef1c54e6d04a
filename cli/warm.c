/* SPDX-License-Identifier: Apache-2.0 */
/* One model after the other, so that what it cost can be told; within it the shards are
 * cut into segments, for a model may be a single file. Readers take segments in order,
 * which keeps each shard's look-ahead on few streams. */
#include "cli/warm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/limits.h"
#include "base/path.h"
#include "cli/crew.h"

#define SEGMENT_SIZE (UINT64_C(64) << 20)
#define READ_SIZE    ((size_t)QF_FUSE_READ_SIZE_MAX)
#define DEPTH_MAX    64

void qf_warm_init(struct qf_warm *warm, unsigned jobs, const atomic_int *stop)
{
    *warm = (struct qf_warm){.command = "warm", .jobs = jobs, .stop = stop};
    pthread_mutex_init(&warm->lock, NULL);
}

void qf_warm_fini(struct qf_warm *warm)
{
    for (size_t i = 0; i < warm->model_count; i++) {
        struct qf_warm_model *model = &warm->models[i];
        for (size_t k = 0; k < model->shard_count; k++)
            free(model->shards[k].path);
        free(model->shards);
        free(model->path);
    }
    for (size_t i = 0; i < warm->trouble_count; i++)
        free(warm->troubles[i].path);
    free(warm->models);
    free(warm->troubles);
    pthread_mutex_destroy(&warm->lock);
}

static bool stopped(const struct qf_warm *warm)
{
    return atomic_load(warm->stop) != 0;
}

/* ---- troubles ---- */

void qf_warm_fail(struct qf_warm *warm, const char *path, int rc)
{
    char *copy = strdup(path);
    pthread_mutex_lock(&warm->lock);
    struct qf_warm_trouble *more =
        realloc(warm->troubles, (warm->trouble_count + 1) * sizeof *more);
    if (more != NULL) {
        warm->troubles = more;
        more[warm->trouble_count++] = (struct qf_warm_trouble){copy, rc};
        copy = NULL;
    }
    pthread_mutex_unlock(&warm->lock);
    free(copy);
}

void qf_warm_tell_troubles(struct qf_warm *warm)
{
    pthread_mutex_lock(&warm->lock);
    while (warm->command != NULL && warm->trouble_told < warm->trouble_count) {
        const struct qf_warm_trouble *trouble = &warm->troubles[warm->trouble_told++];
        qf_progress_hide(&warm->progress);
        fprintf(stderr, "quantfs %s: %s: %s\n", warm->command,
                trouble->path != NULL ? trouble->path : "?",
                trouble->rc == -EBADMSG ? "malformed" : strerror(-trouble->rc));
    }
    pthread_mutex_unlock(&warm->lock);
}

/* ---- what there is ---- */

struct collect {
    struct qf_warm *warm;
    const struct qf_views_source *source;
    const char *view;
    size_t tell_skip;
    size_t model; /* of this directory, once it has a shard; SIZE_MAX before */
    unsigned depth;
    const char *dir;
    int rc; /* -ENOMEM */
};

/* Only such files can be view shards. */
static bool may_be_shard(const char *name)
{
    size_t n = strlen(name);
    if (n > 5 && strcmp(name + n - 5, ".gguf") == 0)
        return true;
    return strstr(name, ".safetensors") != NULL &&
           (n < 5 || strcmp(name + n - 5, ".json") != 0);
}

static int add_model(struct collect *c, const char *dir)
{
    struct qf_warm *warm = c->warm;
    struct qf_warm_model *models =
        realloc(warm->models, (warm->model_count + 1) * sizeof *models);
    if (models == NULL)
        return -ENOMEM;
    warm->models = models;
    struct qf_warm_model *model = &models[warm->model_count];
    *model = (struct qf_warm_model){.source = c->source};
    snprintf(model->view, sizeof model->view, "%s", c->view);
    const char *told = dir + (strlen(dir) > c->tell_skip ? c->tell_skip : strlen(dir));
    model->path = strdup(told[0] != '\0' ? told : "/");
    if (model->path == NULL)
        return -ENOMEM;
    c->model = warm->model_count++;
    return 0;
}

static int add_shard(struct collect *c, const char *dir, const char *path,
                     const struct qf_source_file *file)
{
    int rc = c->model == SIZE_MAX ? add_model(c, dir) : 0;
    if (rc != 0)
        return rc;
    struct qf_warm_model *model = &c->warm->models[c->model];
    struct qf_warm_shard *shards =
        realloc(model->shards, (model->shard_count + 1) * sizeof *shards);
    char *copy = strdup(path);
    if (shards != NULL)
        model->shards = shards;
    if (shards == NULL || copy == NULL) {
        free(copy);
        return -ENOMEM;
    }
    shards[model->shard_count++] = (struct qf_warm_shard){.path = copy,
                                                          .size = file->size,
                                                          .sealed = file->sealed};
    return 0;
}

static void collect_file(struct collect *c, const char *dir, const char *path)
{
    struct qf_source_file file = {.fd = -1};
    int rc = c->source->ops->open(c->source, path, &file);
    if (rc == 0) {
        c->rc = file.shard ? add_shard(c, dir, path, &file) : 0;
        c->source->ops->close(c->source, &file);
    } else {
        qf_warm_fail(c->warm, path + c->tell_skip, rc);
    }
}

static void collect_dir(struct collect *c, const char *path);

static int collect_entry(void *arg, const char *name, bool is_dir)
{
    struct collect *c = arg;
    if (stopped(c->warm))
        return -EINTR;
    if (!is_dir && !may_be_shard(name))
        return 0;
    char *path = qf_path_join(c->dir, name);
    if (path == NULL) {
        c->rc = -ENOMEM;
    } else if (is_dir) {
        struct collect below = *c;
        below.depth++;
        below.model = SIZE_MAX;
        collect_dir(&below, path);
        c->rc = below.rc;
    } else {
        collect_file(c, c->dir, path);
    }
    free(path);
    return c->rc;
}

static void collect_dir(struct collect *c, const char *path)
{
    c->dir = path;
    int rc = c->depth < DEPTH_MAX
                 ? c->source->ops->list(c->source, path, collect_entry, c)
                 : -ELOOP;
    if (rc == -ENOTDIR && c->depth == 0) {
        char *dir = qf_path_parent(path);
        if (dir != NULL)
            collect_file(c, dir, path);
        else
            c->rc = -ENOMEM;
        free(dir);
    } else if (rc != 0 && rc != c->rc && rc != -EINTR) {
        qf_warm_fail(c->warm, path + c->tell_skip, rc);
    }
}

static int by_shard(const void *a, const void *b)
{
    return strcmp(((const struct qf_warm_shard *)a)->path,
                  ((const struct qf_warm_shard *)b)->path);
}

static int by_model(const void *a, const void *b)
{
    return strcmp(((const struct qf_warm_model *)a)->path,
                  ((const struct qf_warm_model *)b)->path);
}

/* Directories list their entries in any order. */
static void sort_from(struct qf_warm *warm, size_t first)
{
    size_t count = warm->model_count - first;
    if (count == 0)
        return;
    qsort(warm->models + first, count, sizeof *warm->models, by_model);
    for (size_t i = first; i < warm->model_count; i++)
        qsort(warm->models[i].shards, warm->models[i].shard_count,
              sizeof *warm->models[i].shards, by_shard);
}

int qf_warm_add(struct qf_warm *warm, const struct qf_views_source *source,
                const char *view, const char *path, size_t tell_skip)
{
    struct collect c = {.warm = warm,
                        .source = source,
                        .view = view,
                        .tell_skip = tell_skip,
                        .model = SIZE_MAX};
    size_t first = warm->model_count;
    collect_dir(&c, path);
    sort_from(warm, first);
    return c.rc;
}

/* ---- reading ---- */

struct pass {
    struct qf_warm *warm;
    struct qf_warm_model *model;
    char *buffers;        /* one a reader */
    pthread_mutex_t lock; /* of what follows */
    size_t shard;
    uint64_t off;
};

struct reader {
    struct pass *pass;
    char *buffer;
    struct qf_warm_shard *open; /* `file` is open for it; NULL: nothing is */
    struct qf_source_file file;
};

/* The next piece to read; false: there is none. */
static bool take_segment(struct pass *pass, struct qf_warm_shard **shard, uint64_t *off)
{
    bool found = false;
    pthread_mutex_lock(&pass->lock);
    while (!found && pass->shard < pass->model->shard_count && !stopped(pass->warm)) {
        struct qf_warm_shard *s = &pass->model->shards[pass->shard];
        found = !s->failed && !s->sealed && pass->off < s->size;
        *shard = s;
        *off = pass->off;
        pass->off += SEGMENT_SIZE;
        if (!found || pass->off >= s->size) {
            pass->shard++;
            pass->off = 0;
        }
    }
    pthread_mutex_unlock(&pass->lock);
    return found;
}

static void close_shard(struct reader *reader)
{
    const struct qf_views_source *source = reader->pass->model->source;
    if (reader->open != NULL)
        source->ops->close(source, &reader->file);
    reader->open = NULL;
}

static int read_segment(struct reader *reader, struct qf_warm_shard *shard,
                        uint64_t off)
{
    struct qf_warm *warm = reader->pass->warm;
    const struct qf_views_source *source = reader->pass->model->source;
    uint64_t end = shard->size - off < SEGMENT_SIZE ? shard->size : off + SEGMENT_SIZE;
    if (reader->open != shard) {
        close_shard(reader);
        int rc = source->ops->open(source, shard->path, &reader->file);
        if (rc != 0)
            return rc;
        reader->open = shard;
    }
    while (off < end && !stopped(warm)) {
        size_t size = end - off < READ_SIZE ? (size_t)(end - off) : READ_SIZE;
        ssize_t n =
            source->ops->read(&reader->file, reader->buffer, size, off, !warm->copies);
        if (n <= 0)
            return n < 0 ? (int)n : -EIO;
        off += (uint64_t)n;
        atomic_fetch_add(&warm->bytes, (uint64_t)n);
    }
    return 0;
}

static void run_reader(void *arg, unsigned index)
{
    struct pass *pass = arg;
    struct reader reader = {.pass = pass, .buffer = pass->buffers + index * READ_SIZE};
    struct qf_warm_shard *shard;
    uint64_t off;
    while (take_segment(pass, &shard, &off)) {
        int rc = read_segment(&reader, shard, off);
        if (rc == 0)
            continue;
        pthread_mutex_lock(&pass->lock);
        bool first = !shard->failed;
        shard->failed = true;
        pthread_mutex_unlock(&pass->lock);
        if (first)
            qf_warm_fail(pass->warm, shard->path, rc);
    }
    close_shard(&reader);
}

static void tick(void *arg)
{
    struct pass *pass = arg;
    qf_warm_tell_troubles(pass->warm);
    qf_progress_update(&pass->warm->progress, atomic_load(&pass->warm->bytes));
}

static void count_since(struct qf_warm_model *model,
                        const struct qf_source_counts *then)
{
    struct qf_source_counts now;
    model->source->ops->counts(model->source, &now);
    model->counts = (struct qf_source_counts){
        .chunks_encoded = now.chunks_encoded - then->chunks_encoded,
        .cache_hits = now.cache_hits - then->cache_hits,
        .evictions = now.evictions - then->evictions,
        .dropped = now.dropped - then->dropped,
    };
}

static int run_model(struct qf_warm *warm, struct qf_warm_model *model, char *buffers)
{
    struct pass pass = {.warm = warm, .model = model, .buffers = buffers};
    struct qf_source_counts then;
    int64_t start_ms = qf_clock_ms();
    uint64_t start_bytes = atomic_load(&warm->bytes);
    model->source->ops->counts(model->source, &then);
    for (size_t i = 0; i < model->shard_count; i++)
        if (model->shards[i].sealed)
            atomic_fetch_add(&warm->bytes, model->shards[i].size);
    pthread_mutex_init(&pass.lock, NULL);
    int rc = qf_crew_run(warm->jobs, run_reader, tick, &pass);
    pthread_mutex_destroy(&pass.lock);
    model->source->ops->settle(model->source);
    count_since(model, &then);
    model->bytes = atomic_load(&warm->bytes) - start_bytes;
    model->seconds = (double)(qf_clock_ms() - start_ms) / 1000;
    qf_warm_tell_troubles(warm);
    return rc;
}

static uint64_t bytes_of(const struct qf_warm *warm)
{
    uint64_t total = 0;
    for (size_t i = 0; i < warm->model_count; i++)
        for (size_t k = 0; k < warm->models[i].shard_count; k++)
            total += warm->models[i].shards[k].size;
    return total;
}

int qf_warm_run(struct qf_warm *warm, FILE *progress_to)
{
    char *buffers = malloc(warm->jobs * READ_SIZE);
    int rc = buffers != NULL ? 0 : -ENOMEM;
    if (rc != 0)
        return rc;
    qf_progress_start(&warm->progress, progress_to, "warming", bytes_of(warm));
    for (size_t i = 0; i < warm->model_count && !stopped(warm) && rc == 0; i++)
        rc = run_model(warm, &warm->models[i], buffers);
    qf_progress_end(&warm->progress, atomic_load(&warm->bytes));
    free(buffers);
    return rc;
}
