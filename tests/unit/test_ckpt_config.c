/* SPDX-License-Identifier: Apache-2.0 */
/* Splicing: what changes and that nothing else does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "ckpt/config.h"

static void expect(const char *text, const struct qf_splice *splices, size_t count,
                   const char *want)
{
    struct qf_buf out = {0};
    struct qf_err err = {.text = ""};
    int rc = qf_config_splice(text, strlen(text), splices, count, &out, &err);
    if (rc != 0)
        fail_msg("%s: %s", text, err.text);
    char *got = qf_buf_take(&out, NULL);
    assert_non_null(got);
    assert_string_equal(got, want);
    qf_json *doc = qf_json_parse(got, strlen(got), NULL);
    assert_non_null(doc);
    qf_json_free(doc);
    free(got);
}

static void expect_set(const char *text, const char *name, const char *value,
                       const char *want)
{
    const struct qf_splice splice = {.name = name, .value = value};
    expect(text, &splice, 1, want);
}

static void expect_removed(const char *text, const char *want)
{
    const struct qf_splice splice = {.name = "x"};
    expect(text, &splice, 1, want);
}

static void test_insert(void **state)
{
    (void)state;
    expect_set("{\n  \"a\": 1,\n  \"b\": 2\n}\n", "x", "{\"y\": 1}",
               "{\n  \"a\": 1,\n  \"b\": 2,\n  \"x\": {\"y\": 1}\n}\n");
    expect_set("{\n\t\"a\": 1\n}", "x", "3", "{\n\t\"a\": 1,\n\t\"x\": 3\n}");
    expect_set("{\r\n  \"a\": 1\r\n}\r\n", "x", "3",
               "{\r\n  \"a\": 1,\r\n  \"x\": 3\r\n}\r\n");
    expect_set("{\"a\": 1}", "x", "3", "{\"a\": 1, \"x\": 3}");
    expect_set("{\"a\": 1, \"b\": 2}", "x", "3", "{\"a\": 1, \"b\": 2, \"x\": 3}");
    expect_set("{\"a\":1,\"b\":2}", "x", "3", "{\"a\":1,\"b\":2,\"x\":3}");
    expect_set("{ \"a\" : 1 }", "x", "3", "{ \"a\" : 1, \"x\" : 3 }");
    /* Blank lines between members are not repeated. */
    expect_set("{\n  \"a\": 1,\n\n\n  \"b\": 2}", "x", "3",
               "{\n  \"a\": 1,\n\n\n  \"b\": 2,\n  \"x\": 3}");
    /* A comma at the beginning of the line. */
    expect_set("{\n  \"a\": 1\n, \"b\": 2\n}", "x", "3",
               "{\n  \"a\": 1\n, \"b\": 2, \"x\": 3\n}");
    expect_set("{\"a\": [1, {\"x\": 2}]}", "x", "3",
               "{\"a\": [1, {\"x\": 2}], \"x\": 3}");
    expect_set("{\"X\": 1}", "x\"\n", "3", "{\"X\": 1, \"x\\\"\\n\": 3}");
}

static void test_insert_into_empty(void **state)
{
    (void)state;
    expect_set("{}", "x", "3", "{\"x\": 3}");
    expect_set("{ }", "x", "3", "{\"x\": 3 }");
    expect_set(" {\n} ", "x", "3", " {\n  \"x\": 3\n} ");
    expect_set("{\r\n\r\n}", "x", "3", "{\r\n  \"x\": 3\r\n\r\n}");
    const struct qf_splice nested = {.object = "o", .name = "x", .value = "3"};
    expect("{\n  \"o\": {\n  }\n}", &nested, 1, "{\n  \"o\": {\n    \"x\": 3\n  }\n}");
    expect("{\"o\":{}}", &nested, 1, "{\"o\":{\"x\": 3}}");
}

static void test_replace(void **state)
{
    (void)state;
    expect_set("{\"x\" :\t[1, 2] , \"b\": 2}", "x", "3", "{\"x\" :\t3 , \"b\": 2}");
    expect_set("{\"a\": 1, \"x\": {\"x\": {}}}", "x", "3", "{\"a\": 1, \"x\": 3}");
    expect_set("{\"\\u0078\": 1}", "x", "3", "{\"\\u0078\": 3}");
    /* Of several the last one counts. */
    expect_set("{\"x\": 1, \"a\": 2, \"x\": 4}", "x", "3",
               "{\"x\": 1, \"a\": 2, \"x\": 3}");
    expect_set("{\"a\": \"}\", \"x\": \"]{\\\"\"}", "x", "3",
               "{\"a\": \"}\", \"x\": 3}");
}

/* What a JSON printer would not bring back. */
static void test_bytes_survive(void **state)
{
    (void)state;
    expect_set("{\"a\":NaN,\"b\" : -Infinity ,\"c\":1.0,\"d\":9007199254740993,"
               "\"e\":1E5,\"f\":\"\\u00e9\xc3\xa9\\/\",\t\"g\":[ ],\"h\":Infinity}  ",
               "x", "3",
               "{\"a\":NaN,\"b\" : -Infinity ,\"c\":1.0,\"d\":9007199254740993,"
               "\"e\":1E5,\"f\":\"\\u00e9\xc3\xa9\\/\",\t\"g\":[ ],\"h\":Infinity,"
               "\"x\":3}  ");
}

static void test_remove(void **state)
{
    (void)state;
    expect_removed("{\"a\": 1}", "{\"a\": 1}");
    expect_removed("{}", "{}");
    expect_removed("{\"x\": 1}", "{}");
    expect_removed("{ \"x\": 1 }", "{  }");
    expect_removed("{\n  \"x\": 1,\n  \"a\": 2\n}", "{\n  \"a\": 2\n}");
    expect_removed("{\n  \"a\": 2,\n  \"x\": [1]\n}", "{\n  \"a\": 2\n}");
    expect_removed("{\"a\": 1, \"x\": 2, \"b\": 3}", "{\"a\": 1, \"b\": 3}");
    expect_removed("{\"x\": 1, \"x\": 2, \"a\": 3, \"x\": 4, \"x\": 5, \"b\": 6, "
                   "\"x\": 7, \"x\": 8}",
                   "{\"a\": 3, \"b\": 6}");
    expect_removed("{\"x\": 1, \"x\": 2}", "{}");
    const struct qf_splice both = {.name = "x", .instead_of = "y"};
    expect("{\"y\": 1, \"a\": 2, \"x\": 3}", &both, 1, "{\"a\": 2}");
    expect("{\"y\": 1, \"a\": 2}", &both, 1, "{\"a\": 2}");
}

static void test_instead_of(void **state)
{
    (void)state;
    const struct qf_splice splice = {.name = "dtype",
                                     .value = "\"bfloat16\"",
                                     .instead_of = "torch_dtype"};
    expect("{\n  \"torch_dtype\" :  \"float16\",\n  \"a\": 1\n}", &splice, 1,
           "{\n  \"dtype\" :  \"bfloat16\",\n  \"a\": 1\n}");
    expect("{\"a\": 1}", &splice, 1, "{\"a\": 1, \"dtype\": \"bfloat16\"}");
    expect("{\"dtype\": null, \"a\": 1, \"torch_dtype\": 2}", &splice, 1,
           "{\"dtype\": \"bfloat16\", \"a\": 1}");
    expect("{\"torch_dtype\": 2, \"dtype\": null}", &splice, 1,
           "{\"dtype\": \"bfloat16\"}");
    expect("{\"torch_dtype\": 1, \"a\": 2, \"torch_dtype\": 3}", &splice, 1,
           "{\"a\": 2, \"dtype\": \"bfloat16\"}");
    expect("{\"torch_dtype\": 1, \"dtype\": 2, \"torch_dtype\": 3, \"dtype\": 4, "
           "\"torch_dtype\": 5}",
           &splice, 1, "{\"dtype\": 2, \"dtype\": \"bfloat16\"}");
}

static void test_nested(void **state)
{
    (void)state;
    const struct qf_splice splice = {.object = "o",
                                     .name = "x",
                                     .value = "3",
                                     .instead_of = "y"};
    expect("{\"x\": 1, \"o\": {\"x\": 2}, \"y\": 4}", &splice, 1,
           "{\"x\": 1, \"o\": {\"x\": 3}, \"y\": 4}");
    expect("{\n  \"o\": {\n    \"y\": {\"x\": 1}\n  },\n  \"x\": 1\n}", &splice, 1,
           "{\n  \"o\": {\n    \"x\": 3\n  },\n  \"x\": 1\n}");
    expect("{\"o\": 1, \"o\": {}}", &splice, 1, "{\"o\": 1, \"o\": {\"x\": 3}}");
    expect("{\"a\": {\"o\": {}}, \"o\": {\"b\": 1}}", &splice, 1,
           "{\"a\": {\"o\": {}}, \"o\": {\"b\": 1, \"x\": 3}}");
}

static void test_several(void **state)
{
    (void)state;
    const struct qf_splice splices[] = {{.name = "q", .value = "{}"},
                                        {.object = "q", .name = "r", .value = "[1]"},
                                        {.name = "dtype",
                                         .value = "\"float16\"",
                                         .instead_of = "torch_dtype"},
                                        {.name = "gone"}};
    expect("{\n  \"gone\": 0,\n  \"torch_dtype\": 1\n}", splices, 4,
           "{\n  \"dtype\": \"float16\",\n  \"q\": {\"r\": [1]}\n}");
    expect("{\"a\": NaN}", NULL, 0, "{\"a\": NaN}");
}

static void test_appends(void **state)
{
    (void)state;
    struct qf_buf out = {0};
    qf_buf_append_str(&out, "before");
    assert_int_equal(qf_config_splice("{}", 2, NULL, 0, &out, NULL), 0);
    assert_int_equal(out.size, 8);
    assert_memory_equal(out.data, "before{}", 8);
    qf_buf_fini(&out);
}

static void test_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *object;
        const char *says;
    } cases[] = {{"", NULL, "ends too early"},
                 {"[1]", NULL, "not a JSON object"},
                 {"3", NULL, "not a JSON object"},
                 {"{\"a\": 1", NULL, "byte 7"},
                 {"{\"a\": 1}}", NULL, "something follows"},
                 {"{\"a\": 01}", NULL, "malformed number"},
                 {"\xef\xbb\xbf{}", NULL, "byte order mark"},
                 {"{\"a\": \"\xff\"}", NULL, "invalid UTF-8"},
                 {"{\"a\": 1}", "o", "'o' is not an object"},
                 {"{\"o\": [1]}", "o", "'o' is not an object"},
                 {"{\"o\": {}, \"o\": null}", "o", "'o' is not an object"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct qf_splice splice = {.object = cases[i].object,
                                         .name = "x",
                                         .value = "1"};
        struct qf_buf out = {0};
        struct qf_err err = {.text = ""};
        assert_int_equal(qf_config_splice(cases[i].text, strlen(cases[i].text), &splice,
                                          1, &out, &err),
                         -EBADMSG);
        if (strstr(err.text, cases[i].says) == NULL)
            fail_msg("%s: %s", cases[i].text, err.text);
        assert_int_equal(out.size, 0);
        qf_buf_fini(&out);
    }
}

/* Splicing is linear, however often a name repeats. */
static void test_many_duplicates(void **state)
{
    (void)state;
    struct qf_buf text = {0}, out = {0};
    const struct qf_splice splice = {.name = "x", .value = "1", .instead_of = "y"};
    qf_buf_append_str(&text, "{\"a\": 0");
    for (int i = 0; i < 300000; i++)
        qf_buf_append_str(&text, ", \"y\": 2");
    qf_buf_append_str(&text, "}");
    assert_int_equal(qf_config_splice(text.data, text.size, &splice, 1, &out, NULL), 0);
    assert_int_equal(out.size, strlen("{\"a\": 0, \"x\": 1}"));
    assert_memory_equal(out.data, "{\"a\": 0, \"x\": 1}", out.size);
    qf_buf_fini(&text);
    qf_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_insert),         cmocka_unit_test(test_insert_into_empty),
        cmocka_unit_test(test_replace),        cmocka_unit_test(test_bytes_survive),
        cmocka_unit_test(test_remove),         cmocka_unit_test(test_instead_of),
        cmocka_unit_test(test_nested),         cmocka_unit_test(test_several),
        cmocka_unit_test(test_appends),        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_many_duplicates)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
