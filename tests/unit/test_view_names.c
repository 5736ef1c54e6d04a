/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "view/names.h"

static void test_default_settings(void **state)
{
    static const char *const names[] = {"nf4", "fp4", "dq", "int8"};
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct qf_view view;
        assert_int_equal(qf_view_parse(names[i], strlen(names[i]), &view, NULL), 0);
        assert_string_equal(view.name, names[i]);
        assert_string_equal(qf_codec_name(view.codec), names[i]);
        assert_int_equal(view.blocksize, 64);
        assert_int_equal(view.storage, QF_U8);
        assert_int_equal(view.dtype, QF_DTYPE_NONE);
        assert_int_equal(view.compute, QF_DTYPE_NONE);
        assert_true(view.int8_threshold == 6.0);
        struct qf_codec_spec spec = qf_view_spec(&view, QF_BF16);
        assert_int_equal(spec.codec, view.codec);
        assert_int_equal(spec.blocksize, 64);
        assert_int_equal(spec.dtype, QF_BF16);
        assert_int_equal(spec.storage, QF_U8);
    }
}

static void test_name_need_not_be_ended(void **state)
{
    struct qf_view view;
    (void)state;
    assert_int_equal(qf_view_parse("nf4/models", 3, &view, NULL), 0);
    assert_string_equal(view.name, "nf4");
}

static void test_unknown_names(void **state)
{
    static const char *const names[] = {"", "nf", "nf44", "NF4", "int8 "};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct qf_view view;
        struct qf_err err = {""};
        assert_int_equal(qf_view_parse(names[i], strlen(names[i]), &view, &err),
                         -ENOENT);
        char quoted[64];
        snprintf(quoted, sizeof quoted, "'%s'", names[i]);
        assert_non_null(strstr(err.text, quoted));
        assert_non_null(strstr(err.text, "nf4, fp4, dq, int8, ao-int8wo"));
    }
}

static void test_odd_names(void **state)
{
    struct qf_view view;
    char longest[QF_VIEW_NAME_SIZE + 100];
    (void)state;
    memset(longest, 'x', sizeof longest);
    assert_int_equal(qf_view_parse("nf4\0x", 5, &view, NULL), -ENOENT);
    assert_int_equal(qf_view_parse(longest, QF_VIEW_NAME_SIZE - 1, &view, NULL),
                     -ENOENT);
    assert_int_equal(qf_view_parse(longest, QF_VIEW_NAME_SIZE, &view, NULL), -ENOENT);
    assert_int_equal(qf_view_parse(longest, sizeof longest, &view, NULL), -ENOENT);
}

static void test_lists(void **state)
{
    struct qf_view views[QF_VIEWS_MAX];
    size_t count = 0;
    (void)state;
    assert_int_equal(qf_view_parse_list("nf4:dq", views, &count, NULL), 0);
    assert_int_equal(count, 2);
    assert_string_equal(views[0].name, "nf4");
    assert_string_equal(views[1].name, "dq");
    assert_int_equal(qf_view_parse_list(qf_view_default_list, views, &count, NULL), 0);
    assert_int_equal(count, 4);
}

static void test_bad_lists(void **state)
{
    static const struct {
        const char *list;
        const char *says;
    } cases[] = {{"", "empty"},          {"nf4:", "empty"},       {":nf4", "empty"},
                 {"nf4::dq", "empty"},   {"nf4:nf4", "twice"},    {"nf4:q4", "'q4'"},
                 {"nf4,dq", "'nf4,dq'"}, {"dq:nf4:dq", "'dq' is"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct qf_view views[QF_VIEWS_MAX];
        size_t count = 77;
        struct qf_err err = {""};
        assert_int_equal(qf_view_parse_list(cases[i].list, views, &count, &err),
                         -EINVAL);
        assert_non_null(strstr(err.text, cases[i].says));
        assert_int_equal(count, 77);
    }
}

/* ---- settings ---- */

static void means(const char *spelling, const char *name)
{
    struct qf_view view, again;
    struct qf_err err = {""};
    int rc = qf_view_parse(spelling, strlen(spelling), &view, &err);
    if (rc != 0 || strcmp(view.name, name) != 0)
        fail_msg("'%s' is '%s' (%d, %s), not '%s'", spelling, rc == 0 ? view.name : "",
                 rc, err.text, name);
    assert_int_equal(view.only.count + view.skip.count + view.force.count, 0);
    assert_int_equal(qf_view_parse(view.name, strlen(view.name), &again, NULL), 0);
    assert_string_equal(again.name, name);
}

static void test_one_name_for_each_meaning(void **state)
{
    (void)state;
    means("nf4+dtype=bfloat16", "nf4+dtype=bfloat16");
    means("nf4+dtype=torch.bfloat16", "nf4+dtype=bfloat16");
    means("nf4+blocksize=128+compute=float16", "nf4+compute=float16+blocksize=128");
    means("fp4+force=score+skip=b:a:b+only=mlp+blocksize=4096+storage=uint8+"
          "compute=float32+dtype=float16",
          "fp4+dtype=float16+compute=float32+storage=uint8+blocksize=4096+only=mlp+"
          "skip=a:b+force=score");
    means("dq+skip=layers.10+skip=layers.1:layers.1.mlp",
          "dq+skip=layers.1:layers.1.mlp:layers.10");
    means("dq+only=layers.*.mlp", "dq+only=layers.*.mlp");
    means("int8+threshold=6", "int8+threshold=6.0");
    means("int8+threshold=6.250", "int8+threshold=6.25");
    means("int8+threshold=0", "int8+threshold=0.0");
    means("int8+threshold=1e300", "int8+threshold=1.00000000000000005e300");
    means("int8+threshold=1e-30", "int8+threshold=1.00000000000000008e-30");
    means("int8+dtype=float32+skip=\xc3\xa4", "int8+dtype=float32+skip=\xc3\xa4");
    /* The default by name: it wins over an override, so it is another view. */
    means("nf4+blocksize=64", "nf4+blocksize=64");
}

static void test_settings_are_set(void **state)
{
    struct qf_view view;
    (void)state;
    const char *name =
        "dq+dtype=float16+compute=bfloat16+storage=float32+blocksize=256";
    assert_int_equal(qf_view_parse(name, strlen(name), &view, NULL), 0);
    assert_int_equal(view.codec, QF_CODEC_DQ);
    assert_int_equal(view.dtype, QF_F16);
    assert_int_equal(view.compute, QF_BF16);
    assert_int_equal(view.storage, QF_F32);
    assert_int_equal(view.blocksize, 256);
    name = "int8+threshold=5.5";
    assert_int_equal(qf_view_parse(name, strlen(name), &view, NULL), 0);
    assert_true(view.int8_threshold == 5.5);
}

static void refuses(const char *name, const char *says)
{
    struct qf_view view;
    struct qf_err err = {""};
    assert_int_equal(qf_view_parse(name, strlen(name), &view, &err), -EINVAL);
    if (strstr(err.text, says) == NULL || strstr(err.text, name) == NULL)
        fail_msg("'%s': '%s' is not in '%s'", name, says, err.text);
}

static void test_impossible_settings(void **state)
{
    (void)state;
    static const char block[] = "'blocksize' must be a power of two from 64 to 4096";
    refuses("nf4+", "nf4 has no setting ''");
    refuses("nf4++dtype=float16", "nf4 has no setting ''");
    refuses("nf4+bs=64", "no setting 'bs' (it has dtype, compute, storage, blocksize, "
                         "only, skip, force)");
    refuses("nf4+threshold=6.0", "nf4 has no setting 'threshold'");
    refuses("int8+blocksize=64", "int8 has no setting 'blocksize' (it has dtype, "
                                 "threshold, only, skip, force)");
    refuses("int8+storage=uint8", "no setting 'storage'");
    refuses("int8+compute=float16", "no setting 'compute'");
    refuses("nf4+blocksize", "'blocksize' needs a value");
    refuses("nf4+skip", "'skip' needs a value");
    refuses("nf4+blocksize=", block);
    refuses("nf4+blocksize=32", block);
    refuses("nf4+blocksize=100", block);
    refuses("nf4+blocksize=8192", block);
    refuses("nf4+blocksize=0x40", block);
    refuses("nf4+blocksize= 64", block);
    refuses("nf4+blocksize=-64", block);
    refuses("nf4+blocksize=64+blocksize=64", "'blocksize' is there twice");
    refuses("nf4+dtype=float64", "'dtype' must be float32, float16 or bfloat16");
    refuses("nf4+dtype=uint8", "'dtype' must be float32");
    refuses("nf4+compute=fp16", "'compute' must be float32");
    refuses("nf4+storage=int8",
            "'storage' must be uint8, float32, float16 or bfloat16");
    refuses("int8+threshold=-1", "'threshold' must be a number that is not negative");
    refuses("int8+threshold=inf", "'threshold' must be");
    refuses("int8+threshold=nan", "'threshold' must be");
    refuses("int8+threshold=1e999", "'threshold' must be");
    refuses("int8+threshold=6.0.0", "'threshold' must be");
    refuses("nf4+skip=", "'skip' must be names of modules, separated by ':'");
    refuses("nf4+skip=a:", "'skip' must be names");
    refuses("nf4+skip=:a", "'skip' must be names");
    refuses("nf4+only=a::b", "'only' must be names");
    refuses("nf4+skip=a,b", "'skip' must be names");
    refuses("nf4+skip=a b", "'skip' must be names");
    refuses("nf4+skip=a/b", "'skip' must be names");
    refuses("nf4+force=a=b", "'force' must be names");
    refuses("nf4+skip=a\n", "'skip' must be names");
    refuses("nf4+skip=a\x7f", "'skip' must be names");
}

static void test_unknown_codec_with_settings(void **state)
{
    struct qf_view view;
    struct qf_err err = {""};
    (void)state;
    assert_int_equal(qf_view_parse("q4+dtype=float16", 16, &view, &err), -ENOENT);
    assert_non_null(strstr(err.text, "'q4+dtype=float16'"));
    assert_int_equal(qf_view_parse("+dtype=float16", 14, &view, NULL), -ENOENT);
    assert_int_equal(qf_view_parse("nf4+skip=a\0b", 12, &view, NULL), -ENOENT);
}

/* A name as long as a component of a path may be, one longer, and one that gets longer
 * when it is spelled as it should be. */
static void test_longest_names(void **state)
{
    char name[QF_VIEW_NAME_SIZE + 100] = "nf4+skip=";
    struct qf_view view;
    struct qf_err err = {""};
    (void)state;
    memset(name + 9, 'x', sizeof name - 9);
    assert_int_equal(qf_view_parse(name, 255, &view, NULL), 0);
    assert_int_equal(strlen(view.name), 255);
    assert_memory_equal(view.name, name, 255);
    assert_int_equal(qf_view_parse(name, 256, &view, &err), -EINVAL);
    assert_non_null(strstr(err.text, "longer than 255 bytes"));
    assert_int_equal(qf_view_parse(name, sizeof name, &view, NULL), -EINVAL);
    memcpy(name, "int8+threshold=6+skip=xxx", 25);
    assert_int_equal(qf_view_parse(name, 253, &view, NULL), 0);
    assert_int_equal(strlen(view.name), 255);
    assert_int_equal(qf_view_parse(name, 254, &view, &err), -EINVAL);
    /* As many patterns as fit. */
    memcpy(name, "nf4+skip=", 9);
    for (size_t i = 9; i < 255; i++)
        name[i] = i % 2 != 0 ? (char)('A' + i % 50) : ':';
    assert_int_equal(qf_view_parse(name, 254, &view, NULL), 0);
    assert_string_equal(view.name,
                        "nf4+skip=B:D:F:H:J:L:N:P:R:T:V:X:Z:\\:^:`:b:d:f:h:j:l:n:p:r");
}

static void test_lists_with_settings(void **state)
{
    struct qf_view views[QF_VIEWS_MAX];
    size_t count = 0;
    struct qf_err err = {""};
    struct qf_buf text = {0};
    (void)state;
    static const char list[] =
        "nf4:nf4+skip=b+blocksize=128+skip=a+only=c:dq+force=x+force=y";
    assert_int_equal(qf_view_parse_list(list, views, &count, NULL), 0);
    assert_int_equal(count, 3);
    assert_string_equal(views[1].name, "nf4+blocksize=128+only=c+skip=a:b");
    assert_string_equal(views[2].name, "dq+force=x:y");
    for (size_t i = 0; i < count; i++) {
        qf_buf_append_str(&text, i != 0 ? ":" : "");
        qf_view_append_listed(&views[i], &text);
    }
    char *listed = qf_buf_take(&text, NULL);
    assert_string_equal(
        listed, "nf4:nf4+blocksize=128+only=c+skip=a+skip=b:dq+force=x+force=y");
    assert_int_equal(qf_view_parse_list(listed, views, &count, NULL), 0);
    assert_string_equal(views[1].name, "nf4+blocksize=128+only=c+skip=a:b");
    free(listed);
    assert_int_equal(qf_view_parse_list("nf4+skip=a:b", views, &count, &err), -EINVAL);
    assert_non_null(strstr(err.text, "'b'"));
    assert_non_null(strstr(err.text, "skip=A+skip=B"));
    assert_int_equal(qf_view_parse_list("nf4+skip=a+only=b:nf4+only=b+skip=a", views,
                                        &count, &err),
                     -EINVAL);
    assert_non_null(strstr(err.text, "twice"));
    assert_int_equal(qf_view_parse_list("nf4:dq+blocksize=1", views, &count, &err),
                     -EINVAL);
    assert_non_null(strstr(err.text, "'blocksize' must be"));
}

static void assert_same(const struct qf_view *a, const struct qf_view *b)
{
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->codec, b->codec);
    assert_int_equal(a->blocksize, b->blocksize);
    assert_int_equal(a->storage, b->storage);
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->compute, b->compute);
    assert_true(a->int8_threshold == b->int8_threshold);
}

/* Names put together at random: whatever is taken has a name that means the same, also
 * in a list, and nothing but the name decides. */
static void test_random_names(void **state)
{
    static const char *const bits[] = {
        "nf4",     "int8",        "dq",      "+",           "+",       "=",
        ":",       "+skip=",      "+only=",  "a",           "b.c",     "*",
        "+dtype=", "float16",     "float32", "+blocksize=", "64",      "256",
        "1e2",     "+threshold=", "6",       ".5",          "-",       "+storage=",
        "uint8",   "\xc3\xa4",    ",",       " ",           "+force=", "+compute="};
    uint64_t seed = 1;
    unsigned taken = 0;
    (void)state;
    for (int i = 0; i < 200000; i++) {
        char name[128];
        size_t size = (size_t)sprintf(name, "%s", bits[i % 3]);
        for (int n = i % 9; n > 0; n--) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            size += (size_t)sprintf(name + size, "%s",
                                    bits[(seed >> 33) % (sizeof bits / sizeof *bits)]);
        }
        struct qf_view view, again, listed[QF_VIEWS_MAX];
        struct qf_buf text = {0};
        size_t count;
        if (qf_view_parse(name, size, &view, NULL) != 0)
            continue;
        taken++;
        assert_int_equal(qf_view_parse(view.name, strlen(view.name), &again, NULL), 0);
        assert_same(&view, &again);
        qf_view_append_listed(&view, &text);
        char *list = qf_buf_take(&text, NULL);
        assert_null(strchr(list, ':'));
        assert_int_equal(qf_view_parse_list(list, listed, &count, NULL), 0);
        assert_same(&view, &listed[0]);
        free(list);
    }
    assert_true(taken > 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default_settings),
        cmocka_unit_test(test_name_need_not_be_ended),
        cmocka_unit_test(test_unknown_names),
        cmocka_unit_test(test_odd_names),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_bad_lists),
        cmocka_unit_test(test_one_name_for_each_meaning),
        cmocka_unit_test(test_settings_are_set),
        cmocka_unit_test(test_impossible_settings),
        cmocka_unit_test(test_unknown_codec_with_settings),
        cmocka_unit_test(test_longest_names),
        cmocka_unit_test(test_lists_with_settings),
        cmocka_unit_test(test_random_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
