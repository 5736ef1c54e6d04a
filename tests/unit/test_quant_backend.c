/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU backend: that chunks, pieces, casts and transposition come to the same bytes
 * as one kernel call over the whole weight, at the edges of chunks and pieces; errors
 * of the source; several threads at once. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "quant/backend.h"
#include "quant/half.h"
#include "quant/kernels.h"
#include "quant/scales.h"

struct memory {
    const char *data;
    uint64_t size;
    uint64_t bad_from; /* reads that reach this offset fail */
    atomic_uint reads;
};

static int read_memory(void *ctx, void *buf, size_t size, uint64_t off)
{
    struct memory *m = ctx;
    atomic_fetch_add(&m->reads, 1);
    if (off > m->size || size > m->size - off)
        return -ERANGE; /* the backend must never ask for it */
    if (off + size > m->bad_from)
        return -EIO;
    memcpy(buf, m->data + off, size);
    return 0;
}

/* Memory of exactly this size, so that a sanitizer sees what is past it. */
static void *allocate(uint64_t size)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 64, (size_t)size + (size == 0)), 0);
    memset(p, 0xa5, (size_t)size);
    return p;
}

/* Random numbers that repeat after a prime number of elements. */
static char *random_weight(enum qf_dtype dtype, uint64_t n)
{
    static float x[65521];
    static char pattern[sizeof x];
    size_t width = qf_dtype_size(dtype);
    size_t count = sizeof x / sizeof *x;
    uint32_t state = 12345;
    for (size_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)state * 0x1p-33f;
    }
    qf_kernels_best()->cast[QF_F32][dtype](x, count, pattern);
    char *w = allocate(n * width);
    for (uint64_t i = 0; i < n; i += count)
        memcpy(w + i * width, pattern, (n - i < count ? n - i : count) * width);
    return w;
}

/* The weight as it is quantized. */
static char *straight(const struct qf_plan *p, const char *stored)
{
    size_t width = qf_dtype_size(p->src_dtype);
    size_t rows = (size_t)p->rows;
    size_t cols = (size_t)p->cols;
    char *w = allocate(p->elem_count * width);
    if (!p->transposed) {
        memcpy(w, stored, (size_t)p->elem_count * width);
        return w;
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < cols; c++) {
            if (width == 4)
                ((uint32_t *)(void *)w)[r * cols + c] =
                    ((const uint32_t *)(const void *)stored)[c * rows + r];
            else
                ((uint16_t *)(void *)w)[r * cols + c] =
                    ((const uint16_t *)(const void *)stored)[c * rows + r];
        }
    }
    return w;
}

/* What the whole weight must become: one kernel call over it. */
struct expected {
    char *codes;
    float *floats; /* absmax, SCB or scales */
};

/* A group of a row after the other; a block of fp8 row by row. */
static void expect_scaled(const struct qf_plan *p, const char *w, struct expected *e)
{
    const struct qf_kernels *k = qf_kernels_best();
    const struct qf_codec_spec *spec = &p->spec;
    size_t width = qf_dtype_size(spec->dtype);
    size_t cols = (size_t)p->cols;
    size_t group = spec->group != 0 ? spec->group : cols;
    size_t band = spec->codec == QF_CODEC_FP8 ? group : 1;
    const struct qf_part *scale = qf_plan_part(p, QF_PART_SCALE);
    e->floats = allocate(scale->size);
    char *scales = (char *)e->floats;
    uint64_t codes_size = qf_plan_part(p, QF_PART_CODES)->size;
    for (size_t row = 0; row < p->rows; row += band) {
        for (size_t col = 0; col < cols; col += group) {
            float absmax = 0;
            float factor;
            size_t first = row * cols + col;
            for (size_t r = 0; r < band; r++)
                k->group_absmax[spec->dtype](w + (first + r * cols) * width, group,
                                             group, &absmax);
            qf_scale_store(spec, &absmax, 1, scales);
            qf_scale_factors(spec, &absmax, 1, &factor);
            scales += qf_dtype_size(scale->dtype);
            for (size_t r = 0; r < band; r++)
                k->scaled[qf_codec_info(spec->codec)->scaled][spec->dtype](
                    w + (first + r * cols) * width, group, group, &factor,
                    e->codes + (first + r * cols) * codes_size / p->elem_count);
        }
    }
    assert_true(scales == (char *)e->floats + scale->size);
}

static struct expected expect(const struct qf_plan *p, const char *stored)
{
    const struct qf_kernels *k = qf_kernels_best();
    enum qf_dtype d = p->spec.dtype;
    size_t n = (size_t)p->elem_count;
    size_t width = qf_dtype_size(d);
    char *src = straight(p, stored);
    char *w = allocate(n * width);
    k->cast[p->src_dtype][d](src, n, w);
    struct expected e;
    const struct qf_part *codes = qf_plan_part(p, QF_PART_CODES);
    e.codes = allocate(codes->size);
    if (p->spec.codec == QF_CODEC_INT8) {
        size_t cols = (size_t)p->cols;
        e.floats = allocate(p->rows * sizeof(float));
        for (size_t r = 0; r < p->rows; r++) {
            e.floats[r] = 0;
            k->row_absmax[d](w + r * cols * width, cols, &e.floats[r]);
            k->int8[d](w + r * cols * width, cols, e.floats[r],
                       (int8_t *)e.codes + r * cols);
        }
    } else if (qf_codec_info(p->spec.codec)->scaled != QF_SCALED_NONE) {
        expect_scaled(p, w, &e);
    } else {
        e.floats = allocate(p->block_count * sizeof(float));
        (p->spec.codec == QF_CODEC_FP4 ? k->fp4 : k->nf4)[d](w, n, p->spec.blocksize,
                                                             (uint8_t *)e.codes,
                                                             e.floats);
    }
    free(src);
    free(w);
    return e;
}

static void check_record(const struct qf_plan *p, uint64_t chunk, const char *record,
                         const struct expected *e)
{
    size_t end = 0;
    for (uint32_t i = 0; i < p->part_count; i++) {
        if (p->parts[i].stage != QF_STAGE_CHUNK)
            continue;
        size_t off;
        size_t size;
        qf_plan_chunk_slice(p, chunk, i, &off, &size);
        const char *want =
            p->parts[i].role == QF_PART_CODES ? e->codes : (const char *)e->floats;
        for (; end < off; end++)
            assert_int_equal(record[end], 0);
        assert_memory_equal(record + off, want + chunk * p->parts[i].chunk_stride,
                            size);
        end = off + size;
    }
}

static void check_weight(const struct qf_codec_spec *spec, enum qf_dtype src_dtype,
                         uint64_t rows, uint64_t cols, bool transposed)
{
    struct qf_plan p;
    uint64_t shape[2] = {transposed ? cols : rows, transposed ? rows : cols};
    assert_int_equal(qf_codec_plan(spec, src_dtype, shape, transposed, &p, NULL), 0);
    assert_int_equal(p.rows, rows);
    char *stored = random_weight(src_dtype, p.elem_count);
    struct memory m = {.data = stored,
                       .size = p.elem_count * qf_dtype_size(src_dtype),
                       .bad_from = UINT64_MAX};
    struct expected e = expect(&p, stored);
    qf_backend *backend = NULL;
    assert_int_equal(qf_cpu_backend_open(NULL, &backend, NULL), 0);
    struct qf_job *jobs = calloc((size_t)p.chunk_count, sizeof *jobs);
    assert_non_null(jobs);
    for (uint64_t c = 0; c < p.chunk_count; c++)
        jobs[c] = (struct qf_job){.plan = &p,
                                  .chunk = c,
                                  .source = {.read = read_memory, .ctx = &m, .fd = -1},
                                  .record = allocate(qf_plan_chunk_size(&p, c)),
                                  .rc = 1};
    qf_backend_encode(backend, jobs, (size_t)p.chunk_count);
    for (uint64_t c = 0; c < p.chunk_count; c++) {
        assert_int_equal(jobs[c].rc, 0);
        check_record(&p, c, jobs[c].record, &e);
        free(jobs[c].record);
    }
    qf_backend_close(backend);
    free(jobs);
    free(stored);
    free(e.codes);
    free(e.floats);
}

/* The next larger shape that the codec takes; fp8, whose shapes grow most, with fewer
 * columns where there would be more than 4 Mi elements. */
static void check_fitting(const struct qf_codec_spec *spec, enum qf_dtype src_dtype,
                          uint64_t rows, uint64_t cols, bool transposed)
{
    uint64_t group = spec->group != 0 ? spec->group : 1;
    cols = (cols + group - 1) / group * group;
    if (spec->codec == QF_CODEC_FP8) {
        rows = (rows + group - 1) / group * group;
        if (cols > group && rows * cols > (4u << 20))
            cols = (4u << 20) / rows / group * group;
    }
    check_weight(spec, src_dtype, rows, cols, transposed);
}

/* Shapes about the edges of blocks, pieces (64 Ki elements of fp32) and chunks. */
static const uint64_t shapes[][2] = {{1, 1},       {3, 7},       {64, 64},
                                     {65, 1009},   {256, 256},   {1, 65537},
                                     {2, 131073},  {1024, 1024}, {1023, 1025},
                                     {1025, 1025}, {3, 700000},  {2, 1100000},
                                     {40000, 27}};

static void test_plain(void **state)
{
    (void)state;
    for (int codec = 0; codec < QF_CODEC_GGUF_Q8_0; codec++) {
        struct qf_codec_spec spec = qf_codec_default((enum qf_codec)codec, QF_BF16);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            check_fitting(&spec, QF_BF16, shapes[i][0], shapes[i][1], false);
    }
}

static void test_casts(void **state)
{
    (void)state;
    for (int from = 0; from < QF_FLOAT_COUNT; from++) {
        for (int to = 0; to < QF_FLOAT_COUNT; to++) {
            for (int codec = QF_CODEC_FP4; codec < QF_CODEC_GGUF_Q8_0; codec++) {
                struct qf_codec_spec spec =
                    qf_codec_default((enum qf_codec)codec, (enum qf_dtype)to);
                check_fitting(&spec, (enum qf_dtype)from, 300, 701, false);
                check_fitting(&spec, (enum qf_dtype)from, 2, 140001, false);
                check_fitting(&spec, (enum qf_dtype)from, 301, 70, true);
            }
        }
    }
}

static void test_transposed(void **state)
{
    (void)state;
    static const uint64_t more[][2] = {
        {2304, 768}, {3072, 400}, {100000, 12}, {12, 100000}, {400, 3001}};
    struct qf_codec_spec nf4 = qf_codec_default(QF_CODEC_NF4, QF_BF16);
    struct qf_codec_spec int8 = qf_codec_default(QF_CODEC_INT8, QF_BF16);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_weight(i % 2 == 0 ? &nf4 : &int8, QF_F32, shapes[i][0], shapes[i][1],
                     true);
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        check_weight(&nf4, QF_BF16, more[i][0], more[i][1], true);
        check_weight(&int8, QF_BF16, more[i][0], more[i][1], true);
    }
    for (int codec = QF_CODEC_INT8 + 1; codec < QF_CODEC_GGUF_Q8_0; codec++) {
        struct qf_codec_spec spec = qf_codec_default((enum qf_codec)codec, QF_BF16);
        check_fitting(&spec, QF_BF16, 300, 1000, true);
        check_fitting(&spec, QF_F32, 2, 700000, true);
    }
}

/* fp8: bands of one piece, of several, of rows wider than a piece and than a window of
 * a transposed weight. */
static void test_bands(void **state)
{
    (void)state;
    struct qf_codec_spec spec = qf_codec_default(QF_CODEC_FP8, QF_BF16);
    static const uint64_t bands[][2] = {{128, 128},   {384, 512},    {1280, 1024},
                                        {256, 1152},  {256, 65536},  {128, 131072},
                                        {128, 65664}, {128, 131200}, {8192, 256}};
    for (size_t i = 0; i < sizeof bands / sizeof *bands; i++) {
        check_weight(&spec, QF_BF16, bands[i][0], bands[i][1], false);
        check_weight(&spec, QF_F32, bands[i][0], bands[i][1], i % 2 == 0);
    }
}

/* Groups of other sizes than a codec has by default. */
static void test_groups(void **state)
{
    (void)state;
    static const uint32_t groups[] = {8, 32, 1024, 8200, 100000};
    for (int codec = QF_CODEC_INT8 + 1; codec < QF_CODEC_GGUF_Q8_0; codec++) {
        struct qf_codec_spec spec = qf_codec_default((enum qf_codec)codec, QF_F16);
        for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
            spec.group = groups[i];
            if (codec != QF_CODEC_FP8)
                check_weight(&spec, QF_F16, 7, 3 * (uint64_t)groups[i], false);
        }
        spec.group = 0;
        if (codec != QF_CODEC_FP8)
            check_weight(&spec, QF_F32, 3, 160000, codec % 2 == 0);
    }
}

static void test_blocksizes(void **state)
{
    (void)state;
    struct qf_codec_spec spec = qf_codec_default(QF_CODEC_NF4, QF_F16);
    for (spec.blocksize = 64; spec.blocksize <= 4096; spec.blocksize *= 2) {
        check_weight(&spec, QF_F16, 259, 1027, false);
        check_weight(&spec, QF_F32, 257, 259, true);
    }
    spec.blocksize = 4096;
    check_weight(&spec, QF_F16, 1025, 1027, false);
}

/* A read error is that of its job alone. */
static void test_read_error(void **state)
{
    (void)state;
    struct qf_backend *backend = NULL;
    assert_int_equal(qf_cpu_backend_open(NULL, &backend, NULL), 0);
    for (int i = 0; i < 8; i++) {
        static const enum qf_codec codecs[] = {QF_CODEC_NF4, QF_CODEC_INT8,
                                               QF_CODEC_CT_W8A8, QF_CODEC_FP8};
        struct qf_codec_spec spec = qf_codec_default(codecs[i / 2], QF_F32);
        /* 3 rows of 700,000: int8 reads each twice; 3 chunks in all codecs. */
        struct qf_plan p;
        uint64_t shape[2] = {3, 700000};
        if (spec.codec == QF_CODEC_FP8) {
            shape[i % 2] = 384;
            shape[1 - i % 2] = 8192;
        }
        assert_int_equal(qf_codec_plan(&spec, QF_F32, shape, i % 2 != 0, &p, NULL), 0);
        char *stored = random_weight(QF_F32, p.elem_count);
        uint64_t size = p.elem_count * 4;
        struct memory good = {.data = stored, .size = size, .bad_from = UINT64_MAX};
        struct memory bad = {.data = stored, .size = size, .bad_from = 100000};
        struct qf_job jobs[3];
        for (size_t c = 0; c < 3; c++) {
            size_t record = qf_plan_chunk_size(&p, c % p.chunk_count);
            jobs[c] =
                (struct qf_job){.plan = &p,
                                .chunk = c % p.chunk_count,
                                .source = {.read = read_memory, .ctx = &good, .fd = -1},
                                .record = allocate(record),
                                .rc = 1};
        }
        jobs[0].source.ctx = &bad;
        qf_backend_encode(backend, jobs, 3);
        assert_int_equal(jobs[0].rc, -EIO);
        assert_int_equal(jobs[1].rc, 0);
        assert_int_equal(jobs[2].rc, 0);
        struct expected e = expect(&p, stored);
        check_record(&p, jobs[1].chunk, jobs[1].record, &e);
        check_record(&p, jobs[2].chunk, jobs[2].record, &e);
        for (size_t c = 0; c < 3; c++)
            free(jobs[c].record);
        free(stored);
        free(e.codes);
        free(e.floats);
    }
    qf_backend_close(backend);
}

struct thread {
    qf_backend *backend;
    struct qf_job job;
    pthread_t id;
};

static void *encode_often(void *arg)
{
    struct thread *t = arg;
    for (int i = 0; i < 20; i++)
        qf_backend_encode(t->backend, &t->job, 1);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct qf_codec_spec spec = qf_codec_default(QF_CODEC_DQ, QF_BF16);
    struct qf_plan p;
    uint64_t shape[2] = {130, 999};
    assert_int_equal(qf_codec_plan(&spec, QF_F32, shape, true, &p, NULL), 0);
    char *stored = random_weight(QF_F32, p.elem_count);
    struct memory m = {.data = stored,
                       .size = p.elem_count * 4,
                       .bad_from = UINT64_MAX};
    struct expected e = expect(&p, stored);
    struct thread threads[4];
    qf_backend *backend = NULL;
    assert_int_equal(qf_cpu_backend_open(NULL, &backend, NULL), 0);
    for (int i = 0; i < 4; i++) {
        threads[i] = (struct thread){
            .backend = backend,
            .job = {.plan = &p,
                    .source = {.read = read_memory, .ctx = &m, .fd = -1},
                    .record = allocate(qf_plan_chunk_size(&p, 0))}};
        assert_int_equal(pthread_create(&threads[i].id, NULL, encode_often,
                                        &threads[i]),
                         0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i].id, NULL);
        assert_int_equal(threads[i].job.rc, 0);
        check_record(&p, 0, threads[i].job.record, &e);
        free(threads[i].job.record);
    }
    qf_backend_close(backend);
    free(stored);
    free(e.codes);
    free(e.floats);
}

static void test_open(void **state)
{
    (void)state;
    qf_backend *backend = NULL;
    struct qf_err err = {""};
    assert_int_equal(qf_cpu_backend_open("sse9", &backend, &err), -EINVAL);
    assert_non_null(strstr(err.text, "sse9"));
    assert_null(backend);
    for (int i = 0; i < QF_ISA_COUNT; i++) {
        const char *name = qf_isa_name((enum qf_isa)i);
        int rc = qf_cpu_backend_open(name, &backend, &err);
        if (i > (int)qf_isa_detect()) {
            assert_int_equal(rc, -ENOTSUP);
            assert_non_null(strstr(err.text, name));
            continue;
        }
        assert_int_equal(rc, 0);
        assert_string_equal(qf_backend_name(backend), name);
        qf_backend_encode(backend, NULL, 0);
        qf_backend_close(backend);
        backend = NULL;
    }
    qf_backend_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),      cmocka_unit_test(test_casts),
        cmocka_unit_test(test_transposed), cmocka_unit_test(test_blocksizes),
        cmocka_unit_test(test_read_error), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_open),       cmocka_unit_test(test_bands),
        cmocka_unit_test(test_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
