/* SPDX-License-Identifier: Apache-2.0 */
/* The document: as lenient as Python's json module, and no more. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"

static qf_json *parse(const char *text)
{
    struct qf_err err = {.text = ""};
    qf_json *doc = qf_json_parse(text, strlen(text), &err);
    if (doc == NULL)
        fail_msg("%s: %s", text, err.text);
    return doc;
}

static void test_values(void **state)
{
    (void)state;
    qf_json *doc = parse("{\"s\":\"x\\u00e9\",\"n\":-1.5,\"t\":true,\"f\":false,"
                         "\"z\":null,\"o\":{\"k\":1},\"a\":[1,\"two\",null]}");
    assert_true(qf_json_is_object(doc));
    assert_string_equal(qf_json_string(qf_json_get(doc, "s")), "x\xc3\xa9");
    assert_true(qf_json_number(qf_json_get(doc, "n")) == -1.5);
    assert_true(qf_json_is_true(qf_json_get(doc, "t")));
    assert_false(qf_json_is_true(qf_json_get(doc, "f")));
    assert_true(qf_json_is_null(qf_json_get(doc, "z")));
    assert_true(qf_json_is_null(qf_json_get(doc, "absent")));
    assert_false(qf_json_is_null(qf_json_get(doc, "f")));
    assert_true(qf_json_is_object(qf_json_get(doc, "o")));
    const qf_json *a = qf_json_get(doc, "a");
    assert_true(qf_json_is_array(a));
    const qf_json *e = qf_json_first(a);
    assert_true(qf_json_number(e) == 1);
    e = qf_json_after(e);
    assert_string_equal(qf_json_string(e), "two");
    e = qf_json_after(e);
    assert_true(qf_json_is_null(e));
    assert_null(qf_json_after(e));
    assert_string_equal(qf_json_name(qf_json_first(doc)), "s");
    assert_string_equal(qf_json_name(qf_json_after(qf_json_first(doc))), "n");
    qf_json_free(doc);
}

/* Every accessor takes NULL and a value of another kind. */
static void test_nothing(void **state)
{
    (void)state;
    qf_json *doc = parse("[1]");
    const qf_json *one = qf_json_first(doc);
    const qf_json *values[] = {NULL, doc, one};
    for (size_t i = 0; i < 3; i++) {
        assert_null(qf_json_get(values[i], "x"));
        assert_null(qf_json_string(values[i]));
        assert_false(qf_json_is_object(values[i]));
        assert_false(qf_json_is_true(values[i]));
    }
    assert_null(qf_json_first(NULL));
    assert_null(qf_json_first(one));
    assert_null(qf_json_after(NULL));
    assert_null(qf_json_name(NULL));
    assert_null(qf_json_name(one));
    assert_true(qf_json_number(NULL) == 0);
    assert_true(qf_json_number(doc) == 0);
    assert_false(qf_json_is_array(NULL));
    assert_false(qf_json_is_number(NULL));
    assert_true(qf_json_is_number(one));
    qf_json_free(doc);
    qf_json_free(NULL);
}

static void test_nonfinite_is_null(void **state)
{
    (void)state;
    qf_json *doc = parse("{\"a\": NaN, \"b\":Infinity,\"c\":[-Infinity , 2],\"d\":3}");
    assert_true(qf_json_is_null(qf_json_get(doc, "a")));
    assert_non_null(qf_json_get(doc, "a"));
    assert_true(qf_json_is_null(qf_json_get(doc, "b")));
    const qf_json *c = qf_json_first(qf_json_get(doc, "c"));
    assert_true(qf_json_is_null(c));
    assert_true(qf_json_number(qf_json_after(c)) == 2);
    assert_true(qf_json_number(qf_json_get(doc, "d")) == 3);
    qf_json_free(doc);
}

static void test_last_duplicate_wins(void **state)
{
    (void)state;
    qf_json *doc = parse("{\"a\":1,\"A\":2,\"a\":3,\"b\":4}");
    assert_true(qf_json_number(qf_json_get(doc, "a")) == 3);
    assert_true(qf_json_number(qf_json_get(doc, "A")) == 2);
    assert_null(qf_json_get(doc, "B"));
    qf_json_free(doc);
}

/* U+0000 must not make one name pass for another. */
static void test_nul_and_surrogates(void **state)
{
    (void)state;
    qf_json *doc = parse("{\"a\\u0000b\":1,\"c\":\"x\\u0000y\",\"d\":\"\\ud800\","
                         "\"e\":\"\\uDC00\\ud83d\\uDE00\\ud800\\ud83d\\ude00\","
                         "\"f\":\"\\\\u0000\\\\ud800\"}");
    assert_null(qf_json_get(doc, "a"));
    assert_true(qf_json_number(qf_json_get(doc, "a\xef\xbf\xbd"
                                                "b")) == 1);
    assert_string_equal(qf_json_string(qf_json_get(doc, "c")), "x\xef\xbf\xbdy");
    assert_string_equal(qf_json_string(qf_json_get(doc, "d")), "\xef\xbf\xbd");
    assert_string_equal(qf_json_string(qf_json_get(doc, "e")),
                        "\xef\xbf\xbd\xf0\x9f\x98\x80\xef\xbf\xbd\xf0\x9f\x98\x80");
    assert_string_equal(qf_json_string(qf_json_get(doc, "f")), "\\u0000\\ud800");
    qf_json_free(doc);
}

static void test_long_numbers(void **state)
{
    (void)state;
    char text[512] = "[1";
    memset(text + 2, '0', 100);
    strcpy(text + 102, ",0.");
    memset(text + 105, '0', 80);
    strcpy(text + 185, "5,-1");
    memset(text + 189, '0', 310);
    strcpy(text + 499, "]");
    qf_json *doc = parse(text);
    const qf_json *v = qf_json_first(doc);
    assert_true(qf_json_number(v) == 1e100);
    v = qf_json_after(v);
    assert_true(qf_json_number(v) == 5e-81);
    v = qf_json_after(v);
    assert_true(isinf(qf_json_number(v)) && qf_json_number(v) < 0);
    qf_json_free(doc);
}

static void test_malformed(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *says;
    } cases[] = {{"", "line 1, byte 1: the JSON text ends too early"},
                 {"{\n  \"a\": 1,\n}", "line 3, byte 1: expected a member name"},
                 {"{} {}", "something follows"},
                 {"\xef\xbb\xbf{}", "byte order mark"},
                 {"{\"a\":01}", "malformed number"},
                 {"{\"a\":\"\xff\"}", "invalid UTF-8"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct qf_err err = {.text = ""};
        errno = 0;
        assert_null(qf_json_parse(cases[i].text, strlen(cases[i].text), &err));
        assert_int_equal(errno, EBADMSG);
        if (strstr(err.text, cases[i].says) == NULL)
            fail_msg("%s: %s", cases[i].text, err.text);
    }
    assert_null(qf_json_parse("[", 1, NULL));
}

static void test_depth(void **state)
{
    (void)state;
    char text[2 * QF_JSON_DEPTH_MAX + 2];
    memset(text, '[', QF_JSON_DEPTH_MAX);
    memset(text + QF_JSON_DEPTH_MAX, ']', QF_JSON_DEPTH_MAX);
    qf_json *doc = qf_json_parse(text, (size_t)2 * QF_JSON_DEPTH_MAX, NULL);
    assert_non_null(doc);
    qf_json_free(doc);
    memset(text, '[', QF_JSON_DEPTH_MAX + 1);
    assert_null(qf_json_parse(text, sizeof text, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_values),
                                       cmocka_unit_test(test_nothing),
                                       cmocka_unit_test(test_nonfinite_is_null),
                                       cmocka_unit_test(test_last_duplicate_wins),
                                       cmocka_unit_test(test_nul_and_surrogates),
                                       cmocka_unit_test(test_long_numbers),
                                       cmocka_unit_test(test_malformed),
                                       cmocka_unit_test(test_depth)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
