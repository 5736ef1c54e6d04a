/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "ckpt/shard.h"
#include "support/stfile.h"
#include "view/reshard.h"

static struct qf_shard *shard_of(const struct stfile_tensor *tensors, size_t count)
{
    size_t size;
    unsigned char *data = stfile_make(tensors, count, &size);
    struct qf_shard *shard = NULL;
    size_t header_size = 8 + (size_t)qf_load_u64(data);
    assert_int_equal(qf_shard_parse(data, header_size, size, &shard, NULL), 0);
    free(data);
    return shard;
}

static struct qf_reshard *plan_of(const struct qf_shard *a, const struct qf_shard *b,
                                  uint64_t size_max)
{
    const struct qf_shard *shards[2] = {a, b};
    struct qf_reshard *plan = NULL;
    struct qf_err err = {""};
    if (qf_reshard_plan(shards, b != NULL ? 2 : 1, size_max, &plan, &err) != 0)
        fail_msg("%s", err.text);
    return plan;
}

/* The names of a new shard, comma-separated, in the order of its data. */
static void expect_names(const struct qf_reshard *plan, size_t file, const char *names)
{
    char got[1024] = "";
    assert_true(file < plan->file_count);
    for (size_t i = 0; i < plan->files[file].tensor_count; i++) {
        strcat(got, i != 0 ? "," : "");
        strcat(got, plan->files[file].tensors[i].tensor->name);
    }
    assert_string_equal(got, names);
}

/* Each header is one that the library takes, says what was planned, and aligns. */
static void check_headers(const struct qf_reshard *plan)
{
    uint64_t bytes = 0;
    size_t count = 0;
    for (size_t i = 0; i < plan->file_count; i++) {
        const struct qf_reshard_file *file = &plan->files[i];
        struct qf_shard *shard = NULL;
        assert_int_equal(file->header_size % 8, 0);
        assert_int_equal(qf_shard_parse(file->header, file->header_size, file->size,
                                        &shard, NULL),
                         0);
        assert_int_equal(shard->tensor_count, file->tensor_count);
        assert_int_equal(shard->metadata_count, 1);
        assert_string_equal(shard->metadata[0].key, "format");
        for (size_t t = 0; t < file->tensor_count; t++) {
            const struct qf_reshard_tensor *want = &file->tensors[t];
            const struct qf_tensor *got = qf_shard_find(shard, want->tensor->name);
            assert_non_null(got);
            assert_int_equal(got->off, want->off);
            assert_int_equal(got->size, want->tensor->size);
            assert_int_equal(got->dtype, want->tensor->dtype);
            assert_int_equal(got->rank, want->tensor->rank);
            if (got->rank != 0)
                assert_memory_equal(got->shape, want->tensor->shape,
                                    got->rank * sizeof *got->shape);
            if (qf_dtype_bits(got->dtype) >= 8)
                assert_int_equal(got->off % qf_dtype_size(got->dtype), 0);
            bytes += got->size;
        }
        count += file->tensor_count;
        qf_shard_free(shard);
    }
    assert_int_equal(bytes, plan->tensor_bytes);
    assert_int_equal(count, plan->tensor_count);
}

/* ---- where it is split ---- */

/* The example in huggingface_hub's own words: limits of 10, tensors of 6 6 2 6 2 2. */
static void test_split(void **state)
{
    (void)state;
    static const struct stfile_tensor tensors[] = {
        {"a", QF_U8, 1, {6}, NULL}, {"b", QF_U8, 1, {6}, NULL},
        {"c", QF_U8, 1, {2}, NULL}, {"d", QF_U8, 1, {6}, NULL},
        {"e", QF_U8, 1, {2}, NULL}, {"f", QF_U8, 1, {2}, NULL},
    };
    struct qf_shard *shard = shard_of(tensors, 6);
    struct qf_reshard *plan = plan_of(shard, NULL, 10);
    assert_int_equal(plan->file_count, 3);
    expect_names(plan, 0, "a");
    expect_names(plan, 1, "b,c");
    expect_names(plan, 2, "d,e,f");
    check_headers(plan);
    qf_reshard_free(plan);
    plan = plan_of(shard, NULL, 24);
    assert_int_equal(plan->file_count, 1);
    check_headers(plan);
    qf_reshard_free(plan);
    plan = plan_of(shard, NULL, 23); /* one past it */
    assert_int_equal(plan->file_count, 2);
    expect_names(plan, 1, "f");
    qf_reshard_free(plan);
    qf_shard_free(shard);
}

/* What is too large gets its own shard; what was open goes on behind it. */
static void test_too_large(void **state)
{
    (void)state;
    static const struct stfile_tensor tensors[] = {
        {"a", QF_U8, 1, {2}, NULL},
        {"b", QF_U8, 1, {11}, NULL},
        {"c", QF_U8, 1, {2}, NULL},
        {"d", QF_U8, 1, {30}, NULL},
    };
    struct qf_shard *shard = shard_of(tensors, 4);
    struct qf_reshard *plan = plan_of(shard, NULL, 10);
    assert_int_equal(plan->file_count, 3);
    expect_names(plan, 0, "b");
    expect_names(plan, 1, "d");
    expect_names(plan, 2, "a,c");
    check_headers(plan);
    qf_reshard_free(plan);
    qf_shard_free(shard);
}

#define STATE "x.weight.quant_state.bitsandbytes__nf4"

/* Companions that lie in another old shard, or far away, come to their weight. */
static void test_companions(void **state)
{
    (void)state;
    static const struct stfile_tensor first[] = {
        {"x.weight.absmax", QF_F32, 1, {3}, NULL},
        {"x.weight", QF_U8, 2, {96, 1}, NULL},
        {"y.weight", QF_I8, 2, {4, 8}, NULL},
        {"y.bias", QF_BF16, 1, {4}, NULL},
        {"x.bias", QF_BF16, 1, {5}, NULL},
    };
    static const struct stfile_tensor second[] = {
        {"x.weight.quant_map", QF_F32, 1, {16}, NULL},
        {STATE, QF_U8, 1, {71}, NULL},
        {"x.weight.nested_absmax", QF_F32, 1, {1}, NULL},
        {"x.weight.nested_quant_map", QF_F32, 1, {256}, NULL},
        {"y.SCB", QF_F32, 1, {4}, NULL},
        {"y.weight_format", QF_U8, 0, {0}, NULL},
        {"z.weight_other", QF_U8, 1, {1}, NULL},
    };
    struct qf_shard *a = shard_of(first, 5), *b = shard_of(second, 7);
    struct qf_reshard *plan = plan_of(a, b, 100);
    assert_int_equal(plan->file_count, 2);
    expect_names(plan, 0,
                 "x.weight,x.weight.quant_map,x.weight.nested_quant_map,"
                 "x.weight.absmax,x.weight.nested_absmax," STATE);
    expect_names(plan, 1,
                 "y.weight,y.SCB,y.bias,x.bias,y.weight_format,z.weight_other");
    check_headers(plan);
    qf_reshard_free(plan);
    qf_shard_free(a);
    qf_shard_free(b);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct stfile_tensor one[] = {{"a", QF_U8, 1, {2}, NULL}};
    struct qf_shard *a = shard_of(one, 1), *b = shard_of(one, 1);
    struct qf_shard *none = shard_of(one, 0);
    const struct qf_shard *twice[2] = {a, b}, *empty[1] = {none};
    struct qf_reshard *plan;
    struct qf_err err = {""};
    assert_int_equal(qf_reshard_plan(twice, 2, 10, &plan, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "tensor 'a' is in two shards"));
    assert_int_equal(qf_reshard_plan(empty, 1, 10, &plan, &err), -EBADMSG);
    qf_shard_free(a);
    qf_shard_free(b);
    qf_shard_free(none);
}

/* ---- names and index ---- */

static void test_names(void **state)
{
    (void)state;
    char *name = qf_reshard_name("model", 0, 12);
    assert_string_equal(name, "model-00001-of-00012.safetensors");
    free(name);
    name = qf_reshard_name("model.fp16", 99999, 100000);
    assert_string_equal(name, "model.fp16-100000-of-100000.safetensors");
    free(name);
    name = qf_reshard_name("diffusion_pytorch_model", 0, 1);
    assert_string_equal(name, "diffusion_pytorch_model.safetensors");
    free(name);
}

static void test_index(void **state)
{
    (void)state;
    static const struct stfile_tensor tensors[] = {{"b", QF_U8, 1, {6}, NULL},
                                                   {"a", QF_U8, 1, {6}, NULL}};
    static const char old[] = "{\"metadata\": {\"total_size\": 1, \"x\": 1e500},"
                              " \"weight_map\": {}}";
    struct qf_shard *shard = shard_of(tensors, 2);
    struct qf_reshard *plan = plan_of(shard, NULL, 10);
    struct qf_buf out = {0};
    assert_int_equal(qf_reshard_index(plan, "m", old, strlen(old), &out), 0);
    char *text = qf_buf_take(&out, NULL);
    assert_string_equal(text, "{\n  \"metadata\": {\n    \"total_size\": 12,\n"
                              "    \"x\": 1e500\n  },\n  \"weight_map\": {\n"
                              "    \"a\": \"m-00002-of-00002.safetensors\",\n"
                              "    \"b\": \"m-00001-of-00002.safetensors\"\n  }\n}\n");
    free(text);
    assert_int_equal(qf_reshard_index(plan, "m", NULL, 0, &out), 0);
    text = qf_buf_take(&out, NULL);
    assert_non_null(strstr(text, "\"metadata\": {\n    \"total_size\": 12\n  }"));
    free(text);
    assert_int_equal(qf_reshard_index(plan, "m", "[]", 2, &out), -EBADMSG);
    qf_buf_fini(&out);
    qf_reshard_free(plan);
    qf_shard_free(shard);
}

static void test_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"5GB", 5000000000u},
                {"500MB", 500000000},
                {"2GiB", 2147483648u},
                {"1.5kb", 1500},
                {" 10 MB ", 10000000},
                {"7", 7},
                {"1B", 1},
                {"1TiB", 1099511627776},
                {"0.5 gib", 536870912},
                {"3TB", 3000000000000},
                {"1MiB", 1048576},
                {"1KiB", 1024}};
    static const char *const bad[] = {"",     "GB",  "-1GB",  "5 G B",       "5XB",
                                      "inf",  "nan", "0x1GB", "5GBs",        "0",
                                      "0.1B", ".",   "1..2",  "9999999999TB"};
    uint64_t bytes;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        bytes = 0;
        if (qf_parse_shard_size(good[i].text, &bytes) != 0 || bytes != good[i].bytes)
            fail_msg("%s: %llu", good[i].text, (unsigned long long)bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (qf_parse_shard_size(bad[i], &bytes) == 0)
            fail_msg("%s: taken as %llu", bad[i], (unsigned long long)bytes);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split),      cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_companions), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_names),      cmocka_unit_test(test_index),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
