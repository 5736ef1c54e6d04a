/* SPDX-License-Identifier: Apache-2.0 */
/* The ways in which loaders read. With a store that keeps what it is given every chunk
 * is encoded exactly once, whatever the order of reads and the number of threads; with
 * one that does not, at most once for each time that a reader comes to the chunk. The
 * memory is the smallest that an engine has, and keeps half of a view. */
#include "test_engine_fixture.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>

#include "base/limits.h"

#define FILES   4
#define THREADS 4
#define PLENTY  (UINT64_C(1) << 30)
#define FEW     (UINT64_C(4) << 20) /* of about 28 MiB */

/* Whole and short last chunks, and something that is kept in between. */
static const struct fx_tensor tensors[] = {
    {{"layers.0.a.weight", QF_BF16, 2, {2048, 2048, 0, 0}, NULL}, FX_QUANT(false)},
    {{"layers.0.norm", QF_BF16, 1, {2048, 0, 0, 0}, NULL}, FX_KEEP(QF_BF16)},
    {{"layers.1.b.weight", QF_BF16, 2, {1000, 3000, 0, 0}, NULL}, FX_QUANT(false)},
    {{"layers.2.c.weight", QF_BF16, 2, {2048, 2560, 0, 0}, NULL}, FX_QUANT(false)},
};
#define TENSORS (sizeof tensors / sizeof tensors[0])

static uint16_t values[2048 * 2560];

/* One engine over several files of a model. */
struct model {
    struct fx files[FILES];
    unsigned char *want[FILES];
    struct qf_shard *view[FILES]; /* the view's own header */
    qf_backend *backend;
    qf_store *store;
    uint64_t chunks;
};

/* Numbers of about the size of weights; other ones in each file. */
static void fill_values(uint64_t seed)
{
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        values[i] = (uint16_t)((fx_random(&seed) & 0x83ff) | 0x3c00);
}

/* Opens the files with the engine of the first. */
static void model_open(struct model *m, uint64_t store_limit)
{
    m->store = fx_store_mem(store_limit);
    fx_open(&m->files[0], m->backend, m->store, QF_ENGINE_MEMORY_MIN);
    for (size_t i = 1; i < FILES; i++) {
        struct fx *fx = &m->files[i];
        fx->engine = m->files[0].engine;
        fx->released = 0;
        assert_int_equal(qf_srcfile_open(fx->root, SOURCE_NAME, &fx->src, NULL), 0);
        struct qf_hash128 id =
            qf_source_id(qf_srcfile_ident(fx->src), fx->shard->header_hash);
        assert_int_equal(qf_shard_file_open(fx->engine, fx->layout,
                                            &(struct qf_shard_source){fx->src, id}, 1,
                                            0, fx_released, fx, &fx->file),
                         0);
    }
}

static void model_close(struct model *m)
{
    for (size_t i = 1; i < FILES; i++)
        qf_shard_file_close(m->files[i].file);
    fx_close(&m->files[0]);
    for (size_t i = 1; i < FILES; i++) {
        assert_int_equal(m->files[i].released, 1);
        qf_srcfile_close(m->files[i].src);
    }
    qf_store_close(m->store);
}

static void model_begin(struct model *m, const char *view)
{
    struct fx_tensor own[TENSORS];
    struct qf_err err;
    *m = (struct model){.backend = fx_backend(NULL)};
    memcpy(own, tensors, sizeof own);
    for (size_t i = 0; i < TENSORS; i++)
        own[i].st.data = values;
    for (size_t i = 0; i < FILES; i++) {
        fill_values(i);
        fx_begin(&m->files[i], own, TENSORS, view);
        m->files[i].tensors = tensors;
        m->chunks += fx_chunks(&m->files[i]);
    }
    model_open(m, 0);
    for (size_t i = 0; i < FILES; i++) {
        struct fx *fx = &m->files[i];
        m->want[i] = fx_read_all(fx, QF_FUSE_READ_SIZE_MAX);
        if (i == 0) /* the others differ in their values only */
            fx_expect(fx, m->want[i]);
        assert_int_equal(qf_shard_parse(fx->layout->header, fx->layout->header_size,
                                        fx->layout->file_size, &m->view[i], &err),
                         0);
    }
    model_close(m);
}

static void model_end(struct model *m)
{
    for (size_t i = 0; i < FILES; i++) {
        qf_shard_free(m->view[i]);
        free(m->want[i]);
        fx_end(&m->files[i]);
    }
    qf_backend_close(m->backend);
}

/* ---- readers ---- */

/* One thread's state; asserts are for the main thread. */
struct reader {
    struct model *m;
    size_t number;
    _Atomic size_t *next; /* shared by the readers of a pattern */
    uint64_t seed;
    unsigned char *buffer;
    bool wrong;
};

/* One request of at most `size` bytes; how much it gave. */
static uint64_t request(struct reader *r, size_t file, uint64_t off, uint64_t size)
{
    long n = fx_read(r->m->files[file].file, off, size, r->buffer);
    if (n <= 0 || (uint64_t)n > size ||
        memcmp(r->buffer, r->m->want[file] + off, (size_t)n) != 0) {
        r->wrong = true;
        return size;
    }
    return (uint64_t)n;
}

/* 128 KiB to 1 MiB, as the kernel makes them. */
static uint64_t request_size(struct reader *r)
{
    return (1 + fx_random(&r->seed) % 8) * (128u << 10);
}

static void read_range(struct reader *r, size_t file, uint64_t off, uint64_t end)
{
    while (off < end && !r->wrong) {
        uint64_t size = request_size(r);
        off += request(r, file, off, size < end - off ? size : end - off);
    }
}

static void read_file(struct reader *r, size_t file)
{
    read_range(r, file, 0, r->m->files[file].layout->file_size);
}

static void read_tensor(struct reader *r, size_t file, size_t index)
{
    const struct qf_tensor *t = &r->m->view[file]->tensors[index];
    read_range(r, file, t->off, t->off + t->size);
}

/* ---- patterns: what one thread does ---- */

static void *front_to_back(void *arg)
{
    struct reader *r = arg;
    for (size_t file = 0; file < FILES; file++)
        read_file(r, file);
    return NULL;
}

/* Whole tensors in random order. */
static void *random_tensors(void *arg)
{
    struct reader *r = arg;
    size_t count = r->m->view[0]->tensor_count;
    size_t order[128];
    assert(count * FILES <= 128);
    for (size_t i = 0; i < count * FILES; i++) {
        size_t j = fx_random(&r->seed) % (i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    for (size_t i = 0; i < count * FILES; i++)
        read_tensor(r, order[i] / count, order[i] % count);
    return NULL;
}

/* A stream in each file. */
static void *file_each(void *arg)
{
    struct reader *r = arg;
    read_file(r, r->number);
    return NULL;
}

/* The next tensor by name, whoever is free, as loaders with threads do. */
static void *next_tensor(void *arg)
{
    struct reader *r = arg;
    size_t count = r->m->view[0]->tensor_count;
    size_t i;
    while ((i = atomic_fetch_add(r->next, 1)) < count * FILES)
        read_tensor(r, i / count, i % count);
    return NULL;
}

/* Four places of one file in turn. */
static void *interleaved(void *arg)
{
    struct reader *r = arg;
    for (size_t file = 0; file < FILES; file++) {
        uint64_t size = r->m->files[file].layout->file_size;
        uint64_t at[4], end[4], left = size;
        for (size_t s = 0; s < 4; s++) {
            at[s] = size * s / 4;
            end[s] = size * (s + 1) / 4;
        }
        while (left > 0 && !r->wrong)
            for (size_t s = 0; s < 4; s++) {
                uint64_t n = request_size(r);
                if (at[s] == end[s])
                    continue;
                n = request(r, file, at[s], n < end[s] - at[s] ? n : end[s] - at[s]);
                at[s] += n;
                left -= n;
            }
    }
    return NULL;
}

static bool is_small(const struct qf_tensor *t)
{
    size_t n = strlen(t->name);
    return n < 6 || strcmp(t->name + n - 6, "weight") != 0;
}

/* vLLM: what is small of all files, then the weights. */
static void *two_passes(void *arg)
{
    struct reader *r = arg;
    for (int small = 1; small >= 0; small--)
        for (size_t file = 0; file < FILES; file++)
            for (size_t i = 0; i < r->m->view[file]->tensor_count; i++)
                if (is_small(&r->m->view[file]->tensors[i]) == (small != 0))
                    read_tensor(r, file, i);
    return NULL;
}

/* Tensor parallel: a quarter of each tensor. */
static void *slices(void *arg)
{
    struct reader *r = arg;
    for (size_t file = 0; file < FILES; file++)
        for (size_t i = 0; i < r->m->view[file]->tensor_count; i++) {
            const struct qf_tensor *t = &r->m->view[file]->tensors[i];
            read_range(r, file, t->off + t->size * r->number / THREADS,
                       t->off + t->size * (r->number + 1) / THREADS);
        }
    return NULL;
}

/* `visits`: how often a pattern comes to a chunk at most, when what it read of it
 * before may be forgotten meanwhile: a tensor's absmax lies behind its codes, ranks
 * share chunks, and whoever jumps has had chunks encoded ahead in vain. */
static const struct pattern {
    const char *name;
    void *(*run)(void *arg);
    size_t threads;
    uint64_t visits;
} patterns[] = {
    {"front to back", front_to_back, 1, 2}, {"random tensors", random_tensors, 1, 3},
    {"a file each", file_each, FILES, 2},   {"next tensor", next_tensor, THREADS, 2},
    {"interleaved", interleaved, 1, 2},     {"two passes", two_passes, 1, 2},
    {"slices", slices, THREADS, 4},
};
#define PATTERNS (sizeof patterns / sizeof patterns[0])

static void run_pattern(struct model *m, const struct pattern *p, uint64_t seed)
{
    struct reader readers[THREADS];
    pthread_t threads[THREADS];
    _Atomic size_t next = 0;
    for (size_t i = 0; i < p->threads; i++) {
        readers[i] = (struct reader){.m = m,
                                     .number = i,
                                     .next = &next,
                                     .seed = seed * THREADS + i};
        readers[i].buffer = malloc(QF_FUSE_READ_SIZE_MAX);
        assert_non_null(readers[i].buffer);
        assert_int_equal(pthread_create(&threads[i], NULL, p->run, &readers[i]), 0);
    }
    bool wrong = false;
    for (size_t i = 0; i < p->threads; i++) {
        pthread_join(threads[i], NULL);
        free(readers[i].buffer);
        wrong |= readers[i].wrong;
    }
    if (wrong)
        fail_msg("%s: wrong bytes", p->name);
}

static uint64_t encoded(const struct model *m)
{
    return fx_stats(&m->files[0]).chunks_encoded;
}

static void check_once(const char *view, uint64_t seeds)
{
    struct model m;
    model_begin(&m, view);
    for (size_t p = 0; p < PATTERNS; p++)
        for (uint64_t seed = 0; seed < seeds; seed++) {
            model_open(&m, PLENTY);
            for (int again = 0; again < 2; again++) {
                run_pattern(&m, &patterns[p], seed);
                if (encoded(&m) != m.chunks)
                    fail_msg("%s, %s: %llu encodings of %llu chunks", view,
                             patterns[p].name, (unsigned long long)encoded(&m),
                             (unsigned long long)m.chunks);
            }
            model_close(&m);
        }
    model_end(&m);
}

static void test_once_nf4(void **state)
{
    (void)state;
    check_once("nf4", 2);
}

static void test_once_dq(void **state)
{
    (void)state;
    check_once("dq", 1);
}

static void test_once_int8(void **state)
{
    (void)state;
    check_once("int8", 1);
}

/* The store loses most of it. */
static void check_forgetful(const char *view, uint64_t limit)
{
    struct model m;
    model_begin(&m, view);
    for (size_t p = 0; p < PATTERNS; p++) {
        model_open(&m, limit);
        for (uint64_t pass = 1; pass <= 2; pass++) {
            run_pattern(&m, &patterns[p], pass);
            if (encoded(&m) > pass * patterns[p].visits * m.chunks)
                fail_msg("%s, %s: %llu encodings of %llu chunks in %llu passes", view,
                         patterns[p].name, (unsigned long long)encoded(&m),
                         (unsigned long long)m.chunks, (unsigned long long)pass);
        }
        model_close(&m);
    }
    model_end(&m);
}

static void test_forgetful(void **state)
{
    (void)state;
    check_forgetful("nf4", FEW);
    check_forgetful("dq", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_once_nf4),
        cmocka_unit_test(test_once_dq),
        cmocka_unit_test(test_once_int8),
        cmocka_unit_test(test_forgetful),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
