/* SPDX-License-Identifier: Apache-2.0 */
/* The whole road from a stored weight to its parts. After cmocka.h. */
#ifndef QF_TESTS_GOLDEN_PARTS_H
#define QF_TESTS_GOLDEN_PARTS_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "quant/backend.h"
#include "quant/codec.h"

struct parts_source {
    const char *data;
    uint64_t size;
};

static inline int parts_read(void *ctx, void *buf, size_t size, uint64_t off)
{
    const struct parts_source *m = ctx;
    if (off > m->size || size > m->size - off)
        return -ESTALE;
    memcpy(buf, m->data + off, size);
    return 0;
}

struct parts {
    char *data[QF_PARTS_MAX]; /* owned; of each part its size bytes */
};

static inline char *parts_allocate(uint64_t size)
{
    char *p = aligned_alloc(64, (size_t)(size + 64) / 64 * 64);
    assert_non_null(p);
    memset(p, 0xa5, (size_t)size);
    return p;
}

static inline void parts_encode(qf_backend *backend, const struct qf_plan *plan,
                                struct parts_source *source, struct parts *r)
{
    for (uint64_t chunk = 0; chunk < plan->chunk_count; chunk++) {
        char *record = parts_allocate(qf_plan_chunk_size(plan, chunk));
        struct qf_job job = {
            .plan = plan,
            .chunk = chunk,
            .source = {.read = parts_read, .ctx = source, .fd = -1},
            .record = record,
            .rc = 1,
        };
        qf_backend_encode(backend, &job, 1);
        assert_int_equal(job.rc, 0);
        for (uint32_t i = 0; i < plan->part_count; i++) {
            const struct qf_part *part = &plan->parts[i];
            if (part->stage != QF_STAGE_CHUNK)
                continue;
            size_t off;
            size_t size;
            qf_plan_chunk_slice(plan, chunk, i, &off, &size);
            memcpy(r->data[i] + chunk * part->chunk_stride, record + off, size);
        }
        free(record);
    }
}

static inline void parts_make(qf_backend *backend, const struct qf_plan *plan,
                              struct parts_source *source, struct parts *r)
{
    for (uint32_t i = 0; i < plan->part_count; i++) {
        r->data[i] = parts_allocate(plan->parts[i].size);
        if (plan->parts[i].stage == QF_STAGE_PLAN)
            qf_codec_fill(plan, i, r->data[i]);
    }
    parts_encode(backend, plan, source, r);
    if (qf_plan_seal_size(plan) == 0)
        return;
    const struct qf_part *absmax = qf_plan_part(plan, QF_PART_BLOCK_ABSMAX);
    assert_non_null(absmax);
    char *record = parts_allocate(qf_plan_seal_size(plan));
    qf_codec_seal(plan, (float *)(void *)r->data[absmax - plan->parts], record);
    for (uint32_t i = 0; i < plan->part_count; i++)
        if (plan->parts[i].stage == QF_STAGE_SEAL)
            memcpy(r->data[i], record + qf_plan_seal_offset(plan, i),
                   (size_t)plan->parts[i].size);
    free(record);
}

static inline void parts_free(const struct qf_plan *plan, struct parts *r)
{
    for (uint32_t i = 0; i < plan->part_count; i++)
        free(r->data[i]);
}

#endif
