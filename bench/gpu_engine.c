/* SPDX-License-Identifier: Apache-2.0 */
/* From source bytes in the page cache to encoded chunks in host memory, by backend:
 * wall time and CPU time.
 *
 *   gpu_engine make FILE GB             a file of weights, bf16
 *   gpu_engine run FILE BACKEND CODEC THREADS [BATCH [pin|nopin]]
 *                                       BACKEND: cuda, best, avx512, avx2, scalar
 *   gpu_engine encode BACKEND CODEC DTYPE ROWS COLS SRC CODES FLOATS
 *                                       one tensor, its parts written to files
 */
#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cuda/cuda_backend.h"
#include "quant/backend.h"

#define HEADER    ((uint64_t)4096 + 8) /* what stands before the first tensor */
#define PATTERN   ((size_t)64 << 20)
#define BATCH_MAX 64
#define STRIDE    ((size_t)1 << 20)

/* The linear weights of one layer of an 8B Llama, then again. */
static const uint64_t shapes[][2] = {{4096, 4096},  {1024, 4096},  {1024, 4096},
                                     {4096, 4096},  {14336, 4096}, {14336, 4096},
                                     {4096, 14336}, {0, 0}};

struct work {
    int fd;
    qf_backend *backend;
    size_t batch;
    bool pin;
    struct qf_plan *plans;
    uint64_t *offsets; /* of the tensors in the file */
    size_t tensor_count;
    pthread_mutex_t lock;
    size_t tensor; /* the next batch */
    uint64_t chunk;
    uint64_t source_bytes;
};

struct place {
    int fd;
    uint64_t off;
};

static double seconds(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static int read_at(void *ctx, void *buf, size_t size, uint64_t off)
{
    const struct place *place = ctx;
    while (size > 0) {
        ssize_t n = pread(place->fd, buf, size, (off_t)(place->off + off));
        if (n <= 0)
            return -EIO;
        buf = (char *)buf + n;
        off += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

static int make_file(const char *path, uint64_t size)
{
    uint16_t *pattern = malloc(PATTERN);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (pattern == NULL || fd < 0) {
        perror(path);
        return 1;
    }
    uint64_t x = 88172645463325252u;
    for (size_t i = 0; i < PATTERN / 2; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        /* bf16 of about 0.02, both signs. */
        pattern[i] = (uint16_t)((x >> 48 & 0x81ffu) | 0x3c00u);
    }
    for (uint64_t off = 0; off < size; off += PATTERN) {
        size_t n = size - off < PATTERN ? (size_t)(size - off) : PATTERN;
        if (pwrite(fd, pattern, n, (off_t)off) != (ssize_t)n) {
            perror(path);
            return 1;
        }
    }
    free(pattern);
    return close(fd) == 0 ? 0 : 1;
}

static int open_backend(const char *name, qf_backend **out, qf_backend **fallback)
{
    struct qf_err err = {""};
    bool cuda = strcmp(name, "cuda") == 0;
    const char *isa = cuda || strcmp(name, "best") == 0 ? NULL : name;
    int rc = qf_cpu_backend_open(isa, fallback, &err);
    *out = *fallback;
    if (rc == 0 && cuda) {
        struct qf_cuda_options options = {0};
        rc = qf_cuda_backend_open(&options, *fallback, out, &err);
    }
    if (rc != 0)
        fprintf(stderr, "%s\n", err.text);
    return rc;
}

/* ---- run ---- */

/* Plans tensors one behind the other until the file ends. */
static void plan_file(struct work *w, enum qf_codec codec, uint64_t file_size)
{
    struct qf_codec_spec spec = qf_codec_default(codec, QF_BF16);
    uint64_t off = HEADER;
    size_t max = 100000;
    w->plans = calloc(max, sizeof *w->plans);
    w->offsets = calloc(max, sizeof *w->offsets);
    assert(w->plans != NULL && w->offsets != NULL);
    for (size_t i = 0; w->tensor_count < max; i++) {
        const uint64_t *shape = shapes[i % 7];
        uint64_t size = 2 * shape[0] * shape[1];
        if (off + size > file_size)
            break;
        int rc = qf_codec_plan(&spec, QF_BF16, shape, false, &w->plans[w->tensor_count],
                               NULL);
        assert(rc == 0);
        w->offsets[w->tensor_count++] = off;
        off += size;
        w->source_bytes += size;
    }
    assert(w->tensor_count != 0);
}

/* Up to a batch of chunks, over the ends of tensors. */
static size_t next_batch(struct work *w, struct qf_job *jobs, struct place *places)
{
    size_t n = 0;
    pthread_mutex_lock(&w->lock);
    while (n < w->batch && w->tensor < w->tensor_count) {
        const struct qf_plan *plan = &w->plans[w->tensor];
        places[n] = (struct place){w->fd, w->offsets[w->tensor]};
        jobs[n].plan = plan;
        jobs[n].chunk = w->chunk++;
        jobs[n].source = (struct qf_source){.read = read_at,
                                            .ctx = &places[n],
                                            .fd = w->fd,
                                            .fd_off = w->offsets[w->tensor]};
        n++;
        if (w->chunk == plan->chunk_count) {
            w->chunk = 0;
            w->tensor++;
        }
    }
    pthread_mutex_unlock(&w->lock);
    return n;
}

static void *work_thread(void *arg)
{
    struct work *w = arg;
    struct qf_job jobs[BATCH_MAX];
    struct place places[BATCH_MAX];
    size_t size = w->batch * STRIDE;
    char *records =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert(records != MAP_FAILED);
    memset(records, 1, size);
    if (w->pin)
        qf_backend_pin(w->backend, records, size);
    for (size_t n; (n = next_batch(w, jobs, places)) != 0;) {
        for (size_t i = 0; i < n; i++)
            jobs[i].record = records + i * STRIDE;
        qf_backend_encode(w->backend, jobs, n);
        for (size_t i = 0; i < n; i++) {
            if (jobs[i].rc != 0) {
                fprintf(stderr, "chunk failed: %s\n", strerror(-jobs[i].rc));
                exit(1);
            }
        }
    }
    if (w->pin)
        qf_backend_unpin(w->backend, records);
    munmap(records, size);
    return NULL;
}

static void one_pass(struct work *w, unsigned thread_count, const char *what)
{
    pthread_t threads[64];
    w->tensor = 0;
    w->chunk = 0;
    double wall = seconds(CLOCK_MONOTONIC);
    double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    for (unsigned i = 0; i < thread_count; i++)
        if (pthread_create(&threads[i], NULL, work_thread, w) != 0)
            exit(1);
    for (unsigned i = 0; i < thread_count; i++)
        pthread_join(threads[i], NULL);
    wall = seconds(CLOCK_MONOTONIC) - wall;
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    double gb = (double)w->source_bytes / 1e9;
    printf("engine %s %s %u threads batch %zu%s %s: %.1f GB/s, CPU %.4f s/GB\n",
           qf_backend_name(w->backend), qf_codec_name(w->plans[0].spec.codec),
           thread_count, w->batch, w->pin ? "" : " nopin", what, gb / wall, cpu / gb);
    fflush(stdout);
}

/* One chunk, read and not mapped: what the making of a context takes. */
static void warm_up(struct work *w)
{
    struct place place = {w->fd, w->offsets[0]};
    char *record = aligned_alloc(64, STRIDE);
    assert(record != NULL);
    struct qf_job job = {.plan = &w->plans[0],
                         .source = {.read = read_at, .ctx = &place, .fd = -1},
                         .record = record};
    double begin = seconds(CLOCK_MONOTONIC);
    qf_backend_encode(w->backend, &job, 1);
    double first = seconds(CLOCK_MONOTONIC) - begin;
    begin = seconds(CLOCK_MONOTONIC);
    qf_backend_encode(w->backend, &job, 1);
    printf("engine %s first chunk %.1f ms, second %.2f ms\n",
           qf_backend_name(w->backend), first * 1e3,
           (seconds(CLOCK_MONOTONIC) - begin) * 1e3);
    free(record);
}

static int run(int argc, char **argv)
{
    struct work w = {.lock = PTHREAD_MUTEX_INITIALIZER, .batch = 32, .pin = true};
    qf_backend *fallback;
    enum qf_codec codec;
    struct stat st;
    if (argc < 6 || !qf_codec_from_name(argv[4], &codec))
        return 2;
    unsigned threads = (unsigned)strtoul(argv[5], NULL, 10);
    if (argc > 6)
        w.batch = strtoul(argv[6], NULL, 10);
    if (argc > 7)
        w.pin = strcmp(argv[7], "nopin") != 0;
    assert(threads >= 1 && threads <= 64 && w.batch >= 1 && w.batch <= BATCH_MAX);
    w.fd = open(argv[2], O_RDONLY | O_CLOEXEC);
    if (w.fd < 0 || fstat(w.fd, &st) != 0) {
        perror(argv[2]);
        return 1;
    }
    if (open_backend(argv[3], &w.backend, &fallback) != 0)
        return 1;
    plan_file(&w, codec, (uint64_t)st.st_size);
    warm_up(&w);
    one_pass(&w, threads, "first");
    one_pass(&w, threads, "second");
    one_pass(&w, threads, "third");
    if (w.backend != fallback) {
        struct qf_cuda_stats s;
        qf_cuda_backend_stats(w.backend, &s);
        printf(
            "engine stats: %llu chunks, %llu fallback, %.1f GB mapped, %.1f GB read, "
            "%.1f GB direct, %.1f GB staged, %llu MiB of device memory\n",
            (unsigned long long)s.chunks, (unsigned long long)s.chunks_fallback,
            (double)s.source_mapped / 1e9, (double)s.source_read / 1e9,
            (double)s.records_direct / 1e9, (double)s.records_staged / 1e9,
            (unsigned long long)s.memory_used >> 20);
        double begin = seconds(CLOCK_MONOTONIC);
        qf_backend_close(w.backend);
        printf("engine close: %.3f s\n", seconds(CLOCK_MONOTONIC) - begin);
    }
    qf_backend_close(fallback);
    free(w.plans);
    free(w.offsets);
    close(w.fd);
    return 0;
}

/* ---- encode ---- */

static int write_slices(const struct qf_plan *plan, const struct qf_job *job,
                        bool codes, FILE *out)
{
    for (uint32_t i = 0; i < plan->part_count; i++) {
        const struct qf_part *part = &plan->parts[i];
        size_t off;
        size_t size;
        if (part->stage != QF_STAGE_CHUNK || (part->role == QF_PART_CODES) != codes)
            continue;
        qf_plan_chunk_slice(plan, job->chunk, i, &off, &size);
        if (fwrite((char *)job->record + off, 1, size, out) != size)
            return 1;
    }
    return 0;
}

static int encode(int argc, char **argv)
{
    qf_backend *backend;
    qf_backend *fallback;
    enum qf_codec codec;
    struct qf_plan plan;
    if (argc != 10 || !qf_codec_from_name(argv[3], &codec))
        return 2;
    enum qf_dtype dtype = qf_dtype_from_torch(argv[4]);
    uint64_t shape[2] = {strtoull(argv[5], NULL, 10), strtoull(argv[6], NULL, 10)};
    struct qf_codec_spec spec = qf_codec_default(codec, dtype);
    struct place place = {open(argv[7], O_RDONLY), 0};
    FILE *codes = fopen(argv[8], "wb");
    FILE *floats = fopen(argv[9], "wb");
    if (place.fd < 0 || codes == NULL || floats == NULL ||
        open_backend(argv[2], &backend, &fallback) != 0 ||
        qf_codec_plan(&spec, dtype, shape, false, &plan, NULL) != 0)
        return 1;
    char *record = aligned_alloc(64, STRIDE);
    assert(record != NULL);
    for (uint64_t c = 0; c < plan.chunk_count; c++) {
        struct qf_job job = {
            .plan = &plan,
            .chunk = c,
            .source = {.read = read_at, .ctx = &place, .fd = place.fd, .fd_off = 0},
            .record = record};
        qf_backend_encode(backend, &job, 1);
        if (job.rc != 0 || write_slices(&plan, &job, true, codes) != 0 ||
            write_slices(&plan, &job, false, floats) != 0)
            return 1;
    }
    free(record);
    if (backend != fallback)
        qf_backend_close(backend);
    qf_backend_close(fallback);
    return fclose(codes) != 0 || fclose(floats) != 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "make") == 0)
        return make_file(argv[2], strtoull(argv[3], NULL, 10) * 1000000000u);
    if (argc > 2 && strcmp(argv[1], "run") == 0)
        return run(argc, argv);
    if (argc > 2 && strcmp(argv[1], "encode") == 0)
        return encode(argc, argv);
    fprintf(stderr, "usage: gpu_engine make|run|encode ... (see the source)\n");
    return 2;
}
