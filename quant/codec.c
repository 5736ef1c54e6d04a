/* SPDX-License-Identifier: Apache-2.0 */
/* A plan is arithmetic on dtype and shape and nothing else, so that sizes and headers
 * cost no read. Chunks are cut so that a record fits a cache value: 4-bit chunks are
 * QF_CHUNK_ELEMS elements (whole blocks of every size, whole bytes), int8 chunks as
 * many whole rows as fit, for a row's codes depend on all of the row.
 *
 * In a record every slice begins at a multiple of RECORD_ALIGN, so that slices of
 * floats can be used where they lie; the bytes between slices are zero. A record ends
 * with its last slice. */
#include "quant/codec.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "quant/kernels.h"
#include "quant/qstate.h"
#include "quant/tables.h"

#define RECORD_ALIGN 64u
/* What a cache may put around a record. */
#define RECORD_SIZE_MAX (QF_STORED_SIZE_MAX - 64u)
/* Elements of a tensor: sizes of parts, in bytes, stay far from 2^64. */
#define ELEMS_MAX (UINT64_C(1) << 58)

static const char *const codec_names[QF_CODEC_COUNT] = {
    [QF_CODEC_NF4] = "nf4",
    [QF_CODEC_FP4] = "fp4",
    [QF_CODEC_DQ] = "dq",
    [QF_CODEC_INT8] = "int8",
};

const char *qf_codec_name(enum qf_codec codec)
{
    assert(codec < QF_CODEC_COUNT);
    return codec_names[codec];
}

bool qf_codec_from_name(const char *name, enum qf_codec *out)
{
    for (int i = 0; i < QF_CODEC_COUNT; i++) {
        if (strcmp(codec_names[i], name) == 0) {
            *out = (enum qf_codec)i;
            return true;
        }
    }
    return false;
}

struct qf_codec_spec qf_codec_default(enum qf_codec codec, enum qf_dtype dtype)
{
    return (struct qf_codec_spec){
        .codec = codec,
        .blocksize = QF_BLOCKSIZE_DEFAULT,
        .dtype = dtype,
        .storage = QF_U8,
    };
}

/* ---- parts ---- */

static struct qf_part *add_part(struct qf_plan *plan, enum qf_part_role role,
                                enum qf_stage stage, const char *suffix,
                                enum qf_dtype dtype)
{
    assert(plan->part_count < QF_PARTS_MAX);
    struct qf_part *part = &plan->parts[plan->part_count++];
    *part = (struct qf_part){.role = role, .stage = stage, .dtype = dtype};
    snprintf(part->suffix, sizeof part->suffix, "%s", suffix);
    return part;
}

/* A part of rank 1. */
static struct qf_part *add_vector(struct qf_plan *plan, enum qf_part_role role,
                                  enum qf_stage stage, const char *suffix,
                                  enum qf_dtype dtype, uint64_t count)
{
    struct qf_part *part = add_part(plan, role, stage, suffix, dtype);
    part->rank = 1;
    part->shape[0] = count;
    part->size = count * qf_dtype_size(dtype);
    return part;
}

static int add_packed_codes(struct qf_plan *plan, struct qf_err *err)
{
    enum qf_dtype storage = plan->spec.storage;
    uint64_t size = plan->elem_count / 2 + plan->elem_count % 2;
    size_t width = qf_dtype_size(storage);
    if (size % width != 0)
        return qf_err_set(err, -ENOTSUP,
                          "%llu bytes of 4-bit codes are no whole number of %s "
                          "elements (quant_storage)",
                          (unsigned long long)size, qf_dtype_torch_name(storage));
    struct qf_part *part = add_part(plan, QF_PART_CODES, QF_STAGE_CHUNK, "", storage);
    part->rank = 2;
    part->shape[0] = size / width;
    part->shape[1] = 1;
    part->size = size;
    part->chunk_stride = plan->chunk_elems / 2;
    return 0;
}

static int plan_4bit(struct qf_plan *plan, struct qf_err *err)
{
    const struct qf_codec_spec *spec = &plan->spec;
    bool dq = spec->codec == QF_CODEC_DQ;
    uint64_t blocks = qf_div_up(plan->elem_count, spec->blocksize);
    plan->block_count = blocks;
    plan->chunk_elems = QF_CHUNK_ELEMS;
    int rc = add_packed_codes(plan, err);
    if (rc != 0)
        return rc;
    uint64_t stride = QF_CHUNK_ELEMS / spec->blocksize * sizeof(float);
    if (dq) {
        add_vector(plan, QF_PART_NESTED_CODES, QF_STAGE_SEAL, ".absmax", QF_U8, blocks);
        add_vector(plan, QF_PART_NESTED_ABSMAX, QF_STAGE_SEAL, ".nested_absmax", QF_F32,
                   qf_div_up(blocks, QF_NESTED_BLOCKSIZE));
        add_vector(plan, QF_PART_NESTED_QUANT_MAP, QF_STAGE_PLAN, ".nested_quant_map",
                   QF_F32, 256);
    } else {
        add_vector(plan, QF_PART_ABSMAX, QF_STAGE_CHUNK, ".absmax", QF_F32, blocks)
            ->chunk_stride = stride;
    }
    add_vector(plan, QF_PART_QUANT_MAP, QF_STAGE_PLAN, ".quant_map", QF_F32, 16);
    add_vector(plan, QF_PART_QUANT_STATE, dq ? QF_STAGE_SEAL : QF_STAGE_PLAN,
               spec->codec == QF_CODEC_FP4 ? ".quant_state.bitsandbytes__fp4"
                                           : ".quant_state.bitsandbytes__nf4",
               QF_U8, qf_qstate_size(spec, plan->rows, plan->cols));
    if (dq) {
        struct qf_part *part =
            add_vector(plan, QF_PART_BLOCK_ABSMAX, QF_STAGE_CHUNK, "", QF_F32, blocks);
        part->hidden = true;
        part->chunk_stride = stride;
    }
    return 0;
}

/* Rows of a chunk: at least one, else what fits both limits. */
static uint64_t int8_chunk_rows(uint64_t cols)
{
    uint64_t by_elems = QF_CHUNK_ELEMS / cols;
    uint64_t by_size = (RECORD_SIZE_MAX - RECORD_ALIGN) / (cols + sizeof(float));
    uint64_t rows = by_elems < by_size ? by_elems : by_size;
    return rows != 0 ? rows : 1;
}

static void plan_int8(struct qf_plan *plan)
{
    uint64_t chunk_rows = plan->cols != 0 ? int8_chunk_rows(plan->cols) : 1;
    plan->chunk_elems = chunk_rows * plan->cols;
    struct qf_part *codes = add_part(plan, QF_PART_CODES, QF_STAGE_CHUNK, "", QF_I8);
    codes->rank = 2;
    codes->shape[0] = plan->rows;
    codes->shape[1] = plan->cols;
    codes->size = plan->elem_count;
    codes->chunk_stride = plan->chunk_elems;
    /* Rows without elements have no chunk that could give their SCB: zeros. */
    struct qf_part *scb =
        add_vector(plan, QF_PART_SCB, plan->cols != 0 ? QF_STAGE_CHUNK : QF_STAGE_PLAN,
                   "SCB", QF_F32, plan->rows);
    scb->strip = sizeof "weight" - 1;
    scb->chunk_stride = plan->cols != 0 ? chunk_rows * sizeof(float) : 0;
    struct qf_part *tag =
        add_part(plan, QF_PART_FORMAT, QF_STAGE_PLAN, "_format", QF_U8);
    tag->size = 1;
    tag->own_group = true;
}

static int check_spec(const struct qf_codec_spec *spec, struct qf_err *err)
{
    if (spec->codec == QF_CODEC_INT8)
        return 0;
    uint32_t b = spec->blocksize;
    if (b < QF_BLOCKSIZE_DEFAULT || b > QF_BLOCKSIZE_MAX || (b & (b - 1)) != 0)
        return qf_err_set(err, -ENOTSUP,
                          "blocksize %u: must be a power of two from %u to %u", b,
                          QF_BLOCKSIZE_DEFAULT, QF_BLOCKSIZE_MAX);
    if (spec->storage != QF_U8 && !qf_dtype_is_float(spec->storage))
        return qf_err_set(err, -ENOTSUP,
                          "quant_storage %s: must be uint8, float16, bfloat16 or "
                          "float32",
                          qf_dtype_name(spec->storage));
    return 0;
}

int qf_codec_plan(const struct qf_codec_spec *spec, enum qf_dtype src_dtype,
                  const uint64_t shape[2], bool transposed, struct qf_plan *out,
                  struct qf_err *err)
{
    assert(spec->codec < QF_CODEC_COUNT);
    assert(qf_dtype_is_float(src_dtype) && qf_dtype_is_float(spec->dtype));
    *out = (struct qf_plan){
        .spec = *spec,
        .src_dtype = src_dtype,
        .transposed = transposed,
        .rows = shape[transposed ? 1 : 0],
        .cols = shape[transposed ? 0 : 1],
    };
    int rc = check_spec(spec, err);
    if (rc != 0)
        return rc;
    if (!qf_mul_u64(out->rows, out->cols, &out->elem_count) ||
        out->elem_count > ELEMS_MAX || out->rows > ELEMS_MAX || out->cols > ELEMS_MAX)
        return qf_err_set(err, -ENOTSUP, "shape [%llu, %llu] is too large",
                          (unsigned long long)shape[0], (unsigned long long)shape[1]);
    if (spec->codec == QF_CODEC_INT8)
        plan_int8(out);
    else
        rc = plan_4bit(out, err);
    if (rc == 0 && out->elem_count != 0)
        out->chunk_count = qf_div_up(out->elem_count, out->chunk_elems);
    return rc;
}

void qf_plan_pad_quant_state(struct qf_plan *plan, uint64_t size)
{
    uint32_t i = 0;
    while (i < plan->part_count && plan->parts[i].role != QF_PART_QUANT_STATE)
        i++;
    assert(i < plan->part_count && size >= plan->parts[i].size);
    plan->parts[i].size = size;
    plan->parts[i].shape[0] = size;
}

const struct qf_part *qf_plan_part(const struct qf_plan *plan, enum qf_part_role role)
{
    for (uint32_t i = 0; i < plan->part_count; i++)
        if (plan->parts[i].role == role)
            return &plan->parts[i];
    return NULL;
}

/* ---- records ---- */

void qf_plan_chunk_elems(const struct qf_plan *plan, uint64_t chunk, uint64_t *first,
                         uint64_t *count)
{
    assert(chunk < plan->chunk_count);
    *first = chunk * plan->chunk_elems;
    uint64_t left = plan->elem_count - *first;
    *count = left < plan->chunk_elems ? left : plan->chunk_elems;
}

static size_t align_up(size_t off)
{
    return (off + RECORD_ALIGN - 1) / RECORD_ALIGN * RECORD_ALIGN;
}

static size_t slice_size(const struct qf_part *part, uint64_t chunk)
{
    uint64_t left = part->size - chunk * part->chunk_stride;
    return (size_t)(left < part->chunk_stride ? left : part->chunk_stride);
}

void qf_plan_chunk_slice(const struct qf_plan *plan, uint64_t chunk, uint32_t index,
                         size_t *off, size_t *size)
{
    assert(chunk < plan->chunk_count && index < plan->part_count);
    assert(plan->parts[index].stage == QF_STAGE_CHUNK);
    size_t at = 0;
    for (uint32_t i = 0; i < index; i++)
        if (plan->parts[i].stage == QF_STAGE_CHUNK)
            at = align_up(at + slice_size(&plan->parts[i], chunk));
    *off = at;
    *size = slice_size(&plan->parts[index], chunk);
}

size_t qf_plan_chunk_size(const struct qf_plan *plan, uint64_t chunk)
{
    size_t end = 0;
    for (uint32_t i = 0; i < plan->part_count; i++) {
        if (plan->parts[i].stage != QF_STAGE_CHUNK)
            continue;
        size_t off;
        size_t size;
        qf_plan_chunk_slice(plan, chunk, i, &off, &size);
        end = off + size;
    }
    return end;
}

size_t qf_plan_seal_offset(const struct qf_plan *plan, uint32_t index)
{
    assert(index < plan->part_count && plan->parts[index].stage == QF_STAGE_SEAL);
    size_t at = 0;
    for (uint32_t i = 0; i < index; i++)
        if (plan->parts[i].stage == QF_STAGE_SEAL)
            at = align_up(at + (size_t)plan->parts[i].size);
    return at;
}

size_t qf_plan_seal_size(const struct qf_plan *plan)
{
    size_t end = 0;
    for (uint32_t i = 0; i < plan->part_count; i++)
        if (plan->parts[i].stage == QF_STAGE_SEAL)
            end = qf_plan_seal_offset(plan, i) + (size_t)plan->parts[i].size;
    return end;
}

/* ---- contents ---- */

void qf_codec_fill(const struct qf_plan *plan, uint32_t index, void *out)
{
    assert(index < plan->part_count);
    const struct qf_part *part = &plan->parts[index];
    assert(part->stage == QF_STAGE_PLAN);
    bool fp4 = plan->spec.codec == QF_CODEC_FP4;
    switch (part->role) {
    case QF_PART_QUANT_MAP:
        memcpy(out, fp4 ? qf_fp4_values : qf_nf4_values, part->size);
        break;
    case QF_PART_NESTED_QUANT_MAP:
        memcpy(out, qf_dynamic_values, part->size);
        break;
    case QF_PART_QUANT_STATE:
        qf_qstate_write(&plan->spec, plan->rows, plan->cols, 0, out, part->size);
        break;
    default: /* the format tag, or SCB of rows without elements */
        memset(out, 0, part->size);
        break;
    }
}

static void *seal_slice(const struct qf_plan *plan, enum qf_part_role role,
                        void *record)
{
    const struct qf_part *part = qf_plan_part(plan, role);
    return (char *)record + qf_plan_seal_offset(plan, (uint32_t)(part - plan->parts));
}

void qf_codec_seal(const struct qf_plan *plan, const float *block_absmax, void *out)
{
    assert(plan->spec.codec == QF_CODEC_DQ);
    const struct qf_kernels *kernels = qf_kernels_best();
    size_t count = (size_t)plan->block_count;
    uint8_t *codes = seal_slice(plan, QF_PART_NESTED_CODES, out);
    float *nested_absmax = seal_slice(plan, QF_PART_NESTED_ABSMAX, out);
    static const float none = 0;
    if (count == 0) /* the caller may have no array at all */
        block_absmax = &none;
    memset(out, 0, qf_plan_seal_size(plan));
    float offset = kernels->mean(block_absmax, count);
    kernels->nested(block_absmax, count, offset, codes, nested_absmax);
    qf_qstate_write(&plan->spec, plan->rows, plan->cols, offset,
                    seal_slice(plan, QF_PART_QUANT_STATE, out),
                    (size_t)qf_plan_part(plan, QF_PART_QUANT_STATE)->size);
}
