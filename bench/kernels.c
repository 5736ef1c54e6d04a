/* SPDX-License-Identifier: Apache-2.0 */
/* Source bytes a second of every kernel, on one thread, beside memcpy of the same
 * bytes. The source is larger than any cache; the cases of a dtype take turns, so that
 * a machine whose speed drifts does not favour one of them; medians. Work is handed
 * over in chunks of 1 Mi elements, as the backends do, and memcpy gets the same chunks.
 * The scalar kernels, fifty times slower, get a sixteenth of the source.
 *
 *   qf_bench_kernels [MiB of source] [passes] */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "quant/kernels.h"

#define CHUNK        ((size_t)1 << 20)
#define ROW          ((size_t)4096)
#define CASE_MAX     64
#define PASS_MAX     99
#define SCALAR_SHARE 16

enum what { MEMCPY, NF4, FP4, DQ, INT8, CAST_F32, CAST_F16, CAST_BF16, WHAT_COUNT };

static const char *const what_names[WHAT_COUNT] = {"memcpy", "nf4",    "fp4",
                                                   "dq",     "int8",   "to F32",
                                                   "to F16", "to BF16"};

struct bench {
    enum what what;
    const struct qf_kernels *kernels;
    size_t chunks;
    double seconds[PASS_MAX];
};

static char *src;
static char *dst;
static float *absmax;
static uint8_t *nested;
static float nested_absmax[CHUNK / 64 / 256];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void run_chunk(const struct bench *b, enum qf_dtype dtype, const char *in,
                      size_t width, char *out)
{
    const struct qf_kernels *k = b->kernels;
    switch (b->what) {
    case MEMCPY:
        memcpy(out, in, CHUNK * width);
        break;
    case NF4:
        k->nf4[dtype](in, CHUNK, 64, (uint8_t *)out, absmax);
        break;
    case FP4:
        k->fp4[dtype](in, CHUNK, 64, (uint8_t *)out, absmax);
        break;
    case DQ:
        k->nf4[dtype](in, CHUNK, 64, (uint8_t *)out, absmax);
        k->nested(absmax, CHUNK / 64, k->mean(absmax, CHUNK / 64), nested,
                  nested_absmax);
        break;
    case INT8:
        for (size_t i = 0; i < CHUNK; i += ROW) {
            float scb = 0;
            k->row_absmax[dtype](in + i * width, ROW, &scb);
            k->int8[dtype](in + i * width, ROW, scb, (int8_t *)out + i);
        }
        break;
    default:
        k->cast[dtype][b->what - CAST_F32](in, CHUNK, out);
        break;
    }
}

static double run_pass(const struct bench *b, enum qf_dtype dtype)
{
    size_t width = dtype == QF_F32 ? 4 : 2;
    double start = now();
    for (size_t c = 0; c < b->chunks; c++)
        run_chunk(b, dtype, src + c * CHUNK * width, width, dst + c * CHUNK * width);
    return now() - start;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Weights of about the size that models have. */
static void fill(enum qf_dtype dtype, size_t size)
{
    uint32_t state = 1;
    size_t width = dtype == QF_F32 ? 4 : 2;
    const struct qf_kernels *k = qf_kernels_for(QF_ISA_SCALAR);
    for (size_t i = 0; i < size / width; i++) {
        float x = 0;
        for (int j = 0; j < 4; j++) {
            state = state * 1664525u + 1013904223u;
            x += (float)(int32_t)state * 0x1p-37f;
        }
        k->cast[QF_F32][dtype](&x, 1, src + i * width);
    }
}

static size_t list_cases(struct bench *cases, enum qf_dtype dtype, size_t chunks)
{
    size_t n = 0, few = (chunks + SCALAR_SHARE - 1) / SCALAR_SHARE;
    cases[n++] = (struct bench){.what = MEMCPY, .chunks = chunks};
    for (int i = (int)qf_isa_detect(); i >= QF_ISA_SCALAR; i--)
        for (int w = NF4; w < WHAT_COUNT; w++)
            if (w != (int)(CAST_F32 + dtype) && w != (dtype == QF_F32 ? -1 : CAST_F32))
                cases[n++] =
                    (struct bench){.what = (enum what)w,
                                   .kernels = qf_kernels_for((enum qf_isa)i),
                                   .chunks = i == QF_ISA_SCALAR ? few : chunks};
    assert(n <= CASE_MAX);
    return n;
}

static void bench_dtype(enum qf_dtype dtype, size_t size, int passes)
{
    static struct bench cases[CASE_MAX];
    size_t chunk_size = CHUNK * (dtype == QF_F32 ? 4 : 2);
    size_t count = list_cases(cases, dtype, size / chunk_size);
    fill(dtype, size);
    for (int p = -1; p < passes; p++) /* the first pass warms up */
        for (size_t i = 0; i < count; i++)
            cases[i].seconds[p < 0 ? 0 : p] = run_pass(&cases[i], dtype);
    double memcpy_rate = 0;
    for (size_t i = 0; i < count; i++) {
        struct bench *b = &cases[i];
        qsort(b->seconds, (size_t)passes, sizeof *b->seconds, compare);
        double rate = (double)(b->chunks * chunk_size) / b->seconds[passes / 2] * 1e-9;
        if (b->what == MEMCPY)
            memcpy_rate = rate;
        printf("%-5s %-7s %-8s %6.2f GB/s  %.2f\n", qf_dtype_name(dtype),
               b->kernels != NULL ? b->kernels->name : "", what_names[b->what], rate,
               rate / memcpy_rate);
    }
}

int main(int argc, char **argv)
{
    size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 512;
    int passes = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 7;
    size_t size = mib << 20;
    if (size < 4 * CHUNK || passes < 1 || passes > PASS_MAX) {
        fprintf(stderr, "usage: qf_bench_kernels [MiB of source >= 4] [passes 1-99]\n");
        return 2;
    }
    src = aligned_alloc(64, size);
    dst = aligned_alloc(64, 2 * size); /* a cast to F32 doubles */
    absmax = aligned_alloc(64, CHUNK / 64 * sizeof *absmax);
    nested = aligned_alloc(64, CHUNK / 64);
    if (src == NULL || dst == NULL || absmax == NULL || nested == NULL) {
        fprintf(stderr, "out of memory\n");
        return 1;
    }
    memset(dst, 1, 2 * size);
    for (int d = 0; d < QF_FLOAT_COUNT; d++)
        bench_dtype((enum qf_dtype)d, size, passes);
    free(src);
    free(dst);
    free(absmax);
    free(nested);
    return 0;
}
