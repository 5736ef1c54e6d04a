/* SPDX-License-Identifier: Apache-2.0 */
/* The scanner: which texts it takes, where it says the trouble is, and exact values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"

#define COUNT(a) (sizeof(a) / sizeof(a)[0])

/* 0, or the scanner's error for the whole text. */
static int scan_all(const char *text, size_t size, bool nonfinite, size_t *where)
{
    struct qf_json_scan scan;
    struct qf_json_token tok;
    qf_json_scan_init(&scan, text, size, nonfinite);
    int rc;
    do {
        rc = qf_json_next(&scan, &tok);
        if (rc == 0) {
            assert_true(tok.start <= tok.end);
            assert_true(tok.end <= size);
        }
    } while (rc == 0 && tok.kind != QF_JSON_END);
    if (rc != 0) {
        assert_non_null(scan.problem);
        assert_true(scan.problem_pos <= size);
    }
    if (where != NULL)
        *where = scan.problem_pos;
    return rc;
}

static void test_accepts(void **state)
{
    (void)state;
    static const char *const texts[] = {"0",
                                        "-0",
                                        "12",
                                        "1.5",
                                        "-1.5e+10",
                                        "1E5",
                                        "0e-0",
                                        "1e999",
                                        "true",
                                        "false",
                                        "null",
                                        "\"\"",
                                        "\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\"",
                                        "\"\\ud800\"",
                                        "\"\x7f\"",
                                        "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"",
                                        "{}",
                                        "[]",
                                        " { } ",
                                        "\t\n\r [ 1 , 2 ] \n",
                                        "{\"a\":1,\"a\":2}",
                                        "[[],{},[{}]]",
                                        "{\"a\":{\"b\":[1,{\"c\":null}]},\"d\":\"e\"}"};
    for (size_t i = 0; i < COUNT(texts); i++)
        if (scan_all(texts[i], strlen(texts[i]), false, NULL) != 0)
            fail_msg("refused: %s", texts[i]);
}

static void test_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t where;
    } cases[] = {{"", 0},
                 {"  ", 2},
                 {"01", 0},
                 {"-", 0},
                 {"+1", 0},
                 {"1.", 0},
                 {".5", 0},
                 {"1e", 0},
                 {"1e+", 0},
                 {"-01", 0},
                 {"0x1", 1},
                 {"1 2", 2},
                 {"{} x", 3},
                 {"tru", 0},
                 {"nul", 0},
                 {"True", 0},
                 {"NaN", 0},
                 {"-Infinity", 0},
                 {"Infinity", 0},
                 {"[1,]", 3},
                 {"[,1]", 1},
                 {"[1 2]", 3},
                 {"[1", 2},
                 {"[", 1},
                 {"{", 1},
                 {"{\"a\"}", 4},
                 {"{\"a\":}", 5},
                 {"{\"a\":1,}", 7},
                 {"{\"a\" 1}", 5},
                 {"{a:1}", 1},
                 {"{1:2}", 1},
                 {"{\"a\":1 \"b\":2}", 7},
                 {"[}", 1},
                 {"{]", 1},
                 {"[1}", 2},
                 {"{\"a\":1]", 6},
                 {"\"abc", 0},
                 {"\"a\tb\"", 2},
                 {"\"\\x\"", 1},
                 {"\"\\u12g4\"", 1},
                 {"\"\\u12", 1},
                 {"\"\\", 1},
                 {"'a'", 0},
                 {"]", 0},
                 {"}", 0},
                 {",", 0},
                 {"\xef\xbb\xbf{}", 0},
                 {"{}\xef", 2},
                 {"/* */1", 0}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        size_t where = 0;
        int rc = scan_all(cases[i].text, strlen(cases[i].text), false, &where);
        if (rc != -EBADMSG || where != cases[i].where)
            fail_msg("%s: rc %d at %zu", cases[i].text, rc, where);
    }
    assert_int_equal(scan_all("{}\0", 3, false, NULL), -EBADMSG);
    assert_int_equal(scan_all("\"\\\0\"", 4, false, NULL), -EBADMSG);
}

static void test_invalid_utf8(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x80",
                                      "\xbf",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xc3",
                                      "\xc3(",
                                      "\xe0\x80\x80",
                                      "\xe0\x9f\xbf",
                                      "\xe2\x82",
                                      "\xed\xa0\x80",
                                      "\xed\xbf\xbf",
                                      "\xf0\x80\x80\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf0\x9f\x98",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xff",
                                      "\xfe"};
    static const char *const good[] = {"\xc2\x80",         "\xdf\xbf",
                                       "\xe0\xa0\x80",     "\xed\x9f\xbf",
                                       "\xee\x80\x80",     "\xef\xbf\xbf",
                                       "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"};
    char text[16];
    for (size_t i = 0; i < COUNT(bad); i++) {
        snprintf(text, sizeof text, "\"%s\"", bad[i]);
        assert_int_equal(scan_all(text, strlen(text), true, NULL), -EBADMSG);
        /* Cut off by the end of the text: not read past it. */
        assert_int_equal(scan_all(text, strlen(text) - 1, true, NULL), -EBADMSG);
    }
    for (size_t i = 0; i < COUNT(good); i++) {
        snprintf(text, sizeof text, "\"%s\"", good[i]);
        assert_int_equal(scan_all(text, strlen(text), true, NULL), 0);
    }
}

static void test_nonfinite(void **state)
{
    (void)state;
    static const char text[] = "[NaN,Infinity,-Infinity,-1]";
    struct qf_json_scan scan;
    struct qf_json_token tok;
    qf_json_scan_init(&scan, text, strlen(text), true);
    assert_int_equal(qf_json_next(&scan, &tok), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(qf_json_next(&scan, &tok), 0);
        assert_int_equal(tok.kind, QF_JSON_NONFINITE);
    }
    assert_memory_equal(text + tok.start, "-Infinity", 9);
    assert_int_equal(qf_json_next(&scan, &tok), 0);
    assert_int_equal(tok.kind, QF_JSON_NUMBER);
    assert_int_equal(scan_all("[-Inf]", 6, true, NULL), -EBADMSG);
    assert_int_equal(scan_all("[-NaN]", 6, true, NULL), -EBADMSG);
    assert_int_equal(scan_all(text, strlen(text), false, NULL), -EBADMSG);
}

static void test_depth_limit(void **state)
{
    (void)state;
    char text[2 * (QF_JSON_DEPTH_MAX + 1)];
    for (int object = 0; object < 2; object++) {
        memset(text, '[', QF_JSON_DEPTH_MAX);
        memset(text + QF_JSON_DEPTH_MAX, ']', QF_JSON_DEPTH_MAX);
        if (object) {
            text[QF_JSON_DEPTH_MAX - 1] = '{';
            text[QF_JSON_DEPTH_MAX] = '}';
        }
        assert_int_equal(scan_all(text, (size_t)2 * QF_JSON_DEPTH_MAX, false, NULL), 0);
    }
    memset(text, '[', QF_JSON_DEPTH_MAX + 1);
    memset(text + QF_JSON_DEPTH_MAX + 1, ']', QF_JSON_DEPTH_MAX + 1);
    size_t where;
    assert_int_equal(scan_all(text, sizeof text, false, &where), -EBADMSG);
    assert_int_equal(where, QF_JSON_DEPTH_MAX);
}

static void test_tokens(void **state)
{
    (void)state;
    static const char text[] = " {\"a\" : [1, true] , \"b\":\"x\"} ";
    static const struct {
        enum qf_json_kind kind;
        const char *text;
    } want[] = {{QF_JSON_OBJECT, "{"},     {QF_JSON_KEY, "\"a\""},
                {QF_JSON_ARRAY, "["},      {QF_JSON_NUMBER, "1"},
                {QF_JSON_TRUE, "true"},    {QF_JSON_ARRAY_END, "]"},
                {QF_JSON_KEY, "\"b\""},    {QF_JSON_STRING, "\"x\""},
                {QF_JSON_OBJECT_END, "}"}, {QF_JSON_END, ""}};
    struct qf_json_scan scan;
    struct qf_json_token tok;
    qf_json_scan_init(&scan, text, strlen(text), false);
    for (size_t i = 0; i < COUNT(want); i++) {
        assert_int_equal(qf_json_next(&scan, &tok), 0);
        assert_int_equal(tok.kind, want[i].kind);
        assert_int_equal(tok.end - tok.start, strlen(want[i].text));
        assert_memory_equal(text + tok.start, want[i].text, tok.end - tok.start);
    }
}

static void test_skip(void **state)
{
    (void)state;
    static const char text[] = "[[1,[2,{\"a\":[]}],3], 4 ,\"s\"]";
    struct qf_json_scan scan;
    struct qf_json_token tok;
    size_t end;
    qf_json_scan_init(&scan, text, strlen(text), false);
    assert_int_equal(qf_json_next(&scan, &tok), 0);
    assert_int_equal(qf_json_next(&scan, &tok), 0);
    assert_int_equal(qf_json_skip(&scan, &tok, &end), 0);
    assert_int_equal(end, strlen("[[1,[2,{\"a\":[]}],3]"));
    assert_int_equal(qf_json_next(&scan, &tok), 0);
    assert_int_equal(qf_json_skip(&scan, &tok, &end), 0);
    assert_int_equal(end, strlen("[[1,[2,{\"a\":[]}],3], 4"));
    assert_int_equal(qf_json_next(&scan, &tok), 0);
    assert_int_equal(tok.kind, QF_JSON_STRING);

    qf_json_scan_init(&scan, "[[1,", 4, false);
    assert_int_equal(qf_json_next(&scan, &tok), 0);
    assert_int_equal(qf_json_skip(&scan, &tok, &end), -EBADMSG);
}

static void expect_unescaped(const char *text, int rc, const char *want, size_t size)
{
    struct qf_json_scan scan;
    struct qf_json_token tok;
    struct qf_buf out = {0};
    qf_json_scan_init(&scan, text, strlen(text), false);
    assert_int_equal(qf_json_next(&scan, &tok), 0);
    assert_int_equal(qf_json_unescape(&scan, &tok, &out), rc);
    if (rc == 0) {
        assert_int_equal(out.size, size);
        if (size > 0)
            assert_memory_equal(out.data, want, size);
        if (strlen(want) == size)
            assert_true(qf_json_token_is(&scan, &tok, want));
    }
    qf_buf_fini(&out);
}

static void test_unescape(void **state)
{
    (void)state;
    expect_unescaped("\"\"", 0, "", 0);
    expect_unescaped("\"plain\"", 0, "plain", 5);
    expect_unescaped("\"\\\"\\\\\\/\\b\\f\\n\\r\\t!\"", 0, "\"\\/\b\f\n\r\t!", 9);
    expect_unescaped("\"\\u0041\\u00e9\\u20AC\"", 0, "A\xc3\xa9\xe2\x82\xac", 6);
    expect_unescaped("\"x\\ud83d\\uDE00y\"", 0, "x\xf0\x9f\x98\x80y", 6);
    expect_unescaped("\"\\udbff\\udfff\"", 0, "\xf4\x8f\xbf\xbf", 4);
    expect_unescaped("\"\\ud800\\udc00\"", 0, "\xf0\x90\x80\x80", 4);
    expect_unescaped("\"a\\u0000b\"", 0, "a\0b", 3);
    static const char *const lone[] = {"\"\\ud800\"",        "\"\\udc00\"",
                                       "\"\\ud800x\"",       "\"\\ud800\\n\"",
                                       "\"\\ud800\\u0041\"", "\"\\ud800\\ud800\"",
                                       "\"\\udfff\\ud800\""};
    for (size_t i = 0; i < COUNT(lone); i++)
        expect_unescaped(lone[i], -EBADMSG, "", 0);
}

static void test_token_is(void **state)
{
    (void)state;
    static const char text[] = "[\"dtype\",\"d\\u0074ype\",\"\\ud800\",\"a\\u0000b\"]";
    struct qf_json_scan scan;
    struct qf_json_token tok;
    qf_json_scan_init(&scan, text, strlen(text), false);
    assert_int_equal(qf_json_next(&scan, &tok), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(qf_json_next(&scan, &tok), 0);
        assert_true(qf_json_token_is(&scan, &tok, "dtype"));
        assert_false(qf_json_token_is(&scan, &tok, "dtyp"));
        assert_false(qf_json_token_is(&scan, &tok, "dtypes"));
        assert_false(qf_json_token_is(&scan, &tok, ""));
    }
    assert_int_equal(qf_json_next(&scan, &tok), 0);
    assert_false(qf_json_token_is(&scan, &tok, "\xed\xa0\x80"));
    assert_int_equal(qf_json_next(&scan, &tok), 0);
    assert_false(qf_json_token_is(&scan, &tok, "a"));
    assert_false(qf_json_token_is(&scan, &tok, "ab"));
}

static void test_u64(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int rc;
        uint64_t value;
    } cases[] = {{"0", 0, 0},
                 {"9007199254740993", 0, UINT64_C(9007199254740993)},
                 {"18446744073709551615", 0, UINT64_MAX},
                 {"18446744073709551616", -EOVERFLOW, 0},
                 {"99999999999999999999999", -EOVERFLOW, 0},
                 {"-0", -EBADMSG, 0},
                 {"-1", -EBADMSG, 0},
                 {"1.0", -EBADMSG, 0},
                 {"1e3", -EBADMSG, 0},
                 {"99999999999999999999999.5", -EBADMSG, 0},
                 {"true", -EBADMSG, 0},
                 {"\"1\"", -EBADMSG, 0}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct qf_json_scan scan;
        struct qf_json_token tok;
        uint64_t v = 7;
        qf_json_scan_init(&scan, cases[i].text, strlen(cases[i].text), false);
        assert_int_equal(qf_json_next(&scan, &tok), 0);
        assert_int_equal(qf_json_token_u64(&scan, &tok, &v), cases[i].rc);
        assert_int_equal(v, cases[i].rc == 0 ? cases[i].value : 7);
    }
}

/* Every truncation of a text is refused, and reads nothing past its end. */
static void test_truncations(void **state)
{
    (void)state;
    static const char text[] =
        "{\"a\":[1.5e-3,-Infinity,\"\\ud83d\\ude00\xe2\x82\xac\"],\"b\":{\"c\":null}}";
    for (size_t n = 0; n < strlen(text); n++) {
        char *copy = malloc(n + 1);
        assert_non_null(copy);
        memcpy(copy, text, n);
        char *exact = realloc(copy, n > 0 ? n : 1);
        assert_non_null(exact);
        assert_int_equal(scan_all(exact, n, true, NULL), -EBADMSG);
        free(exact);
    }
    assert_int_equal(scan_all(text, strlen(text), true, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepts),      cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_invalid_utf8), cmocka_unit_test(test_nonfinite),
        cmocka_unit_test(test_depth_limit),  cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_skip),         cmocka_unit_test(test_unescape),
        cmocka_unit_test(test_token_is),     cmocka_unit_test(test_u64),
        cmocka_unit_test(test_truncations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
