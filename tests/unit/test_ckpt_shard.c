/* SPDX-License-Identifier: Apache-2.0 */
/* Safetensors headers: every rule at its edge. tests/fuzz/diff_safetensors.py compares
 * with the safetensors library itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "ckpt/shard.h"
#include "support/stfile.h"

#define COUNT(a) (sizeof(a) / sizeof(a)[0])
/* A tensor of two bytes at 0 and one at 2, and the fields of such a tensor. */
#define TENSOR(name, more)                                                             \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]" more "}"
#define FIELDS(dtype, shape, offsets)                                                  \
    "{\"a\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static int parse(const char *header, size_t data_size, struct qf_shard **out,
                 struct qf_err *err)
{
    size_t size;
    unsigned char *file = stfile_raw(header, data_size, &size);
    size_t n = 8 + strlen(header);
    /* In a block of its own size, so that a sanitizer sees a read past the header. */
    unsigned char *exact = malloc(n);
    assert_non_null(exact);
    memcpy(exact, file, n);
    int rc = qf_shard_parse(exact, n, size, out, err);
    free(exact);
    free(file);
    return rc;
}

static struct qf_shard *accept(const char *header, size_t data_size)
{
    struct qf_err err = {.text = ""};
    struct qf_shard *shard = NULL;
    if (parse(header, data_size, &shard, &err) != 0)
        fail_msg("%s: %s", header, err.text);
    return shard;
}

static void refuse(const char *header, size_t data_size, const char *says)
{
    struct qf_err err = {.text = ""};
    struct qf_shard *shard = NULL;
    int rc = parse(header, data_size, &shard, &err);
    if (rc != -EBADMSG || strstr(err.text, says) == NULL)
        fail_msg("%s: %d %s", header, rc, err.text);
    assert_null(shard);
    assert_memory_equal(err.text, "header: ", 8);
    assert_int_equal(parse(header, data_size, &shard, NULL), -EBADMSG);
}

static void test_ordinary(void **state)
{
    (void)state;
    const struct stfile_tensor tensors[] = {{"b.weight", QF_BF16, 2, {4, 6}, NULL},
                                            {"a", QF_F32, 0, {0}, NULL},
                                            {"c", QF_I64, 1, {3}, NULL}};
    size_t size;
    unsigned char *file = stfile_make(tensors, COUNT(tensors), &size);
    uint64_t n = 0;
    struct qf_shard *shard = NULL;
    assert_int_equal(qf_shard_header_size(file, size, &n, NULL), 0);
    assert_int_equal(qf_shard_parse(file, 8 + n, size, &shard, NULL), 0);
    assert_int_equal(shard->file_size, size);
    assert_int_equal(shard->data_off, 8 + n);
    struct qf_hash128 hash = qf_hash128(file, 8 + n);
    assert_true(qf_hash128_eq(shard->header_hash, hash));
    assert_int_equal(shard->tensor_count, 3);
    uint64_t off = shard->data_off;
    for (size_t i = 0; i < 3; i++) {
        const struct qf_tensor *t = &shard->tensors[i];
        assert_string_equal(t->name, tensors[i].name);
        assert_int_equal(t->dtype, tensors[i].dtype);
        assert_int_equal(t->rank, tensors[i].rank);
        assert_int_equal(t->off, off);
        for (uint32_t d = 0; d < t->rank; d++)
            assert_int_equal(t->shape[d], tensors[i].shape[d]);
        off += t->size;
        assert_ptr_equal(qf_shard_find(shard, t->name), t);
    }
    assert_int_equal(off, size);
    assert_int_equal(shard->tensors[0].size, 48);
    assert_int_equal(shard->tensors[1].size, 4);
    assert_null(qf_shard_find(shard, "b"));
    assert_null(qf_shard_find(shard, ""));
    assert_null(qf_shard_find(shard, "zzz"));
    assert_int_equal(shard->metadata_count, 1);
    assert_string_equal(shard->metadata[0].key, "format");
    assert_string_equal(shard->metadata[0].value, "pt");
    qf_shard_free(shard);
    qf_shard_free(NULL);
    free(file);
}

static void test_header_size(void **state)
{
    (void)state;
    unsigned char first[8];
    uint64_t n = 1;
    struct qf_err err = {.text = ""};
    qf_store_u64(first, 2);
    assert_int_equal(qf_shard_header_size(first, 10, &n, &err), 0);
    assert_int_equal(n, 2);
    assert_int_equal(qf_shard_header_size(first, 9, &n, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "truncated"));
    assert_int_equal(qf_shard_header_size(first, 7, &n, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "7 bytes"));
    assert_int_equal(qf_shard_header_size(first, 0, &n, NULL), -EBADMSG);
    qf_store_u64(first, QF_SHARD_HEADER_SIZE_MAX);
    assert_int_equal(qf_shard_header_size(first, 8 + (uint64_t)QF_SHARD_HEADER_SIZE_MAX,
                                          &n, &err),
                     0);
    qf_store_u64(first, (uint64_t)QF_SHARD_HEADER_SIZE_MAX + 1);
    assert_int_equal(qf_shard_header_size(first, UINT64_MAX, &n, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "100000001"));
    qf_store_u64(first, UINT64_MAX);
    assert_int_equal(qf_shard_header_size(first, UINT64_MAX, &n, &err), -EBADMSG);
    /* The parser checks it again. */
    struct qf_shard *shard = NULL;
    assert_int_equal(qf_shard_parse(first, 8, 8, &shard, &err), -EBADMSG);
}

static void test_empty(void **state)
{
    (void)state;
    static const char *const headers[] = {"{}",
                                          "{ }",
                                          "{}   ",
                                          " {}",
                                          "{}\t\r\n ",
                                          "{\"__metadata__\":{}}",
                                          "{\"__metadata__\":null}"};
    for (size_t i = 0; i < COUNT(headers); i++) {
        struct qf_shard *shard = accept(headers[i], 0);
        assert_int_equal(shard->tensor_count, 0);
        assert_int_equal(shard->metadata_count, 0);
        assert_null(qf_shard_find(shard, "a"));
        qf_shard_free(shard);
    }
}

static void test_not_a_header(void **state)
{
    (void)state;
    refuse("", 0, "ends too early");
    refuse("{", 0, "ends too early");
    refuse("[]", 0, "not a JSON object");
    refuse("null", 0, "not a JSON object");
    refuse("{}x", 0, "something follows");
    refuse("{\"a\":1}", 0, "tensor 'a': is not an object");
    refuse("{\"a\":null}", 0, "is not an object");
    refuse("\xef\xbb\xbf{}", 0, "byte order mark");
    refuse("{" TENSOR("a", "") ",}", 2, "member name");
    refuse("{" TENSOR("a\xff", "") "}", 2, "invalid UTF-8");
    refuse("{" TENSOR("\xed\xa0\x80", "") "}", 2, "invalid UTF-8");
    refuse("{" TENSOR("a\tb", "") "}", 2, "control character");
    refuse("{" TENSOR("\\ud800", "") "}", 2, "surrogate");
    refuse("{" TENSOR("\\u0000", "") "}", 2, "U+0000");
    refuse("{" TENSOR("a", ",\"x\":NaN") "}", 2, "expected a value");
    /* A NUL behind the object, which a C string cannot show. */
    unsigned char file[11] = "\3\0\0\0\0\0\0\0{}";
    struct qf_shard *shard = NULL;
    assert_int_equal(qf_shard_parse(file, 11, 11, &shard, NULL), -EBADMSG);
}

static void test_fields(void **state)
{
    (void)state;
    refuse("{\"a\":{\"shape\":[2],\"data_offsets\":[0,2]}}", 2, "no dtype");
    refuse("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,2]}}", 2, "no shape");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2]}}", 2, "no data_offsets");
    refuse("{\"a\":{}}", 0, "no dtype");
    refuse("{" TENSOR("a", ",\"dtype\":\"U8\"") "}", 2, "given twice");
    refuse("{" TENSOR("a", ",\"sh\\u0061pe\":[2]") "}", 2, "given twice");
    refuse("{" TENSOR("a", ",\"data_offsets\":[0,2]") "}", 2, "given twice");
    refuse(FIELDS("\"u8\"", "[2]", "[0,2]"), 2, "unknown dtype 'u8'");
    refuse(FIELDS("\"C128\"", "[2]", "[0,2]"), 2, "unknown dtype 'C128'");
    refuse(FIELDS("\"U8\\u0000\"", "[2]", "[0,2]"), 2, "unknown dtype");
    refuse(FIELDS("\"\\ud800\"", "[2]", "[0,2]"), 2, "surrogate");
    refuse(FIELDS("null", "[2]", "[0,2]"), 2, "dtype is not a string");
    refuse(FIELDS("[\"U8\"]", "[2]", "[0,2]"), 2, "dtype is not a string");
    refuse(FIELDS("{}", "[2]", "[0,2]"), 2, "dtype is not a string");
    refuse(FIELDS("{\"U8\":{}}", "[2]", "[0,2]"), 2, "dtype is not a string");
    refuse(FIELDS("{\"U8\":null,\"U8\":null}", "[2]", "[0,2]"), 2, "dtype is not");
    refuse(FIELDS("\"U8\"", "null", "[0,2]"), 2, "shape is not a list");
    refuse(FIELDS("\"U8\"", "2", "[0,2]"), 2, "shape is not a list");
    static const char *const numbers[] = {"2.0", "-2",   "-0",
                                          "2e0", "null", "\"2\"",
                                          "[2]", "true", "18446744073709551616"};
    char header[256];
    for (size_t i = 0; i < COUNT(numbers); i++) {
        snprintf(header, sizeof header, FIELDS("\"U8\"", "[%s]", "[0,2]"), numbers[i]);
        refuse(header, 2, "whole numbers");
        snprintf(header, sizeof header, FIELDS("\"U8\"", "[2]", "[0,%s]"), numbers[i]);
        refuse(header, 2, "whole numbers");
    }
    refuse(FIELDS("\"U8\"", "[2]", "[]"), 2, "list of two numbers");
    refuse(FIELDS("\"U8\"", "[2]", "[0]"), 2, "list of two numbers");
    refuse(FIELDS("\"U8\"", "[2]", "[0,2,3]"), 2, "list of two numbers");
    refuse(FIELDS("\"U8\"", "[2]", "{}"), 2, "not a list");
}

/* What serde, and so the library, also takes. */
static void test_odd_spellings(void **state)
{
    (void)state;
    static const char *const headers[] = {
        "{\"a\":[\"U8\",[2],[0,2]]}", FIELDS("{\"U8\":null}", "[2]", "[0,2]"),
        FIELDS("\"\\u0055\\u0038\"", "[ 2 ]", "[ 0 , 2 ]"),
        "{" TENSOR("\\u0061", ",\"x\":{\"y\":[1,2.5,\"s\",null,true]},\"x\":0") "}",
        "{" TENSOR("a", ",\"x\":[1e308,0e999,1e-999,-1e308,0.1e-99999999999]") "}"};
    for (size_t i = 0; i < COUNT(headers); i++) {
        struct qf_shard *shard = accept(headers[i], 2);
        assert_int_equal(shard->tensor_count, 1);
        assert_string_equal(shard->tensors[0].name, "a");
        assert_int_equal(shard->tensors[0].dtype, QF_U8);
        assert_int_equal(shard->tensors[0].shape[0], 2);
        qf_shard_free(shard);
    }
    refuse("{\"a\":[]}", 2, "is not a list of dtype, shape and data_offsets");
    refuse("{\"a\":[\"U8\",[2]]}", 2, "is not a list of");
    refuse("{\"a\":[\"U8\",[2],[0,2],1]}", 2, "is not a list of");
    refuse("{" TENSOR("a", ",\"x\":\"\\ud800\"") "}", 2, "surrogate");
    refuse("{" TENSOR("a", ",\"x\":{\"\\ud800\":1}") "}", 2, "surrogate");
}

static void test_number_range(void **state)
{
    (void)state;
    static const struct {
        const char *number;
        bool fits;
    } cases[] = {{"1e308", true},
                 {"-1e308", true},
                 {"1e309", false},
                 {"1.7976931348623157e308", true},
                 {"1.7976931348623159e308", false},
                 {"179769313486231580000e288", false},
                 {"17976931348623157e292", true},
                 {"0.00001e312", true},
                 {"0.1e310", false},
                 {"0e99999999999999999999", true},
                 {"1e99999999999999999999", false},
                 {"1e-99999999999999999999", true},
                 {"123456789012345678901234567890", true}};
    char header[512];
    for (size_t i = 0; i < COUNT(cases); i++) {
        snprintf(header, sizeof header, "{" TENSOR("a", ",\"x\":[%s]") "}",
                 cases[i].number);
        if (cases[i].fits)
            qf_shard_free(accept(header, 2));
        else
            refuse(header, 2, "out of range");
    }
}

static void test_metadata(void **state)
{
    (void)state;
    struct qf_shard *shard =
        accept("{\"\\u005f_metadata__\":{\"b\":\"1\",\"a\":\"\\n\\u00e9\","
               "\"b\":\"2\",\"c\":\"\",\"a\":\"3\"}}",
               0);
    assert_int_equal(shard->metadata_count, 3);
    static const char *const want[3][2] = {{"b", "2"}, {"c", ""}, {"a", "3"}};
    for (size_t i = 0; i < 3; i++) {
        assert_string_equal(shard->metadata[i].key, want[i][0]);
        assert_string_equal(shard->metadata[i].value, want[i][1]);
    }
    qf_shard_free(shard);
    refuse("{\"__metadata__\":[]}", 0, "not an object");
    refuse("{\"__metadata__\":\"x\"}", 0, "not an object");
    refuse("{\"__metadata__\":{\"a\":1}}", 0, "not a string");
    refuse("{\"__metadata__\":{\"a\":null}}", 0, "not a string");
    refuse("{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", 0, "not a string");
    refuse("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "given twice");
    refuse("{\"__metadata__\":null,\"__metadata__\":{}}", 0, "given twice");
    refuse("{\"__metadata__\":{\"a\\u0000\":\"b\"}}", 0, "U+0000");
    refuse("{\"__metadata__\":{\"a\":\"b\\u0000\"}}", 0, "U+0000");
    refuse("{\"__metadata__\":{\"a\":\"\\ud800\"}}", 0, "surrogate");
}

static void test_layout(void **state)
{
    (void)state;
#define AT(name, begin, end, n)                                                        \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" n "],\"data_offsets\":[" begin        \
    "," end "]}"
    refuse("{" AT("a", "1", "3", "2") "}", 3, "tensor 'a': there is a gap before");
    refuse("{" AT("a", "0", "2", "2") "," AT("b", "3", "4", "1") "}", 4,
           "tensor 'b': there is a gap");
    refuse("{" AT("a", "0", "2", "2") "," AT("b", "1", "3", "2") "}", 3,
           "tensor 'b': offsets overlap");
    refuse("{" AT("a", "0", "2", "2") "," AT("b", "0", "2", "2") "}", 2, "overlap");
    refuse("{" AT("a", "2", "0", "2") "}", 2, "end before they begin");
    refuse("{" AT("a", "0", "2", "2") "}", 1, "truncated");
    refuse("{" AT("a", "0", "2", "2") "}", 0, "truncated");
    refuse("{" AT("a", "0", "2", "2") "}", 3, "1 bytes that belong to no tensor");
    refuse("{}", 5, "5 bytes that belong to no tensor");
    refuse("{" AT("a", "0", "2", "3") "}", 2, "another size");
    refuse("{" AT("a", "0", "18446744073709551615", "18446744073709551615") "}", 2,
           "overflows");
    refuse("{" AT("a", "0", "2", "2") "," AT("a", "2", "3", "1") "}", 3,
           "tensor 'a': the name is given twice");
    /* Any order of the text; empty tensors before the one that begins where they are.
     */
    struct qf_shard *shard =
        accept("{" AT("d", "3", "3", "0") "," AT("c", "2", "3", "1") "," AT(
                   "z", "2", "2", "0") "," AT("y", "2", "2", "0") "," AT("a", "0", "2",
                                                                         "2") "}",
               3);
    static const char *const order[] = {"a", "z", "y", "c", "d"};
    for (size_t i = 0; i < COUNT(order); i++)
        assert_string_equal(shard->tensors[i].name, order[i]);
    qf_shard_free(shard);
    refuse("{" AT("a", "0", "2", "2") "," AT("z", "1", "1", "0") "}", 2, "overlap");
    refuse("{" AT("a", "0", "2", "2") "," AT("z", "5", "5", "0") "}", 2, "gap");
#undef AT
}

static void test_shapes(void **state)
{
    (void)state;
    qf_shard_free(accept(FIELDS("\"F32\"", "[]", "[0,4]"), 4));
    refuse(FIELDS("\"F32\"", "[]", "[0,0]"), 0, "another size");
    qf_shard_free(accept(FIELDS("\"F32\"", "[0,18446744073709551615,7]", "[0,0]"), 0));
    refuse(FIELDS("\"U8\"", "[18446744073709551615,2,0]", "[0,0]"), 0, "overflows");
    refuse(FIELDS("\"U8\"", "[2305843009213693952]", "[0,0]"), 0, "overflows");
    refuse(FIELDS("\"U8\"", "[2305843009213693951]", "[0,2]"), 2, "another size");
    qf_shard_free(accept(FIELDS("\"F4\"", "[2]", "[0,1]"), 1));
    refuse(FIELDS("\"F4\"", "[3]", "[0,1]"), 1, "whole number of bytes");
    refuse(FIELDS("\"F4\"", "[3]", "[0,2]"), 2, "whole number of bytes");
    qf_shard_free(accept(FIELDS("\"F6_E2M3\"", "[4]", "[0,3]"), 3));
    refuse(FIELDS("\"F6_E3M2\"", "[2]", "[0,1]"), 1, "whole number of bytes");
}

static void test_rank_limit(void **state)
{
    (void)state;
    char shape[4 * QF_TENSOR_RANK_MAX + 8] = "[2";
    for (int i = 1; i < QF_TENSOR_RANK_MAX; i++)
        strcat(shape, ",1");
    char header[512];
    snprintf(header, sizeof header, FIELDS("\"U8\"", "%s]", "[0,2]"), shape);
    struct qf_shard *shard = accept(header, 2);
    assert_int_equal(shard->tensors[0].rank, QF_TENSOR_RANK_MAX);
    qf_shard_free(shard);
    strcat(shape, ",1");
    snprintf(header, sizeof header, FIELDS("\"U8\"", "%s]", "[0,2]"), shape);
    refuse(header, 2, "more than 32 dimensions");
}

static void test_depth(void **state)
{
    (void)state;
    /* The entry is at depth 2. */
    char header[4 * QF_JSON_DEPTH_MAX] = "{" TENSOR("a", ",\"x\":");
    char *end = strrchr(header, '}');
    int levels = QF_JSON_DEPTH_MAX - 2;
    memset(end, '[', (size_t)levels);
    memset(end + levels, ']', (size_t)levels);
    strcpy(end + 2 * levels, "}}");
    qf_shard_free(accept(header, 2));
    memset(end, '[', (size_t)levels + 1);
    memset(end + levels + 1, ']', (size_t)levels + 1);
    strcpy(end + 2 * levels + 2, "}}");
    refuse(header, 2, "nested too deeply");
}

/* Names go into sentences without control characters and not without end. */
static void test_hostile_names(void **state)
{
    (void)state;
    refuse("{\"a\\u001b[2J\\n\":1}", 0, "tensor 'a?[2J?': is not an object");
    char header[2048] = "{\"";
    for (size_t i = 2; i < 1000; i += 2)
        memcpy(header + i, "\xc3\xa9", 2);
    strcpy(header + 1000, "\":1}");
    struct qf_err err = {.text = ""};
    struct qf_shard *shard = NULL;
    assert_int_equal(parse(header, 0, &shard, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "\xc3\xa9...': is not an object"));
}

/* Many tensors and metadata entries: no quadratic search for duplicates. */
static void test_many(void **state)
{
    (void)state;
    enum { MANY = 200000 };
    struct qf_buf text = {0};
    qf_buf_append_str(&text, "{\"__metadata__\":{");
    for (int i = 0; i < MANY; i++)
        qf_buf_appendf(&text, "%s\"k%d\":\"v\"", i > 0 ? "," : "", i);
    qf_buf_append_str(&text, "}");
    for (int i = 0; i < MANY; i++)
        qf_buf_appendf(&text, ",\"t%d\":[\"U8\",[1],[%d,%d]]", i, MANY - 1 - i,
                       MANY - i);
    qf_buf_append_str(&text, "}");
    char *header = qf_buf_take(&text, NULL);
    assert_non_null(header);
    struct qf_shard *shard = accept(header, MANY);
    assert_int_equal(shard->tensor_count, MANY);
    assert_int_equal(shard->metadata_count, MANY);
    char name[16];
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "t%d", i);
        const struct qf_tensor *t = qf_shard_find(shard, name);
        assert_ptr_equal(t, &shard->tensors[MANY - 1 - i]);
    }
    qf_shard_free(shard);
    free(header);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ordinary),      cmocka_unit_test(test_header_size),
        cmocka_unit_test(test_empty),         cmocka_unit_test(test_not_a_header),
        cmocka_unit_test(test_fields),        cmocka_unit_test(test_odd_spellings),
        cmocka_unit_test(test_number_range),  cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_layout),        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_rank_limit),    cmocka_unit_test(test_depth),
        cmocka_unit_test(test_hostile_names), cmocka_unit_test(test_many)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
