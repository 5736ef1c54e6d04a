/* SPDX-License-Identifier: Apache-2.0 */
/* A model read through the engine, from source bytes in the page cache to encoded
 * chunks in host memory, by backend: wall time and CPU time of all threads. There is no
 * FUSE and no cache, and nothing is done with the bytes.
 *
 *   gpu_read DIR VIEW BACKEND READERS WORKERS [PASSES]
 *                                       BACKEND: cuda, best, avx512, avx2, scalar
 *
 * The view is split among the readers, who read it from front to back 1 MiB at a time;
 * the workers are the engine's, and encode ahead. */
#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/limits.h"
#include "cache/store.h"
#include "ckpt/model.h"
#include "cuda/cuda_backend.h"
#include "engine/engine.h"
#include "view/variant.h"

#define READERS_MAX 64
#define SHARDS_MAX  256

struct shard {
    const struct qf_layout *layout;
    qf_srcfile *src;
    qf_shard_file *file;
};

struct bench {
    qf_root *root;
    struct qf_model *model;
    struct qf_view view;
    struct qf_variant *variant;
    qf_backend *cpu;
    qf_backend *backend;
    qf_store *store;
    qf_engine *engine;
    struct shard shards[SHARDS_MAX];
    size_t shard_count;
    uint64_t view_bytes;
    unsigned readers;
};

struct reader {
    const struct bench *bench;
    uint64_t from; /* of all shards, one behind the other */
    uint64_t to;
    int rc;
};

static double seconds(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static int read_range(qf_shard_file *file, uint64_t off, uint64_t end)
{
    while (off < end) {
        struct qf_read *read;
        uint64_t left = end - off;
        size_t size =
            left < QF_FUSE_READ_SIZE_MAX ? (size_t)left : QF_FUSE_READ_SIZE_MAX;
        int rc = qf_engine_read(file, off, size, &read);
        if (rc != 0)
            return rc;
        off += qf_read_size(read);
        qf_read_release(read);
    }
    return 0;
}

static void *read_thread(void *arg)
{
    struct reader *r = arg;
    uint64_t begin = 0;
    for (size_t i = 0; i < r->bench->shard_count && r->rc == 0; i++) {
        const struct shard *s = &r->bench->shards[i];
        uint64_t end = begin + s->layout->file_size;
        uint64_t from = r->from > begin ? r->from : begin;
        uint64_t to = r->to < end ? r->to : end;
        if (from < to)
            r->rc = read_range(s->file, from - begin, to - begin);
        begin = end;
    }
    return NULL;
}

static int one_pass(const struct bench *b, unsigned workers, unsigned number)
{
    pthread_t threads[READERS_MAX];
    struct reader readers[READERS_MAX];
    struct qf_engine_stats before;
    struct qf_engine_stats after;
    qf_engine_stats(b->engine, &before);
    double wall = seconds(CLOCK_MONOTONIC);
    double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    int rc = 0;
    for (unsigned i = 0; i < b->readers; i++) {
        readers[i] = (struct reader){.bench = b,
                                     .from = b->view_bytes / b->readers * i,
                                     .to = b->view_bytes / b->readers * (i + 1)};
        if (i + 1 == b->readers)
            readers[i].to = b->view_bytes;
        if (pthread_create(&threads[i], NULL, read_thread, &readers[i]) != 0)
            exit(1);
    }
    for (unsigned i = 0; i < b->readers; i++) {
        pthread_join(threads[i], NULL);
        rc = readers[i].rc != 0 ? readers[i].rc : rc;
    }
    wall = seconds(CLOCK_MONOTONIC) - wall;
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    qf_engine_stats(b->engine, &after);
    double gb = (double)(after.source_bytes_read - before.source_bytes_read) / 1e9;
    printf("read %s %s %u+%u threads pass %u: %.2f GB of source, %.1f GB/s, CPU %.4f "
           "s/GB, peak %llu MiB\n",
           qf_backend_name(b->backend), b->view.name, b->readers, workers, number, gb,
           gb / wall, cpu / gb, (unsigned long long)after.memory_peak >> 20);
    fflush(stdout);
    if (rc != 0)
        fprintf(stderr, "read: %s\n", strerror(-rc));
    return rc;
}

static void nothing(void *owner)
{
    (void)owner;
}

static int open_shards(struct bench *b, struct qf_err *err)
{
    for (size_t i = 0; i < b->variant->file_count; i++) {
        const struct qf_variant_file *f = &b->variant->files[i];
        if (f->kind != QF_VARIANT_SHARD || b->shard_count == SHARDS_MAX)
            continue;
        struct shard *s = &b->shards[b->shard_count];
        int rc = qf_srcfile_open(b->root, f->name, &s->src, err);
        if (rc != 0)
            return rc;
        s->layout = f->layout;
        struct qf_hash128 id =
            qf_source_id(qf_srcfile_ident(s->src), f->source->header->header_hash);
        rc = qf_shard_file_open(b->engine, s->layout,
                                &(struct qf_shard_source){s->src, id}, 1, 0, nothing,
                                NULL, &s->file);
        if (rc != 0) {
            qf_srcfile_close(s->src);
            return rc;
        }
        b->view_bytes += s->layout->file_size;
        b->shard_count++;
    }
    return b->shard_count != 0 ? 0 : qf_err_set(err, -ENOENT, "no shards to read");
}

static int open_backend(struct bench *b, const char *name, struct qf_err *err)
{
    bool cuda = strcmp(name, "cuda") == 0;
    const char *isa = cuda || strcmp(name, "best") == 0 ? NULL : name;
    int rc = qf_cpu_backend_open(isa, &b->cpu, err);
    b->backend = b->cpu;
    if (rc == 0 && cuda) {
        struct qf_cuda_options options = {0};
        rc = qf_cuda_backend_open(&options, b->cpu, &b->backend, err);
    }
    return rc;
}

static int open_all(struct bench *b, char **argv, unsigned workers, struct qf_err *err)
{
    int rc = qf_root_open(argv[1], &b->root, err);
    if (rc == 0)
        rc = qf_model_load(b->root, "", &b->model, err);
    if (rc == 0)
        rc = qf_view_parse(argv[2], strlen(argv[2]), &b->view, err);
    if (rc == 0)
        rc = qf_variant_new(b->model, &b->view, &b->variant);
    if (rc == 0 && b->variant->reason[0] != '\0')
        rc = qf_err_set(err, -EINVAL, "%s", b->variant->reason);
    if (rc == 0)
        rc = open_backend(b, argv[3], err);
    if (rc == 0)
        rc = qf_store_mem_open(0, &b->store);
    if (rc != 0)
        return rc;
    struct qf_engine_options options = {.backend = b->backend,
                                        .store = b->store,
                                        .thread_count = workers};
    rc = qf_engine_new(&options, &b->engine);
    return rc != 0 ? rc : open_shards(b, err);
}

static void close_all(struct bench *b)
{
    for (size_t i = 0; i < b->shard_count; i++)
        qf_shard_file_close(b->shards[i].file);
    qf_engine_free(b->engine);
    for (size_t i = 0; i < b->shard_count; i++)
        qf_srcfile_close(b->shards[i].src);
    qf_store_close(b->store);
    if (b->backend != b->cpu) {
        struct qf_cuda_stats s;
        qf_cuda_backend_stats(b->backend, &s);
        printf("read stats: %llu chunks on the device, %llu not, %.1f GB mapped, %.1f "
               "GB read, %.1f GB direct, %.1f GB staged\n",
               (unsigned long long)s.chunks, (unsigned long long)s.chunks_fallback,
               (double)s.source_mapped / 1e9, (double)s.source_read / 1e9,
               (double)s.records_direct / 1e9, (double)s.records_staged / 1e9);
        qf_backend_close(b->backend);
    }
    qf_backend_close(b->cpu);
    qf_variant_free(b->variant);
    qf_model_free(b->model);
    qf_root_close(b->root);
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct qf_err err = {""};
    if (argc < 6 || argc > 7) {
        fprintf(stderr, "usage: gpu_read DIR VIEW BACKEND READERS WORKERS [PASSES]\n");
        return 2;
    }
    b.readers = (unsigned)strtoul(argv[4], NULL, 10);
    unsigned workers = (unsigned)strtoul(argv[5], NULL, 10);
    unsigned passes = argc > 6 ? (unsigned)strtoul(argv[6], NULL, 10) : 3;
    if (b.readers == 0 || b.readers > READERS_MAX)
        return 2;
    int rc = open_all(&b, argv, workers, &err);
    if (rc != 0)
        fprintf(stderr, "%s\n", err.text[0] != '\0' ? err.text : strerror(-rc));
    for (unsigned i = 1; i <= passes && rc == 0; i++)
        rc = one_pass(&b, workers, i);
    close_all(&b);
    return rc != 0;
}
