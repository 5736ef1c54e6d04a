/* SPDX-License-Identifier: Apache-2.0 */
/* Plans: parts, sizes, chunks, quant_state, and what cannot be planned. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "quant/codec.h"
#include "quant/qstate.h"
#include "quant/tables.h"

static struct qf_plan plan_of(enum qf_codec codec, enum qf_dtype dtype, uint64_t rows,
                              uint64_t cols)
{
    struct qf_codec_spec spec = qf_codec_default(codec, dtype);
    struct qf_plan plan;
    struct qf_err err = {""};
    int rc = qf_codec_plan(&spec, dtype, (uint64_t[2]){rows, cols}, false, &plan, &err);
    assert_string_equal(err.text, "");
    assert_int_equal(rc, 0);
    return plan;
}

static void check_part(const struct qf_plan *plan, uint32_t index, const char *suffix,
                       enum qf_dtype dtype, enum qf_stage stage, uint64_t size)
{
    assert_true(index < plan->part_count);
    const struct qf_part *part = &plan->parts[index];
    assert_string_equal(part->suffix, suffix);
    assert_int_equal(part->dtype, dtype);
    assert_int_equal(part->stage, stage);
    assert_int_equal(part->size, size);
    uint64_t elems = 1;
    for (uint32_t i = 0; i < part->rank; i++)
        elems *= part->shape[i];
    assert_int_equal(elems * qf_dtype_size(dtype), size);
    assert_ptr_equal(qf_plan_part(plan, part->role), part);
}

static void test_names(void **state)
{
    (void)state;
    enum qf_codec codec;
    for (int i = 0; i < QF_CODEC_COUNT; i++) {
        assert_true(qf_codec_from_name(qf_codec_name((enum qf_codec)i), &codec));
        assert_int_equal(codec, i);
    }
    assert_true(qf_codec_from_name("ct-w4a16", &codec));
    assert_int_equal(codec, QF_CODEC_CT_W4A16);
    assert_false(qf_codec_from_name("nf5", &codec));
    assert_false(qf_codec_from_name("", &codec));
}

static void test_parts_4bit(void **state)
{
    (void)state;
    const char text[] = "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": "
                        "\"bfloat16\", \"shape\": [37, 53]}";
    struct qf_plan p = plan_of(QF_CODEC_NF4, QF_BF16, 37, 53);
    assert_int_equal(p.part_count, 4);
    assert_int_equal(p.elem_count, 1961);
    assert_int_equal(p.block_count, 31);
    assert_int_equal(p.chunk_count, 1);
    check_part(&p, 0, "", QF_U8, QF_STAGE_CHUNK, 981);
    check_part(&p, 1, ".absmax", QF_F32, QF_STAGE_CHUNK, 124);
    check_part(&p, 2, ".quant_map", QF_F32, QF_STAGE_PLAN, 64);
    check_part(&p, 3, ".quant_state.bitsandbytes__nf4", QF_U8, QF_STAGE_PLAN,
               sizeof text - 1);
    assert_int_equal(p.parts[0].shape[1], 1);
    assert_int_equal(qf_plan_seal_size(&p), 0);
    char out[sizeof text + 7];
    qf_codec_fill(&p, 3, out);
    assert_memory_equal(out, text, sizeof text - 1);
    qf_plan_pad_quant_state(&p, sizeof text + 6);
    assert_int_equal(p.parts[3].size, sizeof text + 6);
    assert_int_equal(p.parts[3].shape[0], sizeof text + 6);
    qf_codec_fill(&p, 3, out);
    assert_memory_equal(out, text, sizeof text - 1);
    assert_memory_equal(out + sizeof text - 1, "       ", 7);
    char map[64];
    qf_codec_fill(&p, 2, map);
    assert_memory_equal(map, qf_nf4_values, 64);

    p = plan_of(QF_CODEC_FP4, QF_F16, 2, 64);
    check_part(&p, 3, ".quant_state.bitsandbytes__fp4", QF_U8, QF_STAGE_PLAN,
               p.parts[3].size);
    qf_codec_fill(&p, 2, map);
    assert_memory_equal(map, qf_fp4_values, 64);
    assert_null(qf_plan_part(&p, QF_PART_SCB));
}

static void test_parts_dq(void **state)
{
    (void)state;
    struct qf_plan p = plan_of(QF_CODEC_DQ, QF_F32, 300, 64);
    assert_int_equal(p.part_count, 7);
    check_part(&p, 0, "", QF_U8, QF_STAGE_CHUNK, 9600);
    check_part(&p, 1, ".absmax", QF_U8, QF_STAGE_SEAL, 300);
    check_part(&p, 2, ".nested_absmax", QF_F32, QF_STAGE_SEAL, 8);
    check_part(&p, 3, ".nested_quant_map", QF_F32, QF_STAGE_PLAN, 1024);
    check_part(&p, 4, ".quant_map", QF_F32, QF_STAGE_PLAN, 64);
    check_part(&p, 5, ".quant_state.bitsandbytes__nf4", QF_U8, QF_STAGE_SEAL,
               p.parts[5].size);
    check_part(&p, 6, "", QF_F32, QF_STAGE_CHUNK, 1200);
    assert_true(p.parts[6].hidden);
    assert_int_equal(p.parts[6].role, QF_PART_BLOCK_ABSMAX);
    assert_int_equal(qf_plan_seal_offset(&p, 1), 0);
    assert_int_equal(qf_plan_seal_offset(&p, 2), 320);
    assert_int_equal(qf_plan_seal_offset(&p, 5), 384);
    assert_int_equal(qf_plan_seal_size(&p), 384 + p.parts[5].size);
    char map[1024];
    qf_codec_fill(&p, 3, map);
    assert_memory_equal(map, qf_dynamic_values, 1024);
}

static void test_seal(void **state)
{
    (void)state;
    struct qf_plan p = plan_of(QF_CODEC_DQ, QF_BF16, 4, 64);
    qf_plan_pad_quant_state(&p, p.parts[5].size + 3);
    const float absmax[4] = {0.25f, 0.5f, 1.0f, 0.25f};
    float aligned[256];
    char *record = (char *)aligned;
    assert_true(qf_plan_seal_size(&p) <= sizeof aligned);
    memset(aligned, 0xa5, sizeof aligned);
    qf_codec_seal(&p, absmax, aligned);
    /* z = -.25 0 .5 -.25, nested_absmax = .5, u = -.5 0 1 -.5; map[35] = -.5008. */
    const uint8_t codes[4] = {35, 127, 255, 35};
    const char text[] =
        "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", "
        "\"shape\": [4, 64], \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", "
        "\"nested_offset\": 5.00000000e-01}   ";
    assert_memory_equal(record, codes, sizeof codes);
    for (size_t i = sizeof codes; i < 64; i++)
        assert_int_equal(record[i], 0);
    assert_true(aligned[64 / sizeof(float)] == 0.5f);
    assert_int_equal(p.parts[5].size, sizeof text - 1);
    assert_memory_equal(record + 128, text, sizeof text - 1);
}

static void check_offset(float offset, const char *field)
{
    struct qf_codec_spec spec = qf_codec_default(QF_CODEC_DQ, QF_BF16);
    char text[256];
    size_t size = qf_qstate_size(&spec, 1, 2);
    qf_qstate_write(&spec, 1, 2, offset, text, size);
    assert_int_equal(strlen(field), 14);
    assert_int_equal(text[size - 1], '}');
    assert_memory_equal(text + size - 15, field, 14);
    assert_memory_equal(text + size - 15 - 17, "\"nested_offset\": ", 17);
}

static void test_offset_field(void **state)
{
    (void)state;
    check_offset(0.0519735366f, "5.19735366e-02");
    check_offset(0, "0.00000000e+00");
    check_offset(0x1p-149f, "1.40129846e-45");
    check_offset(3.40282347e38f, "3.40282347e+38");
    check_offset(INFINITY, "Infinity      ");
    check_offset(-INFINITY, "-Infinity     ");
    check_offset(NAN, "NaN           ");
    check_offset(-0.0f, "-0.0000000e+00");
    check_offset(-1.5f, "-1.5000000e+00");
    /* What is printed reads back to the same binary32. */
    uint32_t u = 1;
    for (int i = 0; i < 20000; i++) {
        float x;
        char text[32];
        u = u * 1664525u + 1013904223u;
        uint32_t bits = u & 0x7fffffffu;
        memcpy(&x, &bits, sizeof x);
        if (!isfinite(x))
            continue;
        snprintf(text, sizeof text, "%.8e", (double)x);
        assert_int_equal(strlen(text), 14);
        assert_true(strtof(text, NULL) == x);
    }
}

static void test_parts_int8(void **state)
{
    (void)state;
    struct qf_plan p = plan_of(QF_CODEC_INT8, QF_BF16, 37, 53);
    assert_int_equal(p.part_count, 3);
    check_part(&p, 0, "", QF_I8, QF_STAGE_CHUNK, 1961);
    check_part(&p, 1, "SCB", QF_F32, QF_STAGE_CHUNK, 148);
    check_part(&p, 2, "_format", QF_U8, QF_STAGE_PLAN, 1);
    assert_int_equal(p.parts[1].strip, 6);
    assert_int_equal(p.parts[2].rank, 0);
    assert_true(p.parts[2].own_group);
    assert_false(p.parts[0].own_group);
    char tag = 1;
    qf_codec_fill(&p, 2, &tag);
    assert_int_equal(tag, 0);
}

static void test_transposed(void **state)
{
    (void)state;
    struct qf_codec_spec spec = qf_codec_default(QF_CODEC_NF4, QF_F32);
    struct qf_plan p;
    assert_int_equal(qf_codec_plan(&spec, QF_F32, (uint64_t[2]){768, 2304}, true, &p,
                                   NULL),
                     0);
    assert_int_equal(p.rows, 2304);
    assert_int_equal(p.cols, 768);
    char text[256];
    qf_codec_fill(&p, 3, text);
    assert_non_null(strstr(text, "\"shape\": [2304, 768]}"));
}

/* The slices of all chunks cover their parts; they do not overlap and are aligned. */
static void check_chunks(const struct qf_plan *p)
{
    uint64_t elems = 0;
    uint64_t covered[QF_PARTS_MAX] = {0};
    for (uint64_t c = 0; c < p->chunk_count; c++) {
        uint64_t first;
        uint64_t count;
        size_t end = 0;
        qf_plan_chunk_elems(p, c, &first, &count);
        assert_int_equal(first, elems);
        assert_true(count > 0);
        elems += count;
        for (uint32_t i = 0; i < p->part_count; i++) {
            size_t off;
            size_t size;
            if (p->parts[i].stage != QF_STAGE_CHUNK)
                continue;
            qf_plan_chunk_slice(p, c, i, &off, &size);
            assert_true(size > 0 && off >= end && off < end + 64 && off % 64 == 0);
            assert_int_equal(covered[i], c * p->parts[i].chunk_stride);
            covered[i] += size;
            end = off + size;
        }
        assert_int_equal(qf_plan_chunk_size(p, c), end);
        assert_true(end <= QF_STORED_SIZE_MAX - 64 || count == p->cols ||
                    (p->spec.codec == QF_CODEC_FP8 && count == p->cols * QF_FP8_BLOCK));
    }
    assert_int_equal(elems, p->elem_count);
    for (uint32_t i = 0; i < p->part_count; i++)
        if (p->parts[i].stage == QF_STAGE_CHUNK)
            assert_int_equal(covered[i], p->parts[i].size);
}

/* The next larger numbers of rows and columns that the codec takes. */
static uint64_t fitting_cols(enum qf_codec codec, uint64_t cols)
{
    uint64_t group = qf_codec_info(codec)->group;
    return group == 0 ? cols : (cols + group - 1) / group * group;
}

static uint64_t fitting_rows(enum qf_codec codec, uint64_t rows)
{
    return codec == QF_CODEC_FP8 ? fitting_cols(codec, rows) : rows;
}

static void test_chunks(void **state)
{
    (void)state;
    static const uint64_t shapes[][2] = {{1, 1},       {37, 53},      {1024, 1024},
                                         {1024, 1025}, {4096, 11008}, {1, 3000001},
                                         {3000001, 1}, {999999, 1},   {3, 999935},
                                         {2, 999936},  {2, 1000000},  {5, 1 << 20},
                                         {3, 5 << 20}, {199999, 1},   {250000, 7},
                                         {70001, 64}};
    for (int codec = 0; codec < QF_CODEC_GGUF_Q8_0; codec++) {
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            struct qf_plan p =
                plan_of((enum qf_codec)codec, QF_BF16,
                        fitting_rows((enum qf_codec)codec, shapes[i][0]),
                        fitting_cols((enum qf_codec)codec, shapes[i][1]));
            check_chunks(&p);
            if (qf_codec_info((enum qf_codec)codec)->family == QF_FAMILY_BNB_4BIT)
                assert_int_equal(p.chunk_elems, QF_CHUNK_ELEMS);
            else
                assert_int_equal(p.chunk_elems % p.cols, 0);
            if (codec == QF_CODEC_FP8)
                assert_int_equal(p.chunk_elems % (p.cols * QF_FP8_BLOCK), 0);
        }
    }
}

static void test_empty(void **state)
{
    (void)state;
    static const uint64_t shapes[][2] = {{0, 0}, {0, 64}, {64, 0}};
    for (int codec = 0; codec < QF_CODEC_GGUF_Q8_0; codec++) {
        struct qf_codec_spec spec = qf_codec_default((enum qf_codec)codec, QF_F32);
        for (size_t i = 0; i < 3; i++) {
            struct qf_plan p;
            struct qf_err err = {""};
            if (qf_codec_info((enum qf_codec)codec)->scaled != QF_SCALED_NONE) {
                assert_int_equal(qf_codec_plan(&spec, QF_F32, shapes[i], false, &p,
                                               &err),
                                 -ENOTSUP);
                assert_non_null(strstr(err.text, "without elements"));
                continue;
            }
            p = plan_of((enum qf_codec)codec, QF_F32, shapes[i][0], shapes[i][1]);
            assert_int_equal(p.elem_count, 0);
            assert_int_equal(p.chunk_count, 0);
            check_chunks(&p);
        }
    }
    /* Rows without columns have an SCB each, of nothing. */
    struct qf_plan p = plan_of(QF_CODEC_INT8, QF_F32, 3, 0);
    float scb[3] = {1, 1, 1};
    check_part(&p, 1, "SCB", QF_F32, QF_STAGE_PLAN, 12);
    qf_codec_fill(&p, 1, scb);
    assert_true(scb[0] == 0 && scb[1] == 0 && scb[2] == 0);
    p = plan_of(QF_CODEC_DQ, QF_F32, 0, 64);
    char record[512];
    assert_true(qf_plan_seal_size(&p) <= sizeof record);
    qf_codec_seal(&p, NULL, record);
    record[qf_plan_seal_size(&p)] = '\0';
    assert_non_null(strstr(record, "\"nested_offset\": NaN           }"));
}

static void test_storage(void **state)
{
    (void)state;
    struct qf_codec_spec spec = qf_codec_default(QF_CODEC_NF4, QF_BF16);
    struct qf_plan p;
    struct qf_err err = {""};
    spec.storage = QF_BF16;
    assert_int_equal(qf_codec_plan(&spec, QF_BF16, (uint64_t[2]){64, 64}, false, &p,
                                   &err),
                     0);
    check_part(&p, 0, "", QF_BF16, QF_STAGE_CHUNK, 2048);
    assert_int_equal(p.parts[0].shape[0], 1024);
    assert_int_equal(p.parts[0].shape[1], 1);
    check_chunks(&p);
    assert_int_equal(qf_codec_plan(&spec, QF_BF16, (uint64_t[2]){3, 10}, false, &p,
                                   &err),
                     -ENOTSUP);
    assert_non_null(strstr(err.text, "bfloat16"));
    spec.storage = QF_F32;
    assert_int_equal(qf_codec_plan(&spec, QF_BF16, (uint64_t[2]){1, 12}, false, &p,
                                   &err),
                     -ENOTSUP);
    assert_int_equal(qf_codec_plan(&spec, QF_BF16, (uint64_t[2]){1, 16}, false, &p,
                                   &err),
                     0);
    check_part(&p, 0, "", QF_F32, QF_STAGE_CHUNK, 8);
    spec.storage = QF_I32;
    assert_int_equal(qf_codec_plan(&spec, QF_BF16, (uint64_t[2]){64, 64}, false, &p,
                                   &err),
                     -ENOTSUP);
    assert_non_null(strstr(err.text, "I32"));
}

static void test_parts_scaled(void **state)
{
    (void)state;
    struct qf_plan p = plan_of(QF_CODEC_AO_INT8WO, QF_BF16, 37, 53);
    assert_int_equal(p.part_count, 3);
    check_part(&p, 0, "_weight_qdata", QF_I8, QF_STAGE_CHUNK, 1961);
    check_part(&p, 1, "_weight_scale", QF_F32, QF_STAGE_CHUNK, 148);
    check_part(&p, 2, "_weight_zero_point", QF_I8, QF_STAGE_PLAN, 37);
    for (uint32_t i = 0; i < p.part_count; i++)
        assert_int_equal(p.parts[i].strip, 6);
    char zeros[37];
    memset(zeros, 1, sizeof zeros);
    qf_codec_fill(&p, 2, zeros);
    for (size_t i = 0; i < sizeof zeros; i++)
        assert_int_equal(zeros[i], 0);
    p = plan_of(QF_CODEC_AO_FLOAT8WO_E5M2, QF_F16, 37, 53);
    assert_int_equal(p.part_count, 2);
    check_part(&p, 0, "_weight_qdata", QF_F8_E5M2, QF_STAGE_CHUNK, 1961);
    check_part(&p, 1, "_weight_scale", QF_F32, QF_STAGE_CHUNK, 148);
    p = plan_of(QF_CODEC_FP8, QF_F16, 256, 384);
    check_part(&p, 0, "weight", QF_F8_E4M3, QF_STAGE_CHUNK, 256 * 384);
    check_part(&p, 1, "weight_scale_inv", QF_F32, QF_STAGE_CHUNK, 24);
    assert_int_equal(p.parts[1].shape[0], 2);
    p = plan_of(QF_CODEC_CT_FP8, QF_F16, 37, 53);
    check_part(&p, 0, "weight", QF_F8_E4M3, QF_STAGE_CHUNK, 1961);
    check_part(&p, 1, "weight_scale", QF_F16, QF_STAGE_CHUNK, 74);
    p = plan_of(QF_CODEC_CT_W4A16, QF_BF16, 3, 256);
    assert_int_equal(p.part_count, 3);
    check_part(&p, 0, "weight_packed", QF_I32, QF_STAGE_CHUNK, 384);
    check_part(&p, 1, "weight_scale", QF_BF16, QF_STAGE_CHUNK, 12);
    check_part(&p, 2, "weight_shape", QF_I64, QF_STAGE_PLAN, 16);
    uint64_t shape[2];
    qf_codec_fill(&p, 2, shape);
    assert_true(shape[0] == 3 && shape[1] == 256);
}

/* Codecs that share their records have the same parts. */
static void test_records_shared(void **state)
{
    (void)state;
    assert_int_equal(qf_codec_of_records(QF_CODEC_AO_INT8DQ), QF_CODEC_AO_INT8WO);
    assert_int_equal(qf_codec_of_records(QF_CODEC_AO_FLOAT8DQ_ROW),
                     QF_CODEC_AO_FLOAT8WO);
    assert_int_equal(qf_codec_of_records(QF_CODEC_CT_FP8), QF_CODEC_CT_FP8);
    assert_int_equal(qf_codec_of_records(QF_CODEC_DQ), QF_CODEC_DQ);
    for (int i = 0; i < QF_CODEC_GGUF_Q8_0; i++) {
        enum qf_codec first = qf_codec_of_records((enum qf_codec)i);
        assert_int_equal(qf_codec_of_records(first), first);
        struct qf_plan a = plan_of((enum qf_codec)i, QF_BF16, 128, 256);
        struct qf_plan b = plan_of(first, QF_BF16, 128, 256);
        assert_int_equal(a.part_count, b.part_count);
        assert_int_equal(a.chunk_elems, b.chunk_elems);
        for (uint32_t part = 0; part < a.part_count; part++) {
            assert_int_equal(a.parts[part].dtype, b.parts[part].dtype);
            assert_int_equal(a.parts[part].stage, b.parts[part].stage);
            assert_int_equal(a.parts[part].size, b.parts[part].size);
        }
    }
}

static void check_refused(enum qf_codec codec, uint32_t group, uint64_t rows,
                          uint64_t cols, const char *word)
{
    struct qf_codec_spec spec = qf_codec_default(codec, QF_BF16);
    struct qf_plan p;
    struct qf_err err = {""};
    spec.group = group;
    assert_int_equal(qf_codec_plan(&spec, QF_F32, (uint64_t[2]){rows, cols}, false, &p,
                                   &err),
                     -ENOTSUP);
    assert_non_null(strstr(err.text, word));
    assert_non_null(strstr(err.text, qf_codec_name(codec)));
}

static void test_groups(void **state)
{
    (void)state;
    check_refused(QF_CODEC_FP8, 128, 127, 128, "[127, 128]");
    check_refused(QF_CODEC_FP8, 128, 128, 129, "groups of 128");
    check_refused(QF_CODEC_FP8, 0, 128, 128, "groups of 0");
    check_refused(QF_CODEC_FP8, 64, 128, 128, "groups of 64");
    check_refused(QF_CODEC_CT_W4A16, 128, 1, 192, "groups of 128");
    check_refused(QF_CODEC_CT_W4A16, 4, 1, 8, "multiples of 8");
    check_refused(QF_CODEC_CT_W4A16, 0, 1, 12, "multiples of 8");
    check_refused(QF_CODEC_CT_W8A16, 12, 1, 24, "multiples of 8");
    check_refused(QF_CODEC_AO_INT8WO, 32, 1, 48, "groups of 32");
    struct qf_codec_spec spec = qf_codec_default(QF_CODEC_AO_INT8WO, QF_F32);
    struct qf_plan p;
    spec.group = 32;
    assert_int_equal(qf_codec_plan(&spec, QF_F32, (uint64_t[2]){64, 7}, true, &p, NULL),
                     0);
    assert_int_equal(qf_codec_plan(&spec, QF_F32, (uint64_t[2]){64, 7}, false, &p,
                                   NULL),
                     -ENOTSUP);
    assert_int_equal(qf_codec_plan(&spec, QF_F32, (uint64_t[2]){7, 64}, false, &p,
                                   NULL),
                     0);
    check_part(&p, 1, "_weight_scale", QF_F32, QF_STAGE_CHUNK, 56);
    check_part(&p, 2, "_weight_zero_point", QF_I8, QF_STAGE_PLAN, 14);
    check_chunks(&p);
    spec = qf_codec_default(QF_CODEC_CT_W8A16, QF_F32);
    spec.group = 0;
    assert_int_equal(qf_codec_plan(&spec, QF_F32, (uint64_t[2]){7, 64}, false, &p,
                                   NULL),
                     0);
    check_part(&p, 1, "weight_scale", QF_F32, QF_STAGE_CHUNK, 28);
    check_part(&p, 2, "weight_shape", QF_I64, QF_STAGE_PLAN, 16);
}

static void test_refused(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 1, 32, 63, 65, 96, 8192, UINT32_MAX};
    const uint64_t shape[2] = {64, 64};
    struct qf_codec_spec spec = qf_codec_default(QF_CODEC_DQ, QF_BF16);
    struct qf_plan p;
    struct qf_err err = {""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        spec.blocksize = bad[i];
        assert_int_equal(qf_codec_plan(&spec, QF_F32, shape, false, &p, &err),
                         -ENOTSUP);
        assert_non_null(strstr(err.text, "blocksize"));
    }
    for (spec.blocksize = 64; spec.blocksize <= 4096; spec.blocksize *= 2) {
        assert_int_equal(qf_codec_plan(&spec, QF_F32, shape, false, &p, NULL), 0);
        check_chunks(&p);
    }
    spec.blocksize = 0; /* says nothing to int8 */
    spec.codec = QF_CODEC_INT8;
    assert_int_equal(qf_codec_plan(&spec, QF_F32, shape, false, &p, NULL), 0);
    static const uint64_t large[][2] = {{UINT64_MAX, UINT64_MAX},
                                        {UINT64_C(1) << 32, UINT64_C(1) << 32},
                                        {(UINT64_C(1) << 58) + 1, 1},
                                        {UINT64_MAX, 0}};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(qf_codec_plan(&spec, QF_F32, large[i], false, &p, &err),
                         -ENOTSUP);
        assert_non_null(strstr(err.text, "too large"));
    }
    assert_int_equal(qf_codec_plan(&spec, QF_F32, (uint64_t[2]){UINT64_C(1) << 58, 1},
                                   false, &p, &err),
                     0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),          cmocka_unit_test(test_parts_4bit),
        cmocka_unit_test(test_parts_dq),       cmocka_unit_test(test_seal),
        cmocka_unit_test(test_offset_field),   cmocka_unit_test(test_parts_int8),
        cmocka_unit_test(test_transposed),     cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_empty),          cmocka_unit_test(test_storage),
        cmocka_unit_test(test_refused),        cmocka_unit_test(test_parts_scaled),
        cmocka_unit_test(test_records_shared), cmocka_unit_test(test_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
