/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers, dtypes, checked arithmetic, error sentences, hashes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/bytes.h"
#include "base/dtype.h"
#include "base/err.h"
#include "base/hash.h"

static void test_buf(void **state)
{
    (void)state;
    struct qf_buf buf = {0};
    qf_buf_append(&buf, "abc", 2);
    qf_buf_append(&buf, NULL, 0);
    qf_buf_append_str(&buf, "");
    qf_buf_append_fill(&buf, '.', 100);
    qf_buf_appendf(&buf, "%d-%s", 42, "x");
    assert_false(buf.failed);
    size_t size;
    char *text = qf_buf_take(&buf, &size);
    assert_non_null(text);
    assert_int_equal(size, 106);
    assert_memory_equal(text, "ab....", 6);
    assert_string_equal(text + 102, "42-x");
    free(text);
    assert_null(buf.data);
    assert_int_equal(buf.size, 0);
    text = qf_buf_take(&buf, NULL);
    assert_string_equal(text, "");
    free(text);
    qf_buf_fini(&buf);
}

static void test_buf_failure(void **state)
{
    (void)state;
    struct qf_buf buf = {.failed = true};
    qf_buf_append_str(&buf, "x");
    qf_buf_append_fill(&buf, 'x', 3);
    qf_buf_appendf(&buf, "%d", 1);
    qf_buf_append_json(&buf, "x", 1);
    assert_int_equal(buf.size, 0);
    assert_null(qf_buf_take(&buf, NULL));
    assert_false(buf.failed);
}

static void test_buf_json(void **state)
{
    (void)state;
    struct qf_buf buf = {0};
    static const char text[] = "a\"\\\b\t\n\f\r\x01\x1f/\x7f\xc3\xa9\0z";
    qf_buf_append_json(&buf, text, sizeof text - 1);
    char *json = qf_buf_take(&buf, NULL);
    assert_string_equal(json, "\"a\\\"\\\\\\b\\t\\n\\f\\r\\u0001\\u001f/\x7f\xc3\xa9"
                              "\\u0000z\"");
    free(json);
}

/* Bytes that are no UTF-8 are told from all other text, and none is lost. */
static void test_buf_json_not_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *text, *json;
    } cases[] = {
        {"\xff", "\"\\udcff\""},
        {"a\x80z", "\"a\\udc80z\""},
        {"\xc3", "\"\\udcc3\""},       /* cut off */
        {"\xc3\"", "\"\\udcc3\\\"\""}, /* by a quote */
        {"\xe2\x82\xac\xe2\x82", "\"\xe2\x82\xac\\udce2\\udc82\""},
        {"\xc0\xaf", "\"\\udcc0\\udcaf\""},            /* too long */
        {"\xed\xb3\xbf", "\"\\udced\\udcb3\\udcbf\""}, /* a surrogate */
        {"\xf4\x8f\xbf\xbf", "\"\xf4\x8f\xbf\xbf\""},
        {"\xf4\x90\x80\x80", "\"\\udcf4\\udc90\\udc80\\udc80\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct qf_buf buf = {0};
        qf_buf_append_json(&buf, cases[i].text, strlen(cases[i].text));
        char *json = qf_buf_take(&buf, NULL);
        assert_string_equal(json, cases[i].json);
        free(json);
    }
}

static void test_dtypes(void **state)
{
    (void)state;
    for (int i = 0; i < QF_DTYPE_COUNT; i++) {
        enum qf_dtype dtype = (enum qf_dtype)i;
        const char *name = qf_dtype_name(dtype);
        assert_int_equal(qf_dtype_from_name(name, strlen(name)), dtype);
        assert_true(qf_dtype_bits(dtype) >= 4 && qf_dtype_bits(dtype) <= 64);
        if (qf_dtype_bits(dtype) % 8 == 0)
            assert_int_equal(qf_dtype_size(dtype) * 8, qf_dtype_bits(dtype));
        assert_int_equal(qf_dtype_is_float(dtype), dtype < QF_FLOAT_COUNT);
    }
    assert_int_equal(qf_dtype_from_name("F3", 2), QF_DTYPE_NONE);
    assert_int_equal(qf_dtype_from_name("F32x", 4), QF_DTYPE_NONE);
    assert_int_equal(qf_dtype_from_name("F32x", 3), QF_F32);
    assert_int_equal(qf_dtype_from_name("f32", 3), QF_DTYPE_NONE);
    assert_int_equal(qf_dtype_from_name("", 0), QF_DTYPE_NONE);
    assert_int_equal(qf_dtype_bits(QF_F4), 4);
    assert_int_equal(qf_dtype_bits(QF_F6_E2M3), 6);
    assert_int_equal(qf_dtype_bits(QF_C64), 64);
}

static void test_torch_names(void **state)
{
    (void)state;
    assert_int_equal(qf_dtype_from_torch("bfloat16"), QF_BF16);
    assert_int_equal(qf_dtype_from_torch("torch.float16"), QF_F16);
    assert_int_equal(qf_dtype_from_torch("torch.float32"), QF_F32);
    assert_int_equal(qf_dtype_from_torch("float64"), QF_DTYPE_NONE);
    assert_int_equal(qf_dtype_from_torch("torch."), QF_DTYPE_NONE);
    assert_int_equal(qf_dtype_from_torch(""), QF_DTYPE_NONE);
    assert_string_equal(qf_dtype_torch_name(QF_F32), "float32");
    assert_string_equal(qf_dtype_torch_name(QF_F16), "float16");
    assert_string_equal(qf_dtype_torch_name(QF_BF16), "bfloat16");
    assert_null(qf_dtype_torch_name(QF_I8));
    assert_null(qf_dtype_torch_name(QF_DTYPE_NONE));
}

static void test_bytes(void **state)
{
    (void)state;
    unsigned char at[16] = {0};
    qf_store_u64(at + 1, UINT64_C(0x0123456789abcdef));
    assert_int_equal(at[1], 0xef);
    assert_int_equal(at[8], 0x01);
    assert_true(qf_load_u64(at + 1) == UINT64_C(0x0123456789abcdef));
    qf_store_u32(at + 11, 0xdeadbeef);
    assert_int_equal(qf_load_u32(at + 11), 0xdeadbeef);
    uint64_t v = 0;
    assert_true(qf_mul_u64(UINT64_MAX, 1, &v));
    assert_true(v == UINT64_MAX);
    assert_false(qf_mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &v));
    assert_true(qf_add_u64(UINT64_MAX, 0, &v));
    assert_false(qf_add_u64(UINT64_MAX, 1, &v));
    assert_int_equal(qf_div_up(0, 8), 0);
    assert_int_equal(qf_div_up(1, 8), 1);
    assert_int_equal(qf_div_up(8, 8), 1);
    assert_true(qf_div_up(UINT64_MAX, 2) == UINT64_C(1) << 63);
}

static void test_err(void **state)
{
    (void)state;
    struct qf_err err = {.text = ""};
    assert_int_equal(qf_err_set(&err, -EBADMSG, "tensor '%s'", "a"), -EBADMSG);
    assert_string_equal(err.text, "tensor 'a'");
    qf_err_prefix(&err, "file %d", 7);
    assert_string_equal(err.text, "file 7: tensor 'a'");
    assert_int_equal(qf_err_set(NULL, -ENOMEM, "x"), -ENOMEM);
    qf_err_prefix(NULL, "x");
    char lengthy[2 * QF_ERR_TEXT_SIZE];
    memset(lengthy, 'y', sizeof lengthy - 1);
    lengthy[sizeof lengthy - 1] = '\0';
    qf_err_prefix(&err, "%s", lengthy);
    assert_int_equal(strlen(err.text), QF_ERR_TEXT_SIZE - 1);
    qf_err_set(&err, -1, "%s", lengthy);
    assert_int_equal(strlen(err.text), QF_ERR_TEXT_SIZE - 1);
    qf_err_prefix(&err, "z");
    assert_int_equal(strlen(err.text), QF_ERR_TEXT_SIZE - 1);
    assert_memory_equal(err.text, "z: yyy", 6);
}

/* Keys of caches on disk depend on these values. */
static void test_hash(void **state)
{
    (void)state;
    assert_true(qf_hash64("", 0) == UINT64_C(0x2d06800538d394c2));
    struct qf_hash128 h = qf_hash128("", 0);
    assert_true(h.low == UINT64_C(0x6001c324468d497f));
    assert_true(h.high == UINT64_C(0x99aa06d3014798d8));
    unsigned char bytes[3000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 7);
    qf_hash64_stream *stream = qf_hash64_stream_new();
    assert_non_null(stream);
    assert_true(qf_hash64_stream_value(stream) == qf_hash64("", 0));
    for (size_t off = 0, n = 1; off < sizeof bytes; off += n, n = n * 2 + 1) {
        n = n < sizeof bytes - off ? n : sizeof bytes - off;
        qf_hash64_stream_add(stream, bytes + off, n);
        assert_true(qf_hash64_stream_value(stream) == qf_hash64(bytes, off + n));
    }
    qf_hash64_stream_free(stream);
    qf_hash64_stream_free(NULL);
    struct qf_hash128 a = qf_hash128("a", 1), b = qf_hash128("b", 1);
    assert_true(qf_hash128_eq(a, a));
    assert_false(qf_hash128_eq(a, b));
}

static void test_err_is_of_file(void **state)
{
    (void)state;
    static const int of_file[] = {ENOENT, EACCES, ELOOP, ESTALE, EXDEV, EOPNOTSUPP};
    static const int trouble[] = {0, EIO, ENOMEM, EMFILE, ENFILE, EINTR, ETIMEDOUT};
    for (size_t i = 0; i < sizeof of_file / sizeof of_file[0]; i++)
        assert_true(qf_err_is_of_file(-of_file[i]));
    for (size_t i = 0; i < sizeof trouble / sizeof trouble[0]; i++)
        assert_false(qf_err_is_of_file(-trouble[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_err_is_of_file),
                                       cmocka_unit_test(test_buf),
                                       cmocka_unit_test(test_buf_failure),
                                       cmocka_unit_test(test_buf_json),
                                       cmocka_unit_test(test_buf_json_not_utf8),
                                       cmocka_unit_test(test_dtypes),
                                       cmocka_unit_test(test_torch_names),
                                       cmocka_unit_test(test_bytes),
                                       cmocka_unit_test(test_err),
                                       cmocka_unit_test(test_hash)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
