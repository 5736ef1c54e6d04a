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
#include "quant/gguf.h"
#include "quant/kernels.h"
#include "quant/qstate.h"
#include "quant/tables.h"

#define RECORD_ALIGN 64u
/* What a cache may put around a record. */
#define RECORD_SIZE_MAX (QF_RECORD_SIZE_MAX - 64u)
/* Codes of an I32 of the packed codec that has most. */
#define PACKED_MULTIPLE 8u
/* Elements of a tensor: sizes of parts, in bytes, stay far from 2^64. */
#define ELEMS_MAX (UINT64_C(1) << 58)

static const struct qf_codec_info infos[QF_CODEC_COUNT] = {
    [QF_CODEC_NF4] = {"nf4", QF_FAMILY_BNB_4BIT, QF_SCALED_NONE, 0},
    [QF_CODEC_FP4] = {"fp4", QF_FAMILY_BNB_4BIT, QF_SCALED_NONE, 0},
    [QF_CODEC_DQ] = {"dq", QF_FAMILY_BNB_4BIT, QF_SCALED_NONE, 0},
    [QF_CODEC_INT8] = {"int8", QF_FAMILY_BNB_INT8, QF_SCALED_NONE, 0},
    [QF_CODEC_AO_INT8WO] = {"ao-int8wo", QF_FAMILY_TORCHAO, QF_SCALED_I8_MUL, 0},
    [QF_CODEC_AO_INT8DQ] = {"ao-int8dq", QF_FAMILY_TORCHAO, QF_SCALED_I8_MUL, 0},
    [QF_CODEC_AO_FLOAT8WO] = {"ao-float8wo", QF_FAMILY_TORCHAO, QF_SCALED_F8_E4M3, 0},
    [QF_CODEC_AO_FLOAT8WO_E5M2] = {"ao-float8wo-e5m2", QF_FAMILY_TORCHAO,
                                   QF_SCALED_F8_E5M2, 0},
    [QF_CODEC_AO_FLOAT8DQ_ROW] = {"ao-float8dq-row", QF_FAMILY_TORCHAO,
                                  QF_SCALED_F8_E4M3, 0},
    [QF_CODEC_FP8] = {"fp8", QF_FAMILY_FP8, QF_SCALED_F8_E4M3_BLOCK, QF_FP8_BLOCK},
    [QF_CODEC_CT_FP8] = {"ct-fp8", QF_FAMILY_COMPRESSED_TENSORS, QF_SCALED_F8_E4M3, 0},
    [QF_CODEC_CT_W8A8] = {"ct-w8a8", QF_FAMILY_COMPRESSED_TENSORS, QF_SCALED_I8_DIV, 0},
    [QF_CODEC_CT_W8A16] = {"ct-w8a16", QF_FAMILY_COMPRESSED_TENSORS,
                           QF_SCALED_I8_PACKED, 128},
    [QF_CODEC_CT_W4A16] = {"ct-w4a16", QF_FAMILY_COMPRESSED_TENSORS,
                           QF_SCALED_I4_PACKED, 128},
    [QF_CODEC_GGUF_Q8_0] = {"gguf-q8_0", QF_FAMILY_GGUF, QF_SCALED_NONE, 0},
    [QF_CODEC_GGUF_Q4_0] = {"gguf-q4_0", QF_FAMILY_GGUF, QF_SCALED_NONE, 0},
    [QF_CODEC_GGUF_Q4_1] = {"gguf-q4_1", QF_FAMILY_GGUF, QF_SCALED_NONE, 0},
    [QF_CODEC_GGUF_Q5_0] = {"gguf-q5_0", QF_FAMILY_GGUF, QF_SCALED_NONE, 0},
    [QF_CODEC_GGUF_Q5_1] = {"gguf-q5_1", QF_FAMILY_GGUF, QF_SCALED_NONE, 0},
    [QF_CODEC_GGUF_F16] = {"gguf-f16", QF_FAMILY_GGUF, QF_SCALED_NONE, 0},
    [QF_CODEC_GGUF_BF16] = {"gguf-bf16", QF_FAMILY_GGUF, QF_SCALED_NONE, 0},
    [QF_CODEC_BF16] = {"bf16", QF_FAMILY_PLAIN, QF_SCALED_NONE, 0},
    [QF_CODEC_FP16] = {"fp16", QF_FAMILY_PLAIN, QF_SCALED_NONE, 0},
    [QF_CODEC_FP32] = {"fp32", QF_FAMILY_PLAIN, QF_SCALED_NONE, 0},
};

const struct qf_codec_info *qf_codec_info(enum qf_codec codec)
{
    assert(codec < QF_CODEC_COUNT);
    return &infos[codec];
}

const char *qf_codec_name(enum qf_codec codec)
{
    return qf_codec_info(codec)->name;
}

enum qf_dtype qf_codec_plain_dtype(enum qf_codec codec)
{
    switch (codec) {
    case QF_CODEC_BF16:
        return QF_BF16;
    case QF_CODEC_FP16:
        return QF_F16;
    case QF_CODEC_FP32:
        return QF_F32;
    default:
        return QF_DTYPE_NONE;
    }
}

bool qf_codec_from_name(const char *name, enum qf_codec *out)
{
    for (int i = 0; i < QF_CODEC_COUNT; i++) {
        if (strcmp(infos[i].name, name) == 0) {
            *out = (enum qf_codec)i;
            return true;
        }
    }
    return false;
}

enum qf_codec qf_codec_of_records(enum qf_codec codec)
{
    const struct qf_codec_info *info = qf_codec_info(codec);
    int first = 0;
    if (info->scaled == QF_SCALED_NONE)
        return codec;
    while (infos[first].scaled != info->scaled || infos[first].family != info->family)
        first++;
    return (enum qf_codec)first;
}

struct qf_codec_spec qf_codec_default(enum qf_codec codec, enum qf_dtype dtype)
{
    return (struct qf_codec_spec){
        .codec = codec,
        .blocksize = QF_BLOCKSIZE_DEFAULT,
        .dtype = dtype,
        .storage = QF_U8,
        .group = qf_codec_info(codec)->group,
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

/* ---- scaled codecs ---- */

/* A part of rank 2 that chunks make: `rows` x `cols` elements. */
static struct qf_part *add_matrix(struct qf_plan *plan, enum qf_part_role role,
                                  const char *suffix, enum qf_dtype dtype,
                                  uint64_t rows, uint64_t cols)
{
    struct qf_part *part = add_part(plan, role, QF_STAGE_CHUNK, suffix, dtype);
    part->strip = sizeof "weight" - 1;
    part->rank = 2;
    part->shape[0] = rows;
    part->shape[1] = cols;
    part->size = rows * cols * qf_dtype_size(dtype);
    return part;
}

/* Into I32. */
static bool is_packed(enum qf_scaled scaled)
{
    return scaled == QF_SCALED_I8_PACKED || scaled == QF_SCALED_I4_PACKED;
}

/* Stored codes of one row, in bytes. */
static uint64_t code_row_size(const struct qf_plan *plan, enum qf_scaled scaled)
{
    return scaled == QF_SCALED_I4_PACKED ? plan->cols / 2 : plan->cols;
}

static void add_codes(struct qf_plan *plan, const struct qf_codec_info *info)
{
    switch (info->scaled) {
    case QF_SCALED_I8_MUL:
        add_matrix(plan, QF_PART_CODES, "_weight_qdata", QF_I8, plan->rows, plan->cols);
        return;
    case QF_SCALED_I8_DIV:
        add_matrix(plan, QF_PART_CODES, "weight", QF_I8, plan->rows, plan->cols);
        return;
    case QF_SCALED_I8_PACKED:
    case QF_SCALED_I4_PACKED:
        add_matrix(plan, QF_PART_CODES, "weight_packed", QF_I32, plan->rows,
                   code_row_size(plan, info->scaled) / sizeof(int32_t));
        return;
    case QF_SCALED_F8_E4M3:
    case QF_SCALED_F8_E5M2:
    case QF_SCALED_F8_E4M3_BLOCK:
        add_matrix(plan, QF_PART_CODES,
                   info->family == QF_FAMILY_TORCHAO ? "_weight_qdata" : "weight",
                   info->scaled == QF_SCALED_F8_E5M2 ? QF_F8_E5M2 : QF_F8_E4M3,
                   plan->rows, plan->cols);
        return;
    default:
        assert(false);
    }
}

/* Scales lie with their rows, so a chunk is whole rows (fp8: whole rows of blocks). */
static void add_scales(struct qf_plan *plan, const struct qf_codec_info *info,
                       uint64_t groups)
{
    switch (info->family) {
    case QF_FAMILY_TORCHAO:
        add_matrix(plan, QF_PART_SCALE, "_weight_scale", QF_F32, plan->rows, groups);
        if (info->scaled == QF_SCALED_I8_MUL)
            add_matrix(plan, QF_PART_ZERO_POINT, "_weight_zero_point", QF_I8,
                       plan->rows, groups)
                ->stage = QF_STAGE_PLAN;
        return;
    case QF_FAMILY_FP8:
        add_matrix(plan, QF_PART_SCALE, "weight_scale_inv", QF_F32,
                   plan->rows / plan->spec.group, groups);
        return;
    default:
        assert(info->family == QF_FAMILY_COMPRESSED_TENSORS);
        add_matrix(plan, QF_PART_SCALE, "weight_scale", plan->spec.dtype, plan->rows,
                   groups);
        if (!is_packed(info->scaled))
            return;
        add_vector(plan, QF_PART_SHAPE, QF_STAGE_PLAN, "weight_shape", QF_I64, 2)
            ->strip = sizeof "weight" - 1;
    }
}

static int check_group(const struct qf_plan *plan, const struct qf_codec_info *info,
                       struct qf_err *err)
{
    uint32_t group = plan->spec.group;
    if (plan->elem_count == 0)
        return qf_err_set(err, -ENOTSUP, "%s: a weight without elements", info->name);
    bool fits = group == 0 || plan->cols % group == 0;
    if (info->scaled == QF_SCALED_F8_E4M3_BLOCK)
        fits = group == QF_FP8_BLOCK && fits && plan->rows % group == 0;
    if (is_packed(info->scaled) &&
        (group % PACKED_MULTIPLE != 0 || plan->cols % PACKED_MULTIPLE != 0))
        return qf_err_set(err, -ENOTSUP,
                          "%s: [%llu, %llu] in groups of %u: no multiples of %u",
                          info->name, (unsigned long long)plan->rows,
                          (unsigned long long)plan->cols, group, PACKED_MULTIPLE);
    if (!fits)
        return qf_err_set(err, -ENOTSUP,
                          "%s: [%llu, %llu] is no whole number of groups of %u",
                          info->name, (unsigned long long)plan->rows,
                          (unsigned long long)plan->cols, group);
    return 0;
}

static int plan_scaled(struct qf_plan *plan, struct qf_err *err)
{
    const struct qf_codec_info *info = qf_codec_info(plan->spec.codec);
    int rc = check_group(plan, info, err);
    if (rc != 0)
        return rc;
    uint64_t groups = plan->spec.group != 0 ? plan->cols / plan->spec.group : 1;
    add_codes(plan, info);
    add_scales(plan, info, groups);
    uint64_t band = info->scaled == QF_SCALED_F8_E4M3_BLOCK ? plan->spec.group : 1;
    uint64_t scale_size = groups * sizeof(float); /* at most */
    uint64_t row_size = code_row_size(plan, info->scaled) + scale_size;
    uint64_t rows = (RECORD_SIZE_MAX - RECORD_ALIGN) / row_size;
    if (rows > QF_CHUNK_ELEMS / plan->cols)
        rows = QF_CHUNK_ELEMS / plan->cols;
    rows -= rows % band;
    if (rows == 0)
        rows = band;
    plan->chunk_elems = rows * plan->cols;
    for (uint32_t i = 0; i < plan->part_count; i++) {
        struct qf_part *part = &plan->parts[i];
        if (part->stage == QF_STAGE_CHUNK)
            part->chunk_stride = part->size / part->shape[0] *
                                 (part->shape[0] == plan->rows ? rows : rows / band);
    }
    return 0;
}

static int check_spec(const struct qf_codec_spec *spec, struct qf_err *err)
{
    if (qf_codec_info(spec->codec)->family != QF_FAMILY_BNB_4BIT)
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
    switch (qf_codec_info(spec->codec)->family) {
    case QF_FAMILY_BNB_4BIT:
        rc = plan_4bit(out, err);
        break;
    case QF_FAMILY_BNB_INT8:
        plan_int8(out);
        break;
    case QF_FAMILY_GGUF:
        rc = qf_gguf_plan(out, err);
        break;
    case QF_FAMILY_PLAIN:
        return qf_err_set(err, -ENOTSUP, "%s quantizes nothing",
                          qf_codec_name(spec->codec));
    default:
        rc = plan_scaled(out, err);
    }
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
    case QF_PART_SHAPE: /* little-endian, as everything here */
        memcpy(out, (const uint64_t[]){plan->rows, plan->cols}, part->size);
        break;
    default: /* the format tag, zero points, or SCB of rows without elements */
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
