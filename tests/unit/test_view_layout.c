/* SPDX-License-Identifier: Apache-2.0 */
/* Literal expectations and error paths; random layouts are compared with a second
 * implementation in tests/policy. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "view/layout.h"

static const uint64_t square[] = {8, 8};
static const uint64_t odd[] = {3, 3};

static struct qf_view view_of(const char *name)
{
    struct qf_view view;
    assert_int_equal(qf_view_parse(name, strlen(name), &view, NULL), 0);
    return view;
}

static struct qf_tensor tensor(const char *name, enum qf_dtype dtype, uint32_t rank,
                               const uint64_t *shape)
{
    struct qf_tensor t = {.name = name, .dtype = dtype, .rank = rank, .shape = shape};
    t.size = qf_dtype_bits(dtype);
    for (uint32_t i = 0; i < rank; i++)
        t.size *= shape[i];
    t.size /= 8;
    return t;
}

static struct qf_layout *build(const struct qf_shard *shard,
                               const struct qf_decision *decisions, const char *name)
{
    struct qf_layout *layout = NULL;
    struct qf_view view = view_of(name);
    struct qf_err err = {""};
    if (qf_layout_build(shard, decisions, &view, QF_BF16, &layout, &err) != 0)
        fail_msg("%s", err.text);
    return layout;
}

static void assert_header(const struct qf_layout *layout, const char *text)
{
    uint64_t n;
    memcpy(&n, layout->header, 8);
    assert_int_equal(n, layout->header_size - 8);
    assert_int_equal(layout->header_size % 8, 0);
    size_t size = strlen(text);
    assert_true(layout->header_size >= 8 + size);
    assert_true(layout->header_size - 8 - size < 8);
    assert_memory_equal(layout->header + 8, text, size);
    for (size_t i = 8 + size; i < layout->header_size; i++)
        assert_int_equal(layout->header[i], ' ');
    assert_int_equal(layout->file_size, layout->header_size + layout->tensor_bytes);
}

static const struct qf_decision keep_bf16 = {QF_REASON_HEAD, QF_BF16, false};
static const struct qf_decision quantize = {QF_REASON_QUANTIZED, QF_BF16, false};

static void test_int8_groups(void **state)
{
    const struct qf_tensor tensors[] = {tensor("a.weight", QF_BF16, 2, odd),
                                        tensor("b.weight", QF_BF16, 2, square),
                                        tensor("n.bias", QF_BF16, 1, square)};
    const struct qf_shard shard = {.tensor_count = 3, .tensors = tensors};
    const struct qf_decision decisions[] = {quantize, quantize, keep_bf16};
    (void)state;
    struct qf_layout *layout = build(&shard, decisions, "int8");
    /* a: 3 * 4 + 9 bytes, to the end; b and n at once */
    assert_header(layout,
                  "{\"__metadata__\":{\"format\":\"pt\"},"
                  "\"b.SCB\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[0,32]},"
                  "\"b.weight\":{\"dtype\":\"I8\",\"shape\":[8,8],"
                  "\"data_offsets\":[32,96]},"
                  "\"n.bias\":{\"dtype\":\"BF16\",\"shape\":[8],"
                  "\"data_offsets\":[96,112]},"
                  "\"a.SCB\":{\"dtype\":\"F32\",\"shape\":[3],"
                  "\"data_offsets\":[112,124]},"
                  "\"a.weight\":{\"dtype\":\"I8\",\"shape\":[3,3],"
                  "\"data_offsets\":[124,133]},"
                  "\"a.weight_format\":{\"dtype\":\"U8\",\"shape\":[],"
                  "\"data_offsets\":[133,134]},"
                  "\"b.weight_format\":{\"dtype\":\"U8\",\"shape\":[],"
                  "\"data_offsets\":[134,135]}}");
    assert_int_equal(layout->tensor_bytes, 135);
    assert_int_equal(layout->span_count, 8);
    assert_int_equal(layout->spans[7].tensor, 1);
    assert_int_equal(layout->spans[3].kind, QF_SPAN_COPY);
    qf_layout_free(layout);
}

static void test_nf4_group(void **state)
{
    const struct qf_tensor tensors[] = {tensor("a.weight", QF_F32, 2, odd)};
    const struct qf_shard shard = {.tensor_count = 1, .tensors = tensors};
    (void)state;
    struct qf_layout *layout = build(&shard, &quantize, "nf4");
    /* 4 + 64 + 5 bytes and a state of 76, filled up to 79 */
    assert_header(layout,
                  "{\"__metadata__\":{\"format\":\"pt\"},"
                  "\"a.weight.absmax\":{\"dtype\":\"F32\",\"shape\":[1],"
                  "\"data_offsets\":[0,4]},"
                  "\"a.weight.quant_map\":{\"dtype\":\"F32\",\"shape\":[16],"
                  "\"data_offsets\":[4,68]},"
                  "\"a.weight\":{\"dtype\":\"U8\",\"shape\":[5,1],"
                  "\"data_offsets\":[68,73]},"
                  "\"a.weight.quant_state.bitsandbytes__nf4\":{\"dtype\":\"U8\","
                  "\"shape\":[79],\"data_offsets\":[73,152]}}");
    qf_layout_free(layout);
}

static void test_metadata(void **state)
{
    const struct qf_metadata_entry entries[] = {{"a", "1\n"},
                                                {"format", "tf"},
                                                {"\xc3\xa9", "\""}};
    struct qf_shard shard = {.metadata_count = 3, .metadata = entries};
    struct qf_decision none = {0};
    (void)state;
    struct qf_layout *layout = build(&shard, &none, "dq");
    assert_header(layout, "{\"__metadata__\":{\"a\":\"1\\n\",\"format\":\"pt\","
                          "\"\xc3\xa9\":\"\\\"\"}}");
    assert_int_equal(layout->span_count, 1);
    assert_int_equal(layout->tensor_bytes, 0);
    assert_int_equal(qf_layout_find(layout, layout->file_size - 1), 0);
    qf_layout_free(layout);
    shard.metadata_count = 1;
    layout = build(&shard, &none, "dq");
    assert_header(layout, "{\"__metadata__\":{\"a\":\"1\\n\",\"format\":\"pt\"}}");
    qf_layout_free(layout);
}

static void test_cast_and_empty(void **state)
{
    static const uint64_t empty[] = {0, 5};
    const struct qf_tensor tensors[] = {tensor("e.bias", QF_I64, 2, empty),
                                        tensor("n.weight", QF_F32, 1, square),
                                        tensor("s", QF_BOOL, 0, NULL)};
    const struct qf_shard shard = {.tensor_count = 3, .tensors = tensors};
    const struct qf_decision decisions[] = {{QF_REASON_NOT_WEIGHT, QF_I64, false},
                                            keep_bf16,
                                            {QF_REASON_NOT_WEIGHT, QF_BOOL, false}};
    (void)state;
    struct qf_layout *layout = build(&shard, decisions, "nf4");
    assert_header(layout, "{\"__metadata__\":{\"format\":\"pt\"},"
                          "\"e.bias\":{\"dtype\":\"I64\",\"shape\":[0,5],"
                          "\"data_offsets\":[0,0]},"
                          "\"n.weight\":{\"dtype\":\"BF16\",\"shape\":[8],"
                          "\"data_offsets\":[0,16]},"
                          "\"s\":{\"dtype\":\"BOOL\",\"shape\":[],"
                          "\"data_offsets\":[16,17]}}");
    assert_int_equal(layout->span_count, 3);
    assert_int_equal(layout->spans[1].kind, QF_SPAN_CAST);
    assert_int_equal(layout->spans[1].tensor, 1);
    assert_int_equal(layout->spans[2].kind, QF_SPAN_COPY);
    uint64_t at = layout->header_size;
    assert_int_equal(qf_layout_find(layout, 0), 0);
    assert_int_equal(qf_layout_find(layout, at - 1), 0);
    assert_int_equal(qf_layout_find(layout, at), 1);
    assert_int_equal(qf_layout_find(layout, at + 15), 1);
    assert_int_equal(qf_layout_find(layout, at + 16), 2);
    qf_layout_free(layout);
}

static void expect_error(const struct qf_shard *shard,
                         const struct qf_decision *decisions, const char *view_name,
                         enum qf_dtype storage, int rc, const char *says)
{
    struct qf_layout *layout = NULL;
    struct qf_view view = view_of(view_name);
    struct qf_err err = {""};
    view.storage = storage;
    assert_int_equal(qf_layout_build(shard, decisions, &view, QF_BF16, &layout, &err),
                     rc);
    assert_null(layout);
    if (strstr(err.text, says) == NULL)
        fail_msg("'%s' does not say '%s'", err.text, says);
}

static void test_sizes_that_overflow(void **state)
{
    uint64_t half[] = {UINT64_C(1) << 62};
    struct qf_tensor tensors[] = {
        {.name = "a", .dtype = QF_U8, .rank = 1, .shape = half, .size = half[0]},
        {.name = "b", .dtype = QF_U8, .rank = 1, .shape = half, .size = half[0]},
        {.name = "c", .dtype = QF_BF16, .rank = 1, .shape = half, .size = 2 * half[0]}};
    struct qf_shard shard = {.tensor_count = 1, .tensors = tensors};
    struct qf_decision decisions[] = {{QF_REASON_NOT_WEIGHT, QF_U8, false},
                                      {QF_REASON_NOT_WEIGHT, QF_U8, false}};
    (void)state;
    struct qf_layout *layout = build(&shard, decisions, "nf4");
    assert_int_equal(layout->tensor_bytes, half[0]);
    qf_layout_free(layout);
    shard.tensor_count = 2;
    expect_error(&shard, decisions, "nf4", QF_U8, -EOVERFLOW, "larger than a file");
    tensors[1].size = half[0] - 1; /* fits; with the header it does not */
    expect_error(&shard, decisions, "nf4", QF_U8, -EOVERFLOW, "larger than a file");
    /* a cast that doubles the size */
    shard.tensor_count = 1;
    shard.tensors = tensors + 2;
    decisions[0] = (struct qf_decision){QF_REASON_HEAD, QF_F32, false};
    expect_error(&shard, decisions, "nf4", QF_U8, -EOVERFLOW, "larger than a file");
}

static void test_plan_that_fails(void **state)
{
    const struct qf_tensor tensors[] = {tensor("a.weight", QF_F32, 2, odd)};
    const struct qf_shard shard = {.tensor_count = 1, .tensors = tensors};
    (void)state;
    expect_error(&shard, &quantize, "nf4", QF_BF16, -ENOTSUP, "quant_storage");
}

/* A name of a quarter of the limit: three parts fit, four do not. */
static void test_header_that_is_too_long(void **state)
{
    size_t size = QF_SHARD_HEADER_SIZE_MAX / 4;
    char *name = malloc(size + 1);
    (void)state;
    assert_non_null(name);
    memset(name, 'x', size);
    strcpy(name + size - 7, ".weight");
    const struct qf_tensor tensors[] = {tensor(name, QF_BF16, 2, odd)};
    const struct qf_shard shard = {.tensor_count = 1, .tensors = tensors};
    expect_error(&shard, &quantize, "nf4", QF_U8, -EFBIG, "header");
    struct qf_layout *layout = build(&shard, &quantize, "int8");
    assert_true(layout->header_size > 3 * size);
    qf_layout_free(layout);
    free(name);
}

/* The longest header that loaders take, and one step more (it is padded to 8). */
static void test_header_limit(void **state)
{
    static const char rest[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                               "\"\":{\"dtype\":\"U8\",\"shape\":[],"
                               "\"data_offsets\":[0,1]}}";
    size_t size = QF_SHARD_HEADER_SIZE_MAX - (sizeof rest - 1);
    char *name = malloc(size + 2);
    (void)state;
    assert_non_null(name);
    memset(name, 'x', size);
    name[size] = '\0';
    const struct qf_tensor tensors[] = {tensor(name, QF_U8, 0, NULL)};
    const struct qf_shard shard = {.tensor_count = 1, .tensors = tensors};
    const struct qf_decision kept = {QF_REASON_NOT_WEIGHT, QF_U8, false};
    struct qf_layout *layout = build(&shard, &kept, "nf4");
    assert_int_equal(layout->header_size - 8, QF_SHARD_HEADER_SIZE_MAX);
    qf_layout_free(layout);
    memcpy(name + size, "x", 2);
    expect_error(&shard, &kept, "nf4", QF_U8, -EFBIG, "header");
    free(name);
}

static void test_part_names(void **state)
{
    struct qf_part part = {.strip = 6, .suffix = "SCB"};
    char name[16];
    (void)state;
    assert_int_equal(qf_part_name("a.weight", &part, name, sizeof name), 5);
    assert_string_equal(name, "a.SCB");
    assert_int_equal(qf_part_name("a.weight", NULL, name, sizeof name), 8);
    assert_string_equal(name, "a.weight");
    assert_int_equal(qf_part_name("a.weight", &part, name, 6), 5);
    assert_string_equal(name, "a.SCB");
    assert_int_equal(qf_part_name("a.weight", &part, name, 5), 5); /* no room: none */
    assert_string_equal(name, "");
    assert_int_equal(qf_part_name("a.weight", &part, NULL, 0), 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_int8_groups),
        cmocka_unit_test(test_nf4_group),
        cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_cast_and_empty),
        cmocka_unit_test(test_sizes_that_overflow),
        cmocka_unit_test(test_plan_that_fails),
        cmocka_unit_test(test_header_that_is_too_long),
        cmocka_unit_test(test_header_limit),
        cmocka_unit_test(test_part_names),
    };
    qf_layout_free(NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
