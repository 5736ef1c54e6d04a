/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/measure.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "quant/gguf.h"

#define CHUNK        ((size_t)1 << 20)
#define ROW          ((size_t)4096)
#define BLOCK        ((size_t)64)
#define ALIGNMENT    ((size_t)64)
#define SCALAR_SHARE 16

struct bench_case {
    enum qf_measured what;
    const struct qf_kernels *kernels;
    size_t chunks;
    double seconds[QF_MEASURE_PASSES_MAX];
};

struct measure {
    enum qf_dtype dtype;
    size_t width;
    char *src;
    char *dst;
    float *absmax;
    uint8_t *nested;
    float nested_absmax[CHUNK / BLOCK / 256];
    size_t count;
    struct bench_case cases[QF_MEASURE_ROWS_MAX];
};

const char *qf_measured_name(enum qf_measured what)
{
    static const char *const names[QF_MEASURE_COUNT] = {"memcpy", "nf4",    "fp4",
                                                        "dq",     "int8",   "q8_0",
                                                        "q4_0",   "q5_1",   "to F32",
                                                        "to F16", "to BF16"};
    return names[what];
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void run_chunk(struct measure *m, const struct bench_case *b, const char *in,
                      char *out)
{
    const struct qf_kernels *k = b->kernels;
    switch (b->what) {
    case QF_MEASURE_MEMCPY:
        memcpy(out, in, CHUNK * m->width);
        break;
    case QF_MEASURE_NF4:
        k->nf4[m->dtype](in, CHUNK, BLOCK, (uint8_t *)out, m->absmax);
        break;
    case QF_MEASURE_FP4:
        k->fp4[m->dtype](in, CHUNK, BLOCK, (uint8_t *)out, m->absmax);
        break;
    case QF_MEASURE_DQ:
        k->nf4[m->dtype](in, CHUNK, BLOCK, (uint8_t *)out, m->absmax);
        k->nested(m->absmax, CHUNK / BLOCK, k->mean(m->absmax, CHUNK / BLOCK),
                  m->nested, m->nested_absmax);
        break;
    case QF_MEASURE_INT8:
        for (size_t i = 0; i < CHUNK; i += ROW) {
            float scb = 0;
            k->row_absmax[m->dtype](in + i * m->width, ROW, &scb);
            k->int8[m->dtype](in + i * m->width, ROW, scb, (int8_t *)out + i);
        }
        break;
    case QF_MEASURE_Q8_0:
        k->gguf[QF_GGUF_Q8_0][m->dtype](in, CHUNK / QF_GGUF_BLOCK, (uint8_t *)out);
        break;
    case QF_MEASURE_Q4_0:
        k->gguf[QF_GGUF_Q4_0][m->dtype](in, CHUNK / QF_GGUF_BLOCK, (uint8_t *)out);
        break;
    case QF_MEASURE_Q5_1:
        k->gguf[QF_GGUF_Q5_1][m->dtype](in, CHUNK / QF_GGUF_BLOCK, (uint8_t *)out);
        break;
    default:
        k->cast[m->dtype][b->what - QF_MEASURE_CASTS](in, CHUNK, out);
        break;
    }
}

static double run_pass(struct measure *m, const struct bench_case *b)
{
    size_t size = CHUNK * m->width;
    double start = now();
    for (size_t c = 0; c < b->chunks; c++)
        run_chunk(m, b, m->src + c * size, m->dst + c * size);
    return now() - start;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Weights of about the size that models have. */
static void fill(struct measure *m, size_t size)
{
    uint32_t state = 1;
    const struct qf_kernels *k = qf_kernels_for(QF_ISA_SCALAR);
    for (size_t i = 0; i < size / m->width; i++) {
        float x = 0;
        for (int j = 0; j < 4; j++) {
            state = state * 1664525u + 1013904223u;
            x += (float)(int32_t)state * 0x1p-37f;
        }
        k->cast[QF_F32][m->dtype](&x, 1, m->src + i * m->width);
    }
}

/* A dtype is not cast to itself, and no weight is ever widened to F32. */
static bool is_wanted(const struct measure *m, int what, bool casts)
{
    int to = what - QF_MEASURE_CASTS;
    return to < 0 || (casts && to != (int)m->dtype && to != (int)QF_F32);
}

static void list_cases(struct measure *m, size_t chunks, bool casts)
{
    size_t few = (chunks + SCALAR_SHARE - 1) / SCALAR_SHARE;
    m->cases[m->count++] =
        (struct bench_case){.what = QF_MEASURE_MEMCPY, .chunks = chunks};
    for (int i = (int)qf_isa_detect(); i >= QF_ISA_SCALAR; i--)
        for (int w = QF_MEASURE_NF4; w < QF_MEASURE_COUNT; w++)
            if (is_wanted(m, w, casts))
                m->cases[m->count++] =
                    (struct bench_case){.what = (enum qf_measured)w,
                                        .kernels = qf_kernels_for((enum qf_isa)i),
                                        .chunks = i == QF_ISA_SCALAR ? few : chunks};
    assert(m->count <= QF_MEASURE_ROWS_MAX);
}

static int run_passes(struct measure *m, const struct qf_measure_options *options)
{
    for (unsigned p = 0; p <= options->passes; p++)
        for (size_t i = 0; i < m->count; i++) {
            if (options->stop != NULL && options->stop(options->arg))
                return -EINTR;
            /* The first pass warms up; the next one writes over it. */
            m->cases[i].seconds[p != 0 ? p - 1 : 0] = run_pass(m, &m->cases[i]);
        }
    return 0;
}

static void tell(struct measure *m, unsigned passes, struct qf_measure_row *rows)
{
    for (size_t i = 0; i < m->count; i++) {
        struct bench_case *b = &m->cases[i];
        qsort(b->seconds, passes, sizeof *b->seconds, compare);
        double rate = (double)(b->chunks * CHUNK * m->width) / b->seconds[passes / 2];
        rows[i] = (struct qf_measure_row){
            .what = b->what,
            .isa = b->kernels != NULL ? b->kernels->name : NULL,
            .rate = rate,
            .memcpy_ratio = i != 0 ? rate / rows[0].rate : 1,
        };
    }
}

int qf_measure_kernels(const struct qf_measure_options *options, enum qf_dtype dtype,
                       struct qf_measure_row *rows, size_t *count)
{
    size_t width = dtype == QF_F32 ? 4 : 2;
    size_t size = options->size / (CHUNK * width) * (CHUNK * width);
    if (options->size < QF_MEASURE_SIZE_MIN || options->passes < 1 ||
        options->passes > QF_MEASURE_PASSES_MAX)
        return -EINVAL;
    struct measure *m = calloc(1, sizeof *m);
    if (m == NULL)
        return -ENOMEM;
    m->dtype = dtype;
    m->width = width;
    m->src = aligned_alloc(ALIGNMENT, size);
    m->dst = aligned_alloc(ALIGNMENT, size); /* nothing writes more than it reads */
    m->absmax = aligned_alloc(ALIGNMENT, CHUNK / BLOCK * sizeof *m->absmax);
    m->nested = aligned_alloc(ALIGNMENT, CHUNK / BLOCK);
    int rc = -ENOMEM;
    if (m->src != NULL && m->dst != NULL && m->absmax != NULL && m->nested != NULL) {
        memset(m->dst, 1, size);
        fill(m, size);
        list_cases(m, size / (CHUNK * width), options->casts);
        rc = run_passes(m, options);
    }
    if (rc == 0) {
        tell(m, options->passes, rows);
        *count = m->count;
    }
    free(m->src);
    free(m->dst);
    free(m->absmax);
    free(m->nested);
    free(m);
    return rc;
}
