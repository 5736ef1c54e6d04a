/* SPDX-License-Identifier: Apache-2.0 */
#include "compare.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/half.h"

#define ALIGN 64u

/* ---- numbers, as in tests/kernels ---- */

static uint32_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 32);
}

static float unit(uint64_t *state)
{
    return (float)(int32_t)next(state) * 0x1p-31f;
}

static uint32_t normal_bits(uint64_t *state)
{
    float x = unit(state) + unit(state) + unit(state) + unit(state);
    return qf_f32_bits(x * 0.02f);
}

static uint32_t number(enum number_class class, size_t i, uint64_t *state)
{
    uint32_t u = next(state);
    uint32_t sign = u & 0x80000000u;
    switch (class) {
    case UNIFORM:
        return qf_f32_bits(unit(state));
    case NORMAL:
        return normal_bits(state);
    case HEAVY:
        return (u & 0x7f800000u) == 0x7f800000u ? sign : u;
    case BITS:
        return u;
    case DENORMAL:
        return u & 0x807fffffu;
    case ZEROS:
        return i / 64 % 3 == 0 && u % 97 == 0 ? normal_bits(state) : sign;
    case INFINITIES:
        return u % 31 == 0 ? sign | 0x7f800000u : normal_bits(state);
    case NANS:
        return u % 13 == 0 ? u | 0x7f800000u : normal_bits(state);
    case ALL_NAN:
        return u | 0x7fc00000u;
    default:
        return sign | ((u >> 8 & 3u) << 23) | (u & 0x7fffffu);
    }
}

static uint16_t number16(enum qf_dtype dtype, enum number_class class, size_t i,
                         uint64_t *state)
{
    uint32_t u = number(class, i, state);
    if (dtype == QF_BF16)
        return (uint16_t)(u >> 16);
    if (class == HEAVY || class == BITS)
        return (uint16_t)(class == HEAVY && (u & 0x7c00u) == 0x7c00u ? 0 : u);
    if (class == DENORMAL || class == TINY)
        return (uint16_t)(u >> 16 & 0x87ffu);
    return qf_f32_bits_to_f16(u);
}

void numbers_fill(void *out, enum qf_dtype dtype, size_t n, enum number_class class,
                  uint64_t seed)
{
    uint64_t state = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15);
    for (size_t i = 0; i < n; i++) {
        if (dtype == QF_F32) {
            uint32_t u = number(class, i, &state);
            memcpy((char *)out + 4 * i, &u, sizeof u);
        } else {
            uint16_t h = number16(dtype, class, i, &state);
            memcpy((char *)out + 2 * i, &h, sizeof h);
        }
    }
}

/* ---- weights ---- */

struct weight weight_of(const void *data, enum qf_dtype dtype, uint64_t rows,
                        uint64_t cols)
{
    size_t size = (size_t)(rows * cols) * qf_dtype_size(dtype);
    return (struct weight){.dtype = dtype,
                           .rows = rows,
                           .cols = cols,
                           .data = data,
                           .size = size,
                           .fd = -1,
                           .fails_at = size};
}

static int read_weight(void *ctx, void *buf, size_t size, uint64_t off)
{
    const struct weight *w = ctx;
    assert(off <= w->size && size <= w->size - off);
    if (w->fails_at >= off && w->fails_at - off < size)
        return w->read_rc;
    memcpy(buf, (const char *)w->data + off, size);
    return 0;
}

void weight_jobs(const struct weight *w, const struct qf_plan *plan, uint64_t first,
                 size_t count, void *records, size_t stride, struct qf_job *jobs)
{
    assert(stride % ALIGN == 0);
    for (size_t i = 0; i < count; i++)
        jobs[i] = (struct qf_job){
            .plan = plan,
            .chunk = first + i,
            .source = {.read = read_weight,
                       .ctx = (void *)(uintptr_t)w,
                       .fd = w->fd,
                       .fd_off = w->fd_off},
            .record = (char *)records + i * stride,
            .rc = -1,
        };
}

_Noreturn static void fail(const struct qf_plan *plan, const struct weight *w,
                           uint64_t chunk, size_t at, const char *what)
{
    printf("FAIL %s blocksize %u, %s as %s [%llu, %llu]%s: chunk %llu, byte %zu: %s\n",
           qf_codec_name(plan->spec.codec), plan->spec.blocksize,
           qf_dtype_name(w->dtype), qf_dtype_name(plan->spec.dtype),
           (unsigned long long)w->rows, (unsigned long long)w->cols,
           w->fd >= 0 ? " in a file" : "", (unsigned long long)chunk, at, what);
    exit(1);
}

static void same_records(const struct qf_plan *plan, const struct weight *w,
                         const struct qf_job *got, const struct qf_job *want)
{
    size_t size = qf_plan_chunk_size(plan, got->chunk);
    if (got->rc != 0 || want->rc != 0)
        fail(plan, w, got->chunk, 0, "not encoded");
    if (memcmp(got->record, want->record, size) == 0)
        return;
    const unsigned char *a = got->record;
    const unsigned char *b = want->record;
    size_t at = 0;
    while (a[at] == b[at])
        at++;
    char text[64];
    snprintf(text, sizeof text, "%02x, not %02x", a[at], b[at]);
    fail(plan, w, got->chunk, at, text);
}

uint64_t compare_chunks(qf_backend *got, qf_backend *want, const struct qf_plan *plan,
                        const struct weight *w, uint64_t first, uint64_t end,
                        size_t batch)
{
    size_t stride = (qf_plan_chunk_size(plan, 0) + ALIGN - 1) / ALIGN * ALIGN;
    char *records = aligned_alloc(ALIGN, 2 * batch * stride);
    struct qf_job *jobs = calloc(2 * batch, sizeof *jobs);
    assert(records != NULL && jobs != NULL);
    uint64_t compared = 0;
    for (uint64_t at = first; at < end; at += batch) {
        size_t n = end - at < batch ? (size_t)(end - at) : batch;
        memset(records, 0x5a, 2 * batch * stride);
        weight_jobs(w, plan, at, n, records, stride, jobs);
        weight_jobs(w, plan, at, n, records + batch * stride, stride, jobs + batch);
        qf_backend_encode(got, jobs, n);
        qf_backend_encode(want, jobs + batch, n);
        for (size_t i = 0; i < n; i++) {
            same_records(plan, w, &jobs[i], &jobs[batch + i]);
            compared += qf_plan_chunk_size(plan, at + i);
        }
    }
    free(jobs);
    free(records);
    return compared;
}

uint64_t compare(qf_backend *got, qf_backend *want, const struct qf_codec_spec *spec,
                 const struct weight *w, size_t batch)
{
    struct qf_plan plan;
    struct qf_err err;
    uint64_t shape[2] = {w->rows, w->cols};
    int rc = qf_codec_plan(spec, w->dtype, shape, w->transposed, &plan, &err);
    assert(rc == 0);
    if (plan.chunk_count == 0)
        return 0;
    return compare_chunks(got, want, &plan, w, 0, plan.chunk_count, batch);
}
